"""A Gaussian posterior no wider than its prior, and the gate that its width makes: VAEase's.

Lu, Zhu, He & Wipf 2025, "Sparse Autoencoders, Again?" (arXiv 2506.04859).
"""

from typing import NamedTuple

import torch as t

from ..posterior import gaussian_kl


class GatedPosterior(NamedTuple):
    """N(mu, sigma^2) of each feature, sigma at most the prior's standard deviation p."""

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
    def gate(self) -> t.Tensor:
        """1 - sigma/p, in [0, 1): (…, F)."""
        return -(self.log_ratio / 2).expm1()

    @property
    def kl(self) -> t.Tensor:
        """KL( N(mu, sigma^2) || N(0, p^2) ) in nats, (…, F)."""
        return gaussian_kl(self.mu / self.prior_std, self.log_ratio)

    def sample(self, generator: t.Generator | None) -> t.Tensor:
        """mu + sigma * eps, (…, F); eps from torch's own generator if None."""
        eps = t.empty_like(self.mu).normal_(generator=generator)
        return self.mu + self.std * eps
