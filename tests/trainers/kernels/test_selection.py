"""Noise and selection: against torch's own, in distribution, and on any number of threads."""

import os
import signal
from typing import get_args

import pytest
import torch as t
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_ops import RecordedOps

from dictionary_learning_ext.config.options import NoiseOn
from dictionary_learning_ext.trainers.kernels.row_blocks import map_row_blocks
from dictionary_learning_ext.trainers.kernels.selection import (
    MeanSelection,
    draw_code,
    normal_noise,
    top_k,
)
from dictionary_learning_ext.trainers.kernels.step_form import StepForm

BY_NUMPY, BY_TORCH = StepForm(partitions_by_numpy=True), StepForm(partitions_by_numpy=False)
both_ways = pytest.mark.parametrize("form", [BY_NUMPY, BY_TORCH], ids=["numpy", "torch"])


@both_ways
@pytest.mark.parametrize("dtype", [t.float32, t.float64])
@pytest.mark.parametrize("k", [1, 5, 49, 50])
def test_top_k_is_torchs(k, dtype, form):
    values_BF = t.randn(30, 50, generator=t.Generator().manual_seed(k), dtype=dtype)
    with RecordedOps() as ops:
        values_BK, indices_BK = top_k(values_BF, k, form)
    is_by_numpy = form is BY_NUMPY and k < 50  # all of a row need no partition
    assert ops.counts["topk"] == (0 if is_by_numpy else 1)
    assert t.equal(values_BF.gather(1, indices_BK), values_BK)
    assert t.equal(values_BK.sort(descending=True).values, values_BF.topk(k).values)


@both_ways
def test_top_k_takes_exactly_k_of_equal_values(form):
    values_BK, indices_BK = top_k(t.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2, form)
    assert values_BK.tolist() == [[2, 2], [0, 0]]
    assert all(len(set(row)) == 2 for row in indices_BK.tolist())


@both_ways
@pytest.mark.parametrize("noise_on", get_args(NoiseOn))
def test_noise_of_scale_0_draws_nothing_and_gives_the_means_code(noise_on, form):
    generator = t.Generator().manual_seed(0)
    mu_BF, before = t.randn(6, 20, generator=generator), generator.get_state()
    indices_BK, values_BK = draw_code(mu_BF, t.tensor(2.0), 3, noise_on, 0.0, generator, form)
    assert t.equal(generator.get_state(), before)
    expected = mu_BF.topk(3)
    assert t.equal(values_BK.sort(descending=True).values, expected.values)
    assert t.equal(mu_BF.gather(1, indices_BK), values_BK)


@both_ways
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(-3, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_fired_is_the_same_from_means_and_from_their_code(form, seed, k, shift, rectify):
    """But for a ReLU's zeros, which fire in a code that is padded with them."""
    mu_BF = t.randn(7, 12, generator=t.Generator().manual_seed(seed)) + shift
    mu_BF = mu_BF.relu() if rectify else mu_BF
    mu_BK, indices_BK = mu_BF.topk(k)
    expected = MeanSelection.of_code(indices_BK, mu_BK, 12)
    with RecordedOps() as ops:
        got = MeanSelection.of_means(mu_BF, k, form)
    assert ops.counts["topk"] == (0 if form is BY_NUMPY else 1)
    selected_BF = t.zeros_like(mu_BF).scatter(1, indices_BK, mu_BK)
    assert t.equal(got.fired_F, (selected_BF != 0).any(0))
    assert t.equal(got.smallest_B, expected.smallest_B)
    assert rectify or t.equal(got.fired_F, expected.fired_F)


@both_ways
def test_zeros_of_a_relu_are_chosen_as_upstreams_topk_does(form):
    mu_BF = (t.randn(20, 60, generator=t.Generator().manual_seed(0)) - 1).relu()
    expected, got = mu_BF.topk(30, sorted=False).indices, top_k(mu_BF, 30, form)[1]
    assert (mu_BF > 0).sum(1).max() < 30
    assert t.equal(got, expected)


def test_noise_is_normal_noise_and_independent():
    """Against the normal's own distribution function, moments and correlations."""
    noise = normal_noise(t.empty(1000, 2000), t.tensor(1.0), t.Generator().manual_seed(0)).double()
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
    def draw(seed):
        return normal_noise(t.empty(3, 5), t.tensor(1.0), t.Generator().manual_seed(seed))

    assert t.equal(draw(0), draw(0))
    assert not t.equal(draw(0), draw(1))
    generator = t.Generator().manual_seed(0)
    assert not t.equal(*(normal_noise(t.empty(3, 5), t.tensor(1.0), generator) for _ in range(2)))


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_blocks_do_not_depend_on_the_number_of_threads(n_threads):
    def draws():
        generator = t.Generator().manual_seed(0)
        return map_row_blocks(
            lambda rows, own: (rows, normal_noise(t.empty(4, 10), t.tensor(1.0), own)),
            22,
            10,
            generator,
            block=40,  # 4 rows of 10
        )

    expected, before = draws(), t.get_num_threads()
    t.set_num_threads(n_threads)
    try:
        got = draws()
        assert t.get_num_threads() == n_threads
    finally:
        t.set_num_threads(before)
    assert [rows.indices(22)[:2] for rows, _ in got] == [
        (0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 22),
    ]  # fmt: skip
    for (_, one), (_, other) in zip(got, expected, strict=True):
        assert t.equal(one, other)
    assert not t.equal(got[0][1], got[1][1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_child_has_threads_of_its_own():
    def draw(_=None):
        map_row_blocks(lambda rows, own: None, 6, 10, t.Generator(), block=10)

    draw()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        draw()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_in_a_block_is_raised():
    def fail(rows, generator):
        if rows.start == 3:
            raise ArithmeticError("row 3")

    with pytest.raises(ArithmeticError, match="row 3"):
        map_row_blocks(fail, 6, 10, None, block=10)
