"""Noise and selection as compiled: against torch's topk, and in distribution."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch as t
from dense_reference import compiled_noise
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recorded_ops import RecordedOps

from dictionary_learning_ext.config.sae import NoiseOn
from dictionary_learning_ext.trainers.kernels import compiled, row_kernels
from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.select import draw_batch, top_k
from dictionary_learning_ext.trainers.step import Draw

dtypes = pytest.mark.parametrize("dtype", [t.float32, t.float64], ids=["compiled", "torch"])
every_noise = pytest.mark.parametrize("noise_on", get_args(NoiseOn))
SPECIAL = st.sampled_from(
    [0.0, -0.0, 1.0, 1.0 + 2**-20, -1.0, float("inf"), -float("inf"), 1e-40, -1e-40]
)


def draw(
    mu_BF,
    k,
    noise_on="both",
    scale=0.0,
    std=None,
    generator=None,
    **of_means,
):
    """The code of rows with these means and this standard deviation. Default: 1."""
    settings = {"rectify": False, "matmul_dtype": t.float32} | of_means
    width = mu_BF.shape[1]
    means = BatchMeans(mu_BF, t.eye(width), t.zeros(width), **settings)
    std = t.ones(()) if std is None else std
    generator = generator or t.Generator().manual_seed(0)
    return draw_batch(means, std, Draw(k, noise_on, scale, generator))


def assert_same_code(one, other):
    for name in ("indices_BK", "values_BK", "mu_BK", "smallest", "fired_F"):
        assert t.equal(getattr(one, name), getattr(other, name)), name


def assert_k_largest(values_BF, k, got):
    """K different features of each row with the largest values."""
    values_BK, indices_BK = got
    assert t.equal(values_BF.gather(1, indices_BK), values_BK)
    expected_BK = values_BF.topk(k).values
    assert t.equal(values_BK.sort(descending=True).values, expected_BK)
    assert all(len(set(row)) == k for row in indices_BK.tolist())


# --- the K largest


@dtypes
@pytest.mark.parametrize("k", [1, 5, 49, 50])
def test_top_k_is_torchs(k, dtype):
    values_BF = t.randn(30, 50, generator=t.Generator().manual_seed(k), dtype=dtype)
    with RecordedOps() as ops:
        got = top_k(values_BF, k)
    assert ops.counts["topk"] == (0 if dtype == t.float32 else 1)
    assert_k_largest(values_BF, k, got)


@pytest.mark.parametrize("k", [1, 16, 64, 256, 512, 1023, 1024])
@pytest.mark.parametrize("spread", [1e-30, 1.0, 1e30])
def test_top_k_is_torchs_at_real_sizes(k, spread):
    """Rows whose scales differ, so that the guess from the row before is of little use."""
    generator = t.Generator().manual_seed(k)
    values_BF = t.randn(60, 1024, generator=generator) * spread
    values_BF *= 10 ** t.randint(-4, 5, (60, 1), generator=generator)
    assert_k_largest(values_BF, k, top_k(values_BF, k))


@pytest.mark.parametrize("factor", [0.01, 0.2, 5.0, 100.0])
def test_a_guess_from_a_row_of_another_size_leads_to_the_threshold(factor, monkeypatch):
    """Until the guess has passed it, steps that pass no number are no sign of ties, whose search takes longer."""
    monkeypatch.setattr(row_kernels, "_among_ties", lambda *_: pytest.fail("took it for ties"))
    row_F = t.randn(512, generator=t.Generator().manual_seed(0)).numpy() ** 3
    largest = np.sort(row_F)[::-1]
    guess = np.float32(factor) * largest[15]
    threshold, n_equal = row_kernels._threshold.py_func(row_F, 16, guess, np.empty_like(row_F))
    assert largest[15] > threshold >= largest[16]
    assert n_equal == 0


@dtypes
@given(
    st.lists(
        st.lists(st.one_of(SPECIAL, st.floats(-3, 3, width=32)), min_size=12, max_size=12),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_top_k_is_torchs_with_ties_zeros_and_infinities(dtype, rows, k):
    values_BF = t.tensor(rows, dtype=dtype)
    assert_k_largest(values_BF, k, top_k(values_BF, k))


@dtypes
def test_nan_counts_as_the_largest(dtype):
    values_BF = t.arange(40, dtype=dtype).repeat(3, 1)
    values_BF[1, 7] = t.nan
    values_BF[2, :3] = -t.nan
    values_BK, indices_BK = top_k(values_BF, 2)
    assert set(indices_BK[0].tolist()) == {38, 39}
    assert set(indices_BK[1].tolist()) == {7, 39}
    assert set(indices_BK[2].tolist()) < {0, 1, 2}
    assert values_BK.isnan().sum(1).tolist() == [0, 1, 2]


# --- what the mean alone selects


@every_noise
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(-3, 3), st.booleans())
@example(seed=999_997, k=7, shift=-2.0, rectify=False)  # a mean of 0 above a negative k-th
@settings(max_examples=30, deadline=None)
def test_fired_and_the_smallest_are_the_means_with_noise_or_without(
    noise_on, seed, k, shift, rectify
):
    """A mean of 0 fires only in a code without noise, as upstream counts a ReLU's."""
    mu_BF = t.randn(7, 12, generator=t.Generator().manual_seed(seed)) + shift
    mu_BF[0, ::2] = 0.0
    without, with_noise = (draw(mu_BF, k, noise_on, scale=s, rectify=rectify) for s in (0.0, 1.0))
    mu_BF = mu_BF.relu() if rectify else mu_BF
    largest_BK, indices_BK = mu_BF.topk(k)
    fired_F = t.zeros_like(mu_BF).scatter(1, indices_BK, largest_BK).ne(0).any(0)
    smallest_B = largest_BK.masked_fill(largest_BK <= 0, t.inf).amin(1)
    assert t.equal(with_noise.fired_F, fired_F)
    assert not (fired_F & ~without.fired_F).any()
    assert (mu_BF == 0).any(0)[without.fired_F & ~fired_F].all()
    assert t.equal(with_noise.smallest, smallest_B)
    assert t.equal(without.smallest, smallest_B)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_mean_of_zero_fires_in_a_code_without_noise_only(scale):
    mu_BF = t.tensor([[0.0, -1.0, 2.0, -3.0]]).repeat(2, 1)
    fired_F = draw(mu_BF, 2, "values", scale=scale).fired_F
    assert fired_F.tolist() == [scale == 0, False, True, False]


def test_zeros_of_a_relu_are_chosen_as_upstreams_topk_does():
    mu_BF = t.randn(20, 60, generator=t.Generator().manual_seed(0)) - 1
    expected = mu_BF.relu().topk(30, sorted=False).indices
    assert (mu_BF > 0).sum(1).max() < 30
    assert t.equal(top_k(mu_BF.relu(), 30, rectified=True)[1], expected)
    drawn = draw(mu_BF, 30, rectify=True)
    assert t.equal(drawn.indices_BK, expected)
    assert drawn.fired_F.nonzero().flatten().tolist() == expected.unique().tolist()


def test_a_row_with_nan_does_not_spoil_the_others():
    mu_BF = t.randn(6, 30, generator=t.Generator().manual_seed(0))
    whole = draw(mu_BF, 4)
    mu_BF[2, 5] = t.nan  # and so all of the row, behind the matmul
    drawn = draw(mu_BF, 4)
    assert len(set(drawn.indices_BK[2].tolist())) == 4
    assert drawn.values_BK[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    for name in ("indices_BK", "values_BK", "smallest"):
        ours, same = getattr(drawn, name)[others], getattr(whole, name)[others]
        assert t.equal(ours.sort(-1).values, same.sort(-1).values), name
    with_noise = draw(mu_BF, 4, scale=0.1)
    assert t.equal(with_noise.smallest[others], whole.smallest[others])


# --- the code that is drawn


@pytest.mark.parametrize("matmul_dtype", [t.float32, t.bfloat16])
@every_noise
def test_a_code_is_the_k_largest_of_the_sample_or_of_the_mean(noise_on, matmul_dtype):
    mu_BF = t.randn(50, 64, generator=t.Generator().manual_seed(1)).bfloat16().float()
    noise_BF = compiled_noise(50, 64, t.Generator().manual_seed(0))
    drawn = draw(mu_BF, 8, noise_on, scale=0.5, matmul_dtype=matmul_dtype)
    z_BF = mu_BF + 0.5 * noise_BF
    source_BF = mu_BF if noise_on == "values" else z_BF
    kept_BK = source_BF.gather(1, drawn.indices_BK)  # of equal ones, torch may keep others
    t.testing.assert_close(kept_BK.sort(descending=True).values, source_BF.topk(8).values)
    assert all(len(set(row)) == 8 for row in drawn.indices_BK.tolist())
    assert t.equal(drawn.mu_BK, mu_BF.gather(1, drawn.indices_BK))
    moved_BK = drawn.values_BK - drawn.mu_BK
    if noise_on == "selection":
        assert (moved_BK == 0).all()
    elif noise_on == "both":
        assert t.allclose(moved_BK, 0.5 * noise_BF.gather(1, drawn.indices_BK), atol=1e-6)
    else:
        assert moved_BK.std().item() == pytest.approx(0.5, rel=0.1)
        assert abs(moved_BK.mean().item()) < 4 * 0.5 / moved_BK.numel() ** 0.5


@pytest.mark.parametrize("noise_on", ["both", "values"])
def test_the_noise_has_the_standard_deviation_that_is_given(noise_on):
    drawn = draw(t.zeros(400, 32), 32, noise_on, scale=0.5, std=t.tensor(2.0))
    assert drawn.values_BK.std().item() == pytest.approx(1.0, rel=0.05)


def test_bf16_products_are_read_exactly():
    mu_BF = t.randn(40, 64, generator=t.Generator().manual_seed(0)).bfloat16().float()
    narrow = draw(mu_BF, 9, scale=0.3, matmul_dtype=t.bfloat16)
    wide = draw(mu_BF, 9, scale=0.3)
    assert_same_code(narrow, wide)


def test_results_do_not_depend_on_threads_or_blocks(monkeypatch):
    mu_BF = t.randn(41, 30, generator=t.Generator().manual_seed(0))
    before, results = t.get_num_threads(), []
    try:
        for n_threads, rows in itertools.product((1, 2, 3), (41, 4, 1)):
            t.set_num_threads(n_threads)
            monkeypatch.setattr(compiled, "BLOCK_ROWS", rows)
            results.append(draw(mu_BF, 5, scale=1.0))
    finally:
        t.set_num_threads(before)
    for other in results[1:]:
        assert_same_code(other, results[0])


# --- the noise


def test_noise_is_normal_noise_and_independent():
    """Against the normal's own distribution function, moments and correlations."""
    noise = compiled_noise(1000, 2000, t.Generator().manual_seed(0)).double()
    flat = noise.flatten()
    points = t.linspace(-4, 4, 161, dtype=t.float64)
    below = t.searchsorted(flat.sort().values, points) / len(flat)
    assert (below - t.special.ndtr(points)).abs().max() < 1.95 / len(flat) ** 0.5  # KS, p = 0.001
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = 4 * (spread / len(flat)) ** 0.5
        assert flat.pow(power).mean().item() == pytest.approx(moment, abs=error), power
    for shift in (1, 2, 4, 2000):  # neighbours, and the same feature of the next row
        together = (flat[shift:] * flat[:-shift]).mean()
        assert abs(together) < 4 / len(flat) ** 0.5, shift
    assert 4.3 < flat.abs().max() < 4.5


def test_noise_comes_from_the_generator():
    mu_BF = t.zeros(3, 5)
    one, same, other = (
        draw(mu_BF, 5, scale=1.0, generator=t.Generator().manual_seed(seed)).values_BK
        for seed in (0, 0, 1)
    )
    assert t.equal(one, same)
    assert not t.equal(one, other)
    generator = t.Generator().manual_seed(0)
    noises = [compiled_noise(3, 5, generator) for _ in range(2)]
    assert not t.equal(*noises)


@every_noise
def test_noise_of_scale_0_draws_nothing_and_gives_the_means_code(noise_on):
    mu_BF = t.randn(6, 20, generator=t.Generator().manual_seed(0))
    generator = t.Generator().manual_seed(1)
    before = generator.get_state()
    drawn = draw(mu_BF, 3, noise_on, std=t.tensor(2.0), generator=generator)
    assert t.equal(generator.get_state(), before)
    assert_k_largest(mu_BF, 3, (drawn.values_BK, drawn.indices_BK))
