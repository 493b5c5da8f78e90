"""Selection by magnitude, compiled and by torch: against torch's topk of the absolute values."""

from typing import get_args

import pytest
import torch as t
from dense_reference import compiled_noise
from hypothesis import given, settings
from hypothesis import strategies as st

from dictionary_learning_ext.config.sae import NoiseOn
from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.select import draw_batch, top_k

ROWS = 128
dtypes = pytest.mark.parametrize("dtype", [t.float32, t.float64], ids=["compiled", "torch"])
SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0 + 2**-20, float("inf"), -float("inf"), -1e-40])


def draw(mu_BF, k, noise_on="both", scale=0.0, matmul_dtype=None, select_by="magnitude"):
    """The code of rows with these means and a standard deviation of 1."""
    width = mu_BF.shape[1]
    means = BatchMeans(
        mu_BF,
        t.eye(width, dtype=mu_BF.dtype),
        mu_BF.new_zeros(width),
        rectify=False,
        matmul_dtype=matmul_dtype or mu_BF.dtype,
        keep=False,
        means_at_once=2**24,
    )
    one, generator = t.ones((), dtype=mu_BF.dtype), t.Generator().manual_seed(0)
    return draw_batch(means, one, None, k, noise_on, scale, generator, ROWS, select_by=select_by)


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
def test_the_k_of_largest_magnitude_keep_their_signs(dtype, rows, k):
    values_BF = t.tensor(rows, dtype=dtype)
    values_BK, indices_BK = top_k(values_BF, k, ROWS, select_by="magnitude")
    assert t.equal(values_BF.gather(1, indices_BK), values_BK)
    assert t.equal(values_BK.abs().sort(descending=True).values, values_BF.abs().topk(k).values)
    assert all(len(set(row)) == k for row in indices_BK.tolist())


@pytest.mark.parametrize("k", [1, 16, 64, 512, 1024])
def test_at_real_sizes_the_compiled_form_takes_torchs(k):
    generator = t.Generator().manual_seed(k)
    values_BF = t.randn(60, 1024, generator=generator)
    values_BF *= 10.0 ** t.randint(-4, 5, (60, 1), generator=generator)
    _, indices_BK = top_k(values_BF, k, ROWS, select_by="magnitude")
    expected_BK = values_BF.abs().topk(k).indices
    assert t.equal(indices_BK.sort().values, expected_BK.sort().values)


@dtypes
def test_nan_counts_as_the_largest(dtype):
    values_BF = t.arange(0, -40, -1, dtype=dtype).repeat(3, 1)
    values_BF[1, 7] = t.nan
    values_BF[2, :3] = -t.nan
    values_BK, indices_BK = top_k(values_BF, 2, ROWS, select_by="magnitude")
    assert set(indices_BK[0].tolist()) == {38, 39}
    assert set(indices_BK[1].tolist()) == {7, 39}
    assert set(indices_BK[2].tolist()) < {0, 1, 2}
    assert values_BK.isnan().sum(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("noise_on", get_args(NoiseOn))
@pytest.mark.parametrize("matmul_dtype", [t.float32, t.bfloat16])
def test_a_code_is_of_the_sample_or_of_the_mean(noise_on, matmul_dtype):
    mu_BF = t.randn(50, 64, generator=t.Generator().manual_seed(1)).bfloat16().float()
    z_BF = mu_BF + 0.5 * compiled_noise(50, 64, t.Generator().manual_seed(0))
    drawn = draw(mu_BF, 8, noise_on, scale=0.5, matmul_dtype=matmul_dtype)
    magnitude_BF = (mu_BF if noise_on == "values" else z_BF).abs()
    kept_BK = magnitude_BF.gather(1, drawn.indices_BK)  # of equal ones, torch may keep others
    t.testing.assert_close(kept_BK.sort(descending=True).values, magnitude_BF.topk(8).values)
    assert all(len(set(row)) == 8 for row in drawn.indices_BK.tolist())
    assert t.equal(drawn.mu_BK, mu_BF.gather(1, drawn.indices_BK))
    assert (drawn.mu_BK < 0).any()
    if noise_on == "values":  # the noise of the same draw, by value: of as many numbers
        assert (drawn.values_BK - drawn.mu_BK).std().item() == pytest.approx(0.5, rel=0.1)
    else:
        source_BF = mu_BF if noise_on == "selection" else z_BF
        assert t.allclose(drawn.values_BK, source_BF.gather(1, drawn.indices_BK), atol=1e-6)


@dtypes
@pytest.mark.parametrize("noise_on", get_args(NoiseOn))
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_fired_and_the_smallest_are_the_means_magnitudes(noise_on, dtype, seed, k, shift):
    mu_BF = (t.randn(7, 12, generator=t.Generator().manual_seed(seed)) + shift).to(dtype)
    mu_BF[0, ::2] = 0.0
    magnitude_BK, indices_BK = mu_BF.abs().topk(k)
    fired_F = t.zeros_like(mu_BF).scatter(1, indices_BK, magnitude_BK).ne(0).any(0)
    smallest_B = magnitude_BK.masked_fill(magnitude_BK == 0, t.inf).amin(1)
    for scale in (0.0, 1.0):
        drawn = draw(mu_BF, k, noise_on, scale)
        assert t.equal(drawn.smallest_B, smallest_B)
        if scale:
            assert t.equal(drawn.fired_F, fired_F)
        else:  # then zeros fire as well, as upstream counts them
            assert not (fired_F & ~drawn.fired_F).any()


@dtypes
@pytest.mark.parametrize("noise_on", get_args(NoiseOn))
def test_of_means_that_are_all_positive_it_is_the_selection_by_value(noise_on, dtype):
    mu_BF = 9 + t.randn(20, 30, generator=t.Generator().manual_seed(3)).to(dtype)
    one, other = (draw(mu_BF, 5, noise_on, 0.5, select_by=by) for by in ("magnitude", "value"))
    for name in one._fields[:-1]:
        assert t.equal(getattr(one, name), getattr(other, name)), name
