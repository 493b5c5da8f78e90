"""The Gaussian posterior of a variational SAE: its KL divergence and its schedules.

These are pure functions of tensors and numbers: nothing here knows a model or a trainer. The
equations are from "Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, with a
prior of any standard deviation p instead of 1.
"""

import math
from typing import NamedTuple, TypeVar

import torch as t

from ..config.sae import KLSchedule

Number = TypeVar("Number", float, t.Tensor)


def gaussian_kl(mu: t.Tensor, log_var: t.Tensor, prior_std: t.Tensor | float = 1.0) -> t.Tensor:
    """KL( N(mu, exp(log_var)) || N(0, prior_std^2) ) in nats, elementwise.

    1/2 (mu^2/p^2 + sigma^2/p^2 - 1 - log(sigma^2/p^2)). Shapes broadcast. Where sigma is 0 it is `point_kl` instead of
    infinite.
    """
    of_variance = variance_kl(log_var, prior_std).where(log_var > -t.inf, 0.0)
    return point_kl(mu, prior_std) + of_variance


def variance_kl(log_var: t.Tensor, prior_std: t.Tensor | float = 1.0) -> t.Tensor:
    """The part of `gaussian_kl` that does not depend on mu; zero where sigma = prior_std."""
    log_ratio = log_var - 2 * t.as_tensor(prior_std, dtype=log_var.dtype).log()
    return 0.5 * (log_ratio.exp() - 1 - log_ratio)


def fixed_variance_kl(sigma: float, prior_std: float) -> float:
    """`variance_kl` for plain numbers instead of tensors."""
    log_ratio = 2 * math.log(sigma / prior_std)
    return 0.5 * (math.expm1(log_ratio) - log_ratio)


def point_kl(mu: t.Tensor, prior_std: t.Tensor | float = 1.0) -> t.Tensor:
    """1/2 mu^2/p^2 in nats, elementwise: the part of `gaussian_kl` that depends on mu.

    It replaces the KL of a point posterior, which would be infinite, and is an L2 penalty on the activations.
    """
    return 0.5 * (mu / prior_std) ** 2


def kl_scale(step: int, schedule: KLSchedule, warmup_steps: int) -> float:
    """s(t), the factor on beta at `step`, in [0, 1].

    With W = `warmup_steps` and t = `step`:

        constant   1
        linear     t/W up to W, then 1
        cosine     (1 - cos(pi t/W))/2 up to W, then 1

    W = 0 means no warm-up: linear and cosine are 1 from the first step.
    """
    if schedule == "constant":
        return 1.0
    progress = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return progress if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))


def noise_scale(step: int, anneal_steps: int | None) -> float:
    """tau(t), the factor on sigma when sampling: 1, or from 1 linearly to 0 over `anneal_steps`."""
    return 1.0 if anneal_steps is None else max(0.0, 1.0 - step / anneal_steps)


def noise_to_signal(k: int, mean_variance: Number, mean_squared_norm: Number) -> Number:
    """k sigma^2 / E||x||^2: the energy of the noise of k features, relative to the activations'.

    Decoder columns are unit-norm, so sampling k values with variance sigma^2 adds k sigma^2 to the reconstruction. Noise on
    the selection alone adds nothing to values; the ratio then measures it against the means that it competes with.
    """
    return k * mean_variance / mean_squared_norm


class GaussianPosterior(NamedTuple):
    """Each feature's posterior N(mu, sigma^2), with the prior N(0, p^2)."""

    mu: t.Tensor
    """(…, F)"""
    log_var: t.Tensor
    """log sigma^2, (…, F) or 0-dim; -inf for a point, whose sigma is 0"""
    prior_std: t.Tensor
    """p, 0-dim"""

    @property
    def kl(self) -> t.Tensor:
        """KL( N(mu, sigma^2) || N(0, p^2) ) in nats, (…, F). For a point: `point_kl`."""
        return gaussian_kl(self.mu, self.log_var, self.prior_std)

    @property
    def std(self) -> t.Tensor:
        """sigma, of the shape of log_var."""
        return (self.log_var / 2).exp()

    @property
    def noise_variance(self) -> t.Tensor:
        """sigma^2, of the shape of log_var."""
        return self.log_var.exp()


class GatedPosterior(NamedTuple):
    """Each feature's posterior N(mu, sigma^2), with sigma at most the prior's p.

    Its width gives the feature's gate, 1 - sigma/p. From Lu, Zhu, He & Wipf 2025 (arXiv 2506.04859).
    """

    mu: t.Tensor
    """(…, F)"""
    log_ratio: t.Tensor
    """log(sigma^2 / p^2), at most 0: (…, F)"""
    prior_std: t.Tensor
    """p, (F,)"""

    @property
    def std(self) -> t.Tensor:
        """sigma, (…, F)."""
        return self.prior_std * (self.log_ratio / 2).exp()

    @property
    def noise_variance(self) -> None:
        """None: decoder columns are not unit-norm, so k sigma^2 is not the noise's energy."""

    @property
    def gate(self) -> t.Tensor:
        """1 - sigma/p, in [0, 1): (…, F)."""
        return -(self.log_ratio / 2).expm1()

    @property
    def kl(self) -> t.Tensor:
        """KL( N(mu, sigma^2) || N(0, p^2) ) in nats, (…, F)."""
        return gaussian_kl(self.mu / self.prior_std, self.log_ratio)

    def sample(self, generator: t.Generator | None) -> t.Tensor:
        """mu + sigma * eps, (…, F). Default generator: torch's own."""
        eps = t.empty_like(self.mu).normal_(generator=generator)
        return self.mu + self.std * eps
