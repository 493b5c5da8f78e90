"""Matching against brute force, the null against a Monte Carlo, and what comes back of planted features."""

from itertools import permutations

import numpy as np
import pytest
import torch as t
from scipy.optimize import linear_sum_assignment
from sklearn.preprocessing import normalize

from dictionary_learning_ext.errors import ReproducibilityError
from dictionary_learning_ext.features import matching as module
from dictionary_learning_ext.features.matching import matching, within
from dictionary_learning_ext.features.reproducibility import reproducibility

D, F = 8, 6


@pytest.fixture(autouse=True)
def nulls_as_users_have_them(monkeypatch):
    monkeypatch.setattr(module, "NULL_ERROR", 0.001)


def directions(seed, n=F, d=D):
    return normalize(np.random.default_rng(seed).normal(size=(n, d)))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_best_of_all(signed, seed):
    a, b = directions(seed), directions(seed + 100)
    values = a @ b.T if signed else np.abs(a @ b.T)
    best = max(values[np.arange(F), list(order)].mean() for order in permutations(range(F)))
    matched, match = matching(a, b, signed=signed)
    assert match.mean() == pytest.approx(best)
    assert sorted(matched) == list(range(F))
    assert match == pytest.approx(values[np.arange(F), matched])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("exact_up_to", [100, 0])
def test_of_two_sizes_each_feature_of_the_smaller_has_a_match(exact_up_to, signed):
    a, b = directions(0, 60), directions(1, 90)
    values = a @ b.T if signed else np.abs(a @ b.T)
    best = values[linear_sum_assignment(values, maximize=True)].mean()
    matched, match = matching(a, b, signed=signed, exact_up_to=exact_up_to)
    assert len(set(matched)) == 60
    assert match == pytest.approx(values[np.arange(60), matched])
    assert match.mean() == pytest.approx(best)
    back, back_match = matching(b, a, signed=signed, exact_up_to=exact_up_to)
    assert (back[matched] == np.arange(60)).all()
    assert back_match[matched] == pytest.approx(match)
    rest = np.setdiff1d(np.arange(90), matched)
    assert (back[rest] == -1).all()
    assert not back_match[rest].any()


@pytest.mark.parametrize("signed", [True, False])
def test_among_candidates_it_is_nearly_the_exact_one(signed):
    """Half of the features return, under another number and partly with another sign."""
    n, d, rng = 1500, 32, np.random.default_rng(0)
    a = directions(0, n, d)
    b = normalize(
        np.where(rng.random((n, 1)) < 0.5, a + 0.1 * rng.normal(size=a.shape), directions(1, n, d))
    )
    b *= np.where(rng.random((n, 1)) < 0.3, -1, 1)
    b = b[rng.permutation(n)]
    exact = matching(a, b, signed=signed)
    fast = matching(a, b, signed=signed, exact_up_to=0)
    assert sorted(fast[0]) == list(range(n))
    assert exact[1].mean() - 1e-4 <= fast[1].mean() <= exact[1].mean() + 1e-9


def test_the_mean_signed_cosine_is_of_its_own_matching():
    a, b = directions(0, 50), directions(1, 50)
    found = reproducibility({"a": t.tensor(a), "b": t.tensor(b)}).pairs["a", "b"]
    rows, columns = linear_sum_assignment(a @ b.T, maximize=True)
    assert found.agreement == pytest.approx((a @ b.T)[rows, columns].mean())
    assert found.pw_mcc >= found.agreement


@pytest.mark.parametrize("at_once", [40, 7])
def test_within_is_the_nearest_other_direction_whatever_the_blocks_of_rows(at_once, monkeypatch):
    a, b = directions(0, 40), directions(1, 40)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", at_once)
    cosines = a @ a.T - 2 * np.eye(40)
    assert within(a) == pytest.approx(cosines.max(axis=1).mean())
    exact = matching(a, b, signed=False)[1].mean()
    assert matching(a, b, signed=False, exact_up_to=0)[1].mean() == pytest.approx(exact)


def test_the_null_is_that_of_random_directions_of_their_covariance():
    """Two dictionaries of no relation, in a space that is long in two dimensions."""
    rng, scale = np.random.default_rng(0), np.array([4.0, 2.0] + [0.5] * 6)

    def drawn():
        return normalize(rng.normal(size=(400, D)) * scale)

    a, b = drawn(), drawn()
    found = reproducibility({"a": t.tensor(a), "b": t.tensor(b)}).pairs["a", "b"]
    nulls = [matching(drawn(), drawn(), signed=False)[1].mean() for _ in range(20)]
    assert found.null == pytest.approx(np.mean(nulls), abs=5 * np.std(nulls) + 0.005)
    assert found.pw_mcc == pytest.approx(found.null, abs=0.02), "nothing returns"
    isotropic = matching(directions(0, 400), directions(1, 400), signed=False)[1].mean()
    assert found.null > isotropic + 0.02, "the covariance counts"


def test_the_null_is_averaged_until_its_standard_error_is_below_a_thousandth():
    """A single draw of this size has a standard deviation of 0.01."""
    pair = {name: t.tensor(directions(seed, 64, 16)) for seed, name in enumerate("ab")}
    found = [reproducibility(pair, seed=seed).pair for seed in range(12)]
    assert all(0.0005 < each.measures["null_error"] < 0.001 for each in found)
    assert 0 < np.std([each.null for each in found]) < 0.0015
    assert len({each.measures["null_draws"] for each in found}) > 1
    assert reproducibility(pair, seed=3).pair.null == found[3].null
    with_another = reproducibility({"c": t.tensor(directions(2, 64, 16))} | pair, seed=3)
    assert with_another.pairs["a", "b"].null == found[3].null
    lines = {name: t.tensor(directions(seed, 64, 1)) for seed, name in enumerate("ab")}
    alike = reproducibility(lines).pair.measures
    assert (alike["null"], alike["null_error"], alike["null_draws"]) == (1, 0, 1)


def test_planted_features_return_and_others_do_not():
    """20 of 60 features in 64 dimensions come back in both others, and 10 in one of them."""
    a, b, c = (np.array(directions(seed, 60, 64)) for seed in range(3))
    order = np.random.default_rng(3).permutation(60)
    b[order[:30]] = -a[:30]
    c[:20] = 3 * a[:20]
    found = reproducibility({name: t.tensor(each) for name, each in (("a", a), ("b", b), ("c", c))})
    assert found.scores("a").returns_F.tolist()[:30] == [2] * 20 + [1] * 10
    assert not found.scores("a").returns_F[30:].any()
    assert found.scores("a").match_F[:20] == pytest.approx(1)
    assert (found.scores("a").match_F[20:30] > 0.5).all()
    for least in (0.7, 0.9):
        assert found.as_direction("a", least) == pytest.approx((30 + 20) / 120)
        assert found.as_direction("c", least) == pytest.approx(40 / 120)
    assert found.pairs["a", "b"].cosines[1][order[:30]] == pytest.approx(1)
    assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    scores = found.scores("a")
    random = [found.pairs[names].random_cosine_f.mean() for names in (("a", "b"), ("a", "c"))]
    assert (scores.of, scores.random) == (2, pytest.approx(np.mean(random)))
    assert found.random_share == 0


def test_of_two_sizes_what_has_no_match_does_not_return():
    """20 of 30 features are among 90, and the null has the two sizes."""
    a, b = (np.array(directions(seed, n, 64)) for seed, n in ((0, 30), (1, 90)))
    order = np.random.default_rng(3).permutation(90)
    b[order[:20]] = -a[:20]
    found = reproducibility({"a": t.tensor(a), "b": t.tensor(b)})
    pair = found.pair
    for least in (0.7, 0.9):
        assert found.as_direction("a", least) == pytest.approx(20 / 30)
        assert found.as_direction("b", least) == pytest.approx(20 / 90)
    assert pair.measures["direction_0.7"] == pytest.approx(20 / 30)
    rows, columns = linear_sum_assignment(np.abs(a @ b.T), maximize=True)
    assert pair.pw_mcc == pytest.approx(np.abs(a @ b.T)[rows, columns].mean())
    assert pair.cosines[1][order[:20]] == pytest.approx(1)
    assert (pair.cosines[1] > 0).sum() == 30
    assert found.scores("b").returns_F.sum() == 20
    swapped = reproducibility({"b": t.tensor(b), "a": t.tensor(a)})
    for name in ("pw_mcc", "null", "direction_0.7"):
        assert swapped.pair.measures[name] == pytest.approx(pair.measures[name], abs=0.01)
    assert swapped.pair.agreement == pytest.approx(pair.agreement)
    assert swapped.as_direction("b") == pytest.approx(found.as_direction("b"))
    unrelated = reproducibility(
        {"a": t.tensor(directions(5, 30, 64)), "b": t.tensor(directions(6, 90, 64))}
    )
    assert unrelated.pair.pw_mcc == pytest.approx(unrelated.pair.null, abs=0.03)


def turned(unit_FD, cosine, seed):
    """Directions with this cosine to the given ones."""
    other = np.random.default_rng(seed).normal(size=unit_FD.shape)
    other = normalize(other - (other * unit_FD).sum(1, keepdims=True) * unit_FD)
    return cosine * unit_FD + np.sqrt(1 - cosine**2) * other


def test_a_match_between_the_limits_returns_at_one_of_them():
    a, b, c = (np.array(directions(seed, 30, 256)) for seed in range(3))
    b[:10], b[10:20] = turned(a[:10], 0.95, 5), turned(a[10:20], 0.8, 6)
    c[:10] = turned(a[:10], 0.75, 7)
    found = reproducibility({n: t.tensor(x) for n, x in (("a", a), ("b", b), ("c", c))})
    assert found.scores("a").returns_F[:20].tolist() == [2] * 10 + [1] * 10
    assert found.scores("a").match_F[:10] == pytest.approx((0.95 + 0.75) / 2, abs=1e-6)
    assert found.as_direction("a") == pytest.approx((20 + 10) / 60)
    assert found.as_direction("a", 0.9) == pytest.approx(10 / 60)


def test_saes_that_can_not_be_compared_are_named():
    for widths, named in (({"a": 4}, "^a"), ({"a": 4, "b": 5}, "b .*5.* a .*4")):
        with pytest.raises(ReproducibilityError, match=named):
            reproducibility({name: t.ones(3, width) for name, width in widths.items()})
