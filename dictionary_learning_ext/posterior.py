"""The Gaussian posterior of a variational SAE: its samples, its KL divergence, its schedules.

Pure functions of tensors and numbers; nothing here knows a model or a trainer. The equations
are those of "Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, with a
prior of any scale instead of 1.
"""

import math
from typing import TypeVar

import torch as t

from .options import KLSchedule, NoiseOn

Number = TypeVar("Number", float, t.Tensor)


def draw_code(
    mu_BF: t.Tensor,
    std: t.Tensor,
    k: int,
    noise_on: NoiseOn,
    noise_scale: float,
    generator: t.Generator | None,
) -> tuple[t.Tensor, t.Tensor]:
    """Draw each row's K selected features and their values from N(mu, (noise_scale std)^2).

    Arguments:
        mu_BF: the posterior's means.
        std: its standard deviations: (B, F), or 0-dim for one value.
        noise_on: "both": I = TopK(z), values z_I; "values": I = TopK(mu), values z_I, and only
            these are drawn; "selection": I = TopK(z), values mu_I.
        noise_scale: tau; 0 draws nothing and gives the mean's code.

    Returns: indices (B, K) and values (B, K), the values in fp32 or wider.
    """
    dtype = t.promote_types(mu_BF.dtype, t.float32)
    if noise_scale == 0 or noise_on == "values":
        values_BK, indices_BK = mu_BF.topk(k, dim=-1, sorted=False)
        values_BK = values_BK.to(dtype)
        if noise_scale != 0:
            noise_BK = t.empty_like(values_BK).normal_(generator=generator)
            std_BK = std if std.dim() == 0 else std.gather(-1, indices_BK)
            values_BK = values_BK + noise_BK * (std_BK * noise_scale)
        return indices_BK, values_BK

    z_BF = t.empty_like(mu_BF, dtype=dtype).normal_(generator=generator)
    z_BF.mul_(std * noise_scale).add_(mu_BF)
    values_BK, indices_BK = z_BF.topk(k, dim=-1, sorted=False)
    if noise_on == "selection":
        values_BK = mu_BF.gather(-1, indices_BK).to(dtype)
    return indices_BK, values_BK


def gaussian_kl(mu: t.Tensor, log_var: t.Tensor, prior_std: t.Tensor | float = 1.0) -> t.Tensor:
    """KL( N(mu, exp(log_var)) || N(0, prior_std^2) ) in nats, elementwise.

    1/2 (mu^2/p^2 + sigma^2/p^2 - 1 - log(sigma^2/p^2)). Shapes broadcast.
    """
    return point_kl(mu, prior_std) + variance_kl(log_var, prior_std)


def variance_kl(log_var: t.Tensor, prior_std: t.Tensor | float = 1.0) -> t.Tensor:
    """The part of `gaussian_kl` that does not depend on mu; zero where sigma = prior_std."""
    log_ratio = log_var - 2 * t.as_tensor(prior_std, dtype=log_var.dtype).log()
    return 0.5 * (log_ratio.exp() - 1 - log_ratio)


def point_kl(mu: t.Tensor, prior_std: t.Tensor | float = 1.0) -> t.Tensor:
    """1/2 mu^2/p^2 in nats, elementwise: the part of `gaussian_kl` that depends on mu.

    It is all that is left of the KL in a point posterior (whose true divergence is infinite): an
    L2 penalty on the activations.
    """
    return 0.5 * (mu / prior_std) ** 2


def free_bits_kl(mean_kl_F: t.Tensor, free_bits: float) -> t.Tensor:
    """sum_i max(free_bits, mean_B KL_i): features below `free_bits` nats feel no pull.

    Arguments:
        mean_kl_F: each feature's KL, averaged over the batch, in nats.
        free_bits: nats per feature, >= 0; 0 is off, since a KL is never negative.

    Returns: a scalar, nats per token. (Kingma et al. 2016, section 2.4 of arXiv 1606.04934.)
    """
    return mean_kl_F.clamp(min=free_bits).sum() if free_bits > 0 else mean_kl_F.sum()


def kl_scale(step: int, schedule: KLSchedule, warmup_steps: int, cycle_steps: int) -> float:
    """s(t), the factor on beta at `step`, in [0, 1].

    constant: 1. linear: t/W and cosine: (1 - cos(pi t/W))/2 up to W = `warmup_steps`, then 1.
    cyclical: linear over the first half of each period of `cycle_steps`, 1 in the second half.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cyclical":
        half = cycle_steps / 2
        return min((step % cycle_steps) / half, 1.0) if cycle_steps > 0 else 1.0
    progress = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return progress if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))


def noise_scale(step: int, anneal_steps: int | None) -> float:
    """tau(t), the factor on sigma when sampling: 1, or falling linearly to 0 over `anneal_steps`."""
    return 1.0 if anneal_steps is None else max(0.0, 1.0 - step / anneal_steps)


def noise_to_signal(k: int, mean_variance: Number, mean_squared_norm: Number) -> Number:
    """k sigma^2 / E||x||^2: the noise energy that sampling adds to a reconstruction, relative.

    Decoder columns are unit-norm, so k independent samples of variance sigma^2 add k sigma^2.
    """
    return k * mean_variance / mean_squared_norm
