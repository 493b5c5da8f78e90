"""The KL against torch.distributions and Monte Carlo; the schedules by their definitions."""

import math
from typing import get_args

import pytest
import torch as t
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext.config.sae import KLSchedule
from dictionary_learning_ext.trainers.posterior import (
    GaussianPosterior,
    gaussian_kl,
    kl_scale,
    noise_scale,
    noise_to_signal,
)
from dictionary_learning_ext.trainers.step import Draw, draw_code


@given(st.floats(-5, 5), st.floats(-6, 3), st.floats(0.1, 5))
def test_kl_is_torchs(mu, log_var, prior_std):
    tensors = t.tensor([mu, log_var, prior_std], dtype=t.float64)
    posterior = Normal(tensors[0], (tensors[1] / 2).exp())
    expected = kl_divergence(posterior, Normal(t.zeros((), dtype=t.float64), tensors[2]))
    assert t.allclose(gaussian_kl(*tensors), expected, rtol=1e-10, atol=1e-12)


def test_kl_is_the_mean_of_log_q_minus_log_p():
    generator = t.Generator().manual_seed(0)
    mu, log_var, prior_std = t.tensor(0.8), t.tensor(-1.0), t.tensor(1.7)
    std = (log_var / 2).exp()
    z = mu + std * t.randn(400_000, generator=generator)
    ratio = Normal(mu, std).log_prob(z) - Normal(0.0, prior_std).log_prob(z)
    error = 5 * ratio.std() / math.sqrt(len(z))
    assert abs(ratio.mean() - gaussian_kl(mu, log_var, prior_std)) < error < 0.01


def test_schedules():
    def values(schedule, steps):
        return [kl_scale(step, schedule, 10) for step in steps]

    assert values("constant", [0, 5]) == [1, 1]
    assert values("linear", [0, 5, 10, 99]) == [0, 0.5, 1, 1]
    assert values("cosine", [0, 5, 10, 99]) == pytest.approx([0, 0.5, 1, 1])
    assert kl_scale(2, "cosine", 10) == pytest.approx((1 - math.cos(math.pi / 5)) / 2)
    for schedule in get_args(KLSchedule):  # without warm-up beta is full from the first step
        assert [kl_scale(step, schedule, 0) for step in (0, 1, 99)] == [1] * 3


def test_noise_falls_linearly_to_zero_or_stays():
    assert [noise_scale(step, 10) for step in (0, 5, 10, 50)] == [1, 0.5, 0, 0]
    assert noise_scale(10**6, None) == 1


def test_noise_to_signal_is_the_noise_energy_of_a_unit_norm_decoder():
    """Measured: sampling k independent features through unit-norm columns."""
    generator = t.Generator().manual_seed(0)
    columns = t.nn.functional.normalize(t.randn(16, 40, generator=generator), dim=0)
    mu, sigma, k = t.zeros(20_000, 40), 0.3, 5
    code = draw_code(mu, t.tensor(sigma), Draw(k, "values", 1.0, generator))
    noise = (code.selection.spread(code.values, 40) @ columns.T).square().sum(1).mean()
    assert noise.item() / 7.0 == pytest.approx(noise_to_signal(k, sigma**2, 7.0), rel=0.03)


@pytest.mark.parametrize("is_learned", [True, False], ids=["learned", "fixed"])
def test_a_gaussian_posterior_is_torchs_normal(is_learned):
    generator = t.Generator().manual_seed(0)
    mu = t.randn(3, 4, 5, generator=generator, dtype=t.float64)
    log_var = t.randn(3, 4, 5, generator=generator, dtype=t.float64)
    log_var, prior_std = log_var if is_learned else log_var[0, 0, 0], t.tensor(1.7).double()
    posterior = GaussianPosterior(mu, log_var, prior_std)
    normal = Normal(mu, (log_var / 2).exp())
    expected = kl_divergence(normal, Normal(t.zeros_like(mu), prior_std))
    assert t.allclose(posterior.kl, expected, rtol=1e-12)
    assert posterior.std.shape == posterior.noise_variance.shape == log_var.shape
    assert t.allclose(posterior.std.expand_as(mu), normal.stddev)
    assert t.allclose(posterior.noise_variance.expand_as(mu), normal.variance)


def test_a_point_is_the_limit_of_a_narrow_gaussian_without_its_constant():
    mu, prior_std = t.linspace(-2, 2, 9, dtype=t.float64), t.tensor(1.7).double()
    point = GaussianPosterior(mu, t.tensor(-t.inf).double(), prior_std)
    assert point.std == point.noise_variance == 0
    assert point.std.dtype == mu.dtype
    narrow = kl_divergence(Normal(mu, 1e-4), Normal(t.zeros_like(mu), prior_std))
    assert t.allclose(point.kl - point.kl[4], narrow - narrow[4])
    assert point.kl[4] == 0, "mu = 0 costs nothing"
