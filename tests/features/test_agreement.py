"""Agreement of codes against dense loops and numpy.corrcoef, and of planted codes."""

import numpy as np
import pytest
import torch as t
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize

from dictionary_learning_ext.codes.codes import Codes
from dictionary_learning_ext.codes.contexts import Reading
from dictionary_learning_ext.codes.encoding import Totals
from dictionary_learning_ext.features import agreement as module
from dictionary_learning_ext.features.agreement import CODE_MEASURES
from dictionary_learning_ext.features.matching import matching
from dictionary_learning_ext.features.reproducibility import reproducibility

N, F, D, K = 397, 24, 16, 3
KEYS = {measure.key for measure in CODE_MEASURES}


def drawn(seed, n=N, f=F, d=D, density=0.15, signed=False):
    """A sparse code, (n, f), in which features differ in frequency and scale, and directions of lengths."""
    rng = np.random.default_rng(seed)
    code = rng.exponential(size=(n, f)) * rng.uniform(0.5, 3, f)
    code *= rng.random((n, f)) < density * rng.uniform(0.1, 2, f)
    if signed:
        code *= rng.choice([-1, 1], (n, f))
    return code, rng.normal(size=(f, d)) * rng.uniform(0.5, 2, (f, 1))


def activations(code, directions):
    """Activations, (n, d), of which the code explains a part, and not without a bias."""
    noise = np.random.default_rng(5).normal(size=(len(code), directions.shape[1]))
    return code @ directions + noise + 0.3 * np.roll(code @ directions, 1, axis=0)


BIAS = 0.4


def as_codes(code, directions, k: int | None = K):
    n, size = code.shape
    x, x_hat = activations(code, directions), code @ directions + BIAS
    reading = Reading(*np.stack([np.zeros((1, n)), np.ones((1, n)), np.zeros((1, n))]).astype(bool))
    totals = Totals(directions.shape[1], size, k, t.device("cpu"))
    code_NF = csr_matrix(code.astype(np.float32))
    directions_FD = t.tensor(directions, dtype=t.float32)
    totals.add(t.tensor(x), t.tensor(x_hat), t.tensor(code.nonzero()[1]))
    ablation_error_F = (
        code**2 * (directions**2).sum(1) + 2 * code * ((x - x_hat) @ directions.T)
    ).sum(0)
    return Codes(
        code_NF, reading, totals, ablation_error_F, directions_FD, token_cosine(directions)
    )


def token_cosine(directions):
    return np.abs(normalize(directions)[:, 0]) + 0.5


def fve_of_some(code, directions, numbers):
    """The FVE of the reconstruction by some features alone."""
    x, numbers = activations(code, directions), sorted(numbers)
    x_hat = code[:, numbers] @ directions[numbers] + BIAS
    return 1 - np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()


def of(a, b, k: int | None = K):
    """The measures of two pairs of a code and directions."""
    saes = {name: as_codes(*sae, k) for name, sae in (("a", a), ("b", b))}
    found = compared(saes)
    assert found.tokens == len(a[0])
    assert found.means() == pytest.approx(found.pair.measures)
    return {key: found.pair.measures[key] for key in KEYS}


def compared(saes):
    return reproducibility({name: sae.directions_FD for name, sae in saes.items()}, saes)


def test_the_numbers_of_an_sae_are_means_over_its_own_pairs():
    (a, b), (c, _) = half_returns(0), half_returns(3)
    saes = {name: as_codes(*sae) for name, sae in (("a", a), ("b", b), ("c", c))}
    found = compared(saes)
    share = {names: pair.measures["in_function"] for names, pair in found.pairs.items()}
    assert found.numbers()["in_function"] == pytest.approx(np.mean([*share.values()]))
    own = np.mean([share["a", "b"], share["a", "c"]])
    assert found.numbers("a")["in_function"] == pytest.approx(own) != share["b", "c"]
    of_a = [found.pairs["a", other].fve[0] for other in "bc"]
    assert found.numbers("a")["in_function_fve"] == pytest.approx(np.mean(of_a))


def slowly(a, b, k):
    """The measures from dense arrays: one feature, token or pair at a time."""
    (f, ours), (g, theirs) = a, b
    (n, size), others = f.shape, g.shape[1]
    cosines = normalize(ours) @ normalize(theirs).T
    match = dict(zip(*linear_sum_assignment(np.abs(cosines), maximize=True), strict=True))
    assert len(match) == min(size, others)
    corr = np.zeros((size, others))
    for i in range(size):
        for j in range(others):
            if f[:, i].std() > 0 and g[:, j].std() > 0:
                corr[i, j] = np.corrcoef(f[:, i], g[:, j])[0, 1]
    rows, columns = linear_sum_assignment(corr, maximize=True)
    best = corr[rows, columns]
    found = {"correlation": best.mean()}
    own = [np.sign(cosines[i, j]) * corr[i, j] for i, j in match.items()]
    found["correlation_by_direction"] = np.mean(own)
    same = [(i, j) for i, j in zip(rows, columns, strict=True) if corr[i, j] >= 0.7]
    found["in_function"] = len(same) / np.mean([size, others])
    both = [*zip((a, b), zip(*same, strict=True), strict=True)]
    kinds = [token_cosine(each)[list(numbers)] >= 0.7 for (_, each), numbers in both]
    found["in_function_one_token"] = np.mean(kinds)
    found["in_function_fve"] = np.mean([fve_of_some(*each, numbers) for each, numbers in both])
    for name in ("selections", "energy"):
        parts = []
        for (code, directions), numbers in zip((a, b), zip(*same, strict=True), strict=True):
            weights = np.count_nonzero(code, axis=0)
            if name == "energy":
                weights = [
                    np.square(np.outer(*each)).sum()
                    for each in zip(code.T, directions, strict=True)
                ]
            parts.append(sum(weights[i] for i in numbers) / sum(weights))
        found[f"in_function_{name}"] = np.mean(parts)
    rates = [
        np.mean(code != 0, axis=0)
        * code.shape[1]
        / (np.mean((code != 0).sum(1)) if k is None else k)
        for code in (f, g)
    ]
    found["near_dead"] = np.mean([np.mean(each < 0.1) for each in rates])
    shares = {"selections": [], "energy": []}
    for least in (0.7, 0.9):
        in_a = {i for i, j in match.items() if abs(cosines[i, j]) >= least}
        both = ((f, ours, in_a), (g, theirs, {match[i] for i in in_a}))
        of_used = []
        if least == 0.7:
            found["direction_fve"] = np.mean([fve_of_some(*each) for each in both])
        for code, directions, returning in both:
            l0 = np.mean((code != 0).sum(1)) if k is None else k
            own_size = code.shape[1]
            fires = np.mean(code != 0, axis=0)
            used = [i for i in range(own_size) if fires[i] >= 0.1 * l0 / own_size]
            of_used.append(np.mean([i in returning for i in used]))
            if least == 0.7:
                added = [np.outer(code[:, i], directions[i]) for i in range(own_size)]
                energy = [np.square(each).sum() for each in added]
                shares["energy"].append(sum(energy[i] for i in returning) / sum(energy))
                counts = np.count_nonzero(code, axis=0)
                shares["selections"].append(sum(counts[i] for i in returning) / counts.sum())
        found[f"direction_{least:g}_not_near_dead"] = np.mean(of_used)
    found |= {f"direction_{name}": np.mean(each) for name, each in shares.items()}
    indices = []
    for token in range(n):
        one = {match.get(i, f"only in a: {i}") for i in range(size) if f[token, i] != 0}
        other = {j for j in range(others) if g[token, j] != 0}
        if one | other:
            indices.append(len(one & other) / len(one | other))
    found["jaccard"] = np.mean(indices)
    return found


def half_returns(seed, signed=False):
    """A pair: half of the features return, with noisy codes and other numbers, some with another sign."""
    rng = np.random.default_rng(seed + 50)
    (f, ours), (g, theirs) = drawn(seed, signed=signed), drawn(seed + 100, signed=signed)
    order, half = rng.permutation(F), F // 2
    sign = np.where(rng.random(half) < 0.3, -1, 1)
    keeps = rng.random((N, half)) < 0.8
    g[:, order[:half]] = f[:, :half] * keeps * (sign if signed else 1)
    theirs[order[:half]] = sign[:, None] * ours[:half] + 0.2 * theirs[order[:half]]
    return (f, ours), (g, theirs)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("k", [K, None])
def test_every_measure_is_what_a_slow_count_gives(signed, k):
    a, b = half_returns(0, signed)
    a[0][:, 3] = 0.0  # one never fires,
    b[0][:, 5] = 2.0  # one always does alike,
    for code, _ in (a, b):
        code[:, 7] *= np.arange(N) < 40  # one hardly ever does,
        code[:9] = 0.0  # and some tokens have no feature, but for that one
    b[0][:5, 5] = 0.0
    found, expected = of(a, b, k), slowly(a, b, k)
    assert set(found) == set(expected) == KEYS
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert 0.2 < found["direction_energy"] < 0.8
    assert 0.1 < found["in_function_fve"] < fve_of_some(*a, range(F)) - 0.1
    assert found["in_function_fve"] != pytest.approx(found["direction_fve"], abs=0.01)
    assert found["direction_0.7_not_near_dead"] != pytest.approx(0.5)
    assert found["in_function"] not in (0, 1, pytest.approx(found["correlation"]))
    swapped = of(b, a, k)
    assert {k: swapped[k] for k in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("k", [K, None])
def test_of_saes_of_two_sizes_the_larger_has_features_without_a_match(k):
    a, b = half_returns(0, signed=True)
    more, directions = drawn(7, f=F // 2, signed=True)
    larger = np.hstack([b[0], more]), np.vstack([b[1], directions])
    order = np.random.default_rng(3).permutation(F + F // 2)
    larger = larger[0][:, order], larger[1][order]
    found, expected = of(a, larger, k), slowly(a, larger, k)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    swapped = of(larger, a, k)
    assert {key: swapped[key] for key in expected} == pytest.approx(expected, abs=1e-5)


def test_a_feature_that_always_fires_alike_has_correlation_0_and_one_that_nearly_does_not():
    a = drawn(0)
    a[0][:, 0] = 5.7  # whose variance is not 0 by rounding
    a[0][:, 1] = 100 + np.random.default_rng(1).normal(size=N)
    assert of(a, a)["correlation"] == pytest.approx((F - 1) / F, abs=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_the_same_sae_with_its_features_in_another_order_agrees_in_everything(signed):
    f, directions = drawn(0, signed=signed)
    order = np.random.default_rng(1).permutation(F)
    sign = np.where(np.arange(F) % 3, 1, -1) if signed else 1
    scale = np.linspace(0.5, 2, F)  # other units, the same SAE
    other = f[:, order] * scale * sign, directions[order] / (scale * sign * np.ones(F))[:, None]
    found = of((f, directions), other)
    expected = dict.fromkeys(KEYS, 1.0) | {"near_dead": 0.0}
    expected["in_function_one_token"] = np.mean(token_cosine(directions) >= 0.7)
    expected |= dict.fromkeys(
        ("in_function_fve", "direction_fve"), fve_of_some(f, directions, range(F))
    )
    if signed:  # correlations are signed, so a feature finds no other
        of_function = [key for key in found if key.startswith(("correlation", "in_function"))]
        of_function.remove("correlation_by_direction")
        of_function.remove("in_function_one_token")  # of those few that do
        del found["in_function_one_token"], expected["in_function_one_token"]
        assert all(found.pop(key) < 0.8 * expected.pop(key) for key in of_function)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-5)


def test_of_two_saes_of_no_relation_nothing_is_above_chance():
    found = [of(drawn(seed, d=32), drawn(seed + 100, d=32)) for seed in range(8)]
    mean = {key: np.mean([one[key] for one in found]) for key in found[0]}
    for key in ("direction_0.7_not_near_dead", "direction_energy"):
        assert mean[key] == 0
    chance = np.mean([slowly_by_chance(seed) for seed in range(8)])
    assert mean["jaccard"] == pytest.approx(chance, abs=0.02)
    assert abs(mean["correlation_by_direction"]) < 0.02


def slowly_by_chance(seed):
    """The mean Jaccard index of the sets of two tokens' features, of SAEs of no relation."""
    f, g = drawn(seed)[0] != 0, drawn(seed + 100)[0][::-1] != 0
    either = (f | g).sum(1)
    return np.mean((f & g).sum(1)[either > 0] / either[either > 0])


def test_an_sae_whose_features_never_fire_has_zeros():
    a = np.zeros((N, F)), drawn(0)[1]
    for other in (a, drawn(1)):
        found = of(a, other)
        assert found["correlation"] == found["jaccard"] == 0
        assert found["in_function"] == found["in_function_energy"] == 0
        assert found["direction_energy"] <= 0.5  # of the other one alone


def test_a_dictionary_that_is_half_dead_comes_back_by_half():
    f, directions = drawn(0)
    f[:, F // 2 :] = 0.0
    found = of((f, directions), (f.copy(), directions))
    assert found["in_function"] == found["near_dead"] == 0.5
    assert found["in_function_selections"] == found["in_function_energy"] == 1


def test_among_candidates_the_correlations_are_nearly_those_of_the_exact_matching():
    n, rng = 800, np.random.default_rng(0)
    f, g = drawn(0, 300, n, density=0.05)[0], drawn(1, 300, n, density=0.05)[0]
    order = rng.permutation(n)
    g[:, order[: n // 2]] = f[:, : n // 2] * (rng.random((300, n // 2)) < 0.9)
    f[:, n - 100 :] = 0.0
    a = module._centred(csr_matrix(f))
    b = module._centred(csr_matrix(g), sign=-1.0)
    exact, fast = (matching(a, b, signed=True, exact_up_to=up_to) for up_to in (n, 0))
    assert sorted(fast[0]) == list(range(n))
    assert exact[1].mean() - 1e-3 <= fast[1].mean() <= exact[1].mean() + 1e-9
    assert exact[1].mean() > 0.4
