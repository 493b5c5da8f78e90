"""Which features a token keeps: drawing noise, the K largest, and what the mean alone selects."""

import functools
from typing import NamedTuple

import numpy as np
import torch as t

from ...config.options import NoiseOn
from .step_form import StepForm


def draw_code(
    mu_BF: t.Tensor,
    std: t.Tensor,
    k: int,
    noise_on: NoiseOn,
    noise_scale: float,
    generator: t.Generator | None,
    form: StepForm,
) -> tuple[t.Tensor, t.Tensor]:
    """Draw each row's K selected features and their values from N(mu, (noise_scale std)^2).

    Arguments:
        mu_BF: the posterior's means, fp32 or wider.
        std: its standard deviations: (B, F), or 0-dim for one value.
        noise_on: "both": I = TopK(z), values z_I. "values": I = TopK(mu), values z_I; only these
            are drawn. "selection": I = TopK(z), values mu_I.
        noise_scale: tau. 0 draws nothing and gives the mean's code.
        generator: on the device of `mu_BF`. Default: torch's own.
        form: says how the K largest are found.

    Returns: indices (B, K) and values (B, K).
    """
    if not chooses(noise_on, noise_scale):
        values_BK, indices_BK = top_k(mu_BF, k, form)
        if noise_scale != 0:
            noise_BK = t.empty_like(values_BK).normal_(generator=generator)
            std_BK = std if std.dim() == 0 else std.gather(-1, indices_BK)
            values_BK = values_BK + noise_BK * (std_BK * noise_scale)
        return indices_BK, values_BK

    z_BF = normal_noise(mu_BF, std * noise_scale, generator).add_(mu_BF)
    values_BK, indices_BK = top_k(z_BF, k, form)
    return indices_BK, mu_BF.gather(-1, indices_BK) if noise_on == "selection" else values_BK


def chooses(noise_on: NoiseOn, noise_scale: float) -> bool:
    """Whether noise decides which features are kept."""
    return noise_scale != 0 and noise_on != "values"


def top_k(values_BF: t.Tensor, k: int, form: StepForm) -> tuple[t.Tensor, t.Tensor]:
    """Each row's K largest and their indices, in any order. NaN counts as the largest."""
    if k == values_BF.shape[-1] or not _is_for_numpy(values_BF, form):
        values_BK, indices_BK = values_BF.topk(k, dim=-1, sorted=False)
        return values_BK, indices_BK
    order = np.argpartition(values_BF.detach().numpy(), -k, axis=-1)
    indices_BK = t.from_numpy(order[..., -k:]).contiguous()
    values_BK = values_BF.gather(-1, indices_BK)
    padded = values_BK.amin(-1) == 0
    if padded.any():  # a ReLU's zeros: choose the ones that upstream's topk chooses
        values_BK[padded], indices_BK[padded] = values_BF[padded].topk(k, dim=-1, sorted=False)
    return values_BK, indices_BK


class MeanSelection(NamedTuple):
    """What the mean alone selects, in some rows."""

    fired_F: t.Tensor
    """whether some row's selection holds the feature (bool)"""
    smallest_B: t.Tensor
    """each row's smallest positive selected mean; inf if it has none"""

    @classmethod
    def of_code(cls, indices_BK: t.Tensor, mu_BK: t.Tensor, dict_size: int) -> "MeanSelection":
        """From the mean's K largest."""
        fired_F = t.zeros(dict_size, dtype=t.bool, device=mu_BK.device)
        fired_F.index_fill_(0, indices_BK.flatten(), True)
        return cls(fired_F, mu_BK.masked_fill(mu_BK <= 0, t.inf).amin(-1))

    @classmethod
    def of_means(cls, mu_BF: t.Tensor, k: int, form: StepForm) -> "MeanSelection":
        """From the means. A mean equal to the K-th largest counts as selected, unless it is 0."""
        if _is_for_numpy(mu_BF, form):  # partitioning values takes half as long as indices
            kth_B = t.from_numpy(np.partition(mu_BF.numpy(), -k, axis=1)[:, -k])
        else:
            kth_B = mu_BF.topk(k, sorted=False).values.amin(-1)
        least_B = kth_B.where(kth_B != 0, t.finfo(mu_BF.dtype).tiny)
        smallest_B = kth_B.where(kth_B > 0, t.inf)
        if (kth_B <= 0).any():  # every positive mean of such a row is selected
            positive_BF = mu_BF.masked_fill(mu_BF <= 0, t.inf)
            smallest_B = smallest_B.minimum(positive_BF.amin(-1).where(kth_B <= 0, t.inf))
        if mu_BF.device.type != "cpu":
            return cls((mu_BF >= least_B[:, None]).any(0), smallest_B)
        fired_F = (mu_BF.numpy() >= least_B.numpy()[:, None]).any(0)  # torch's any is slow here
        return cls(t.from_numpy(fired_F), smallest_B)


def normal_noise(like_BF: t.Tensor, std: t.Tensor, generator: t.Generator | None) -> t.Tensor:
    """Independent N(0, std^2) in the shape, dtype and device of `like_BF`; std is 0-dim or (B, F).

    On a CPU, 16 random bits choose one of 65,536 equally likely values. That takes half of
    `normal_`'s time on one thread. The values' distribution function is within 2^-16 of the normal
    one, their variance is within 1e-5 of std^2 (relative), and the largest is 4.4 std.
    """
    if like_BF.device.type != "cpu":
        return t.empty_like(like_BF).normal_(generator=generator).mul_(std)
    words = t.empty(-(-like_BF.numel() // 4), dtype=t.int64).random_(
        -(2**63), None, generator=generator
    )
    chosen = words.view(t.uint16)[: like_BF.numel()].int()
    values = _normal_values(like_BF.dtype)
    if std.dim() == 0:
        return (values * std).index_select(0, chosen).view(like_BF.shape)
    return values.index_select(0, chosen).view(like_BF.shape).mul_(std)


@functools.cache
def _normal_values(dtype: t.dtype) -> t.Tensor:
    """The mean of N(0, 1) over each of 2^16 intervals that are equally likely."""
    edges = t.special.ndtri(t.arange(2**16 + 1, dtype=t.float64) / 2**16)
    density = t.exp(-(edges**2) / 2) / (2 * t.pi) ** 0.5
    return (2**16 * (density[:-1] - density[1:])).to(dtype)


def _is_for_numpy(values: t.Tensor, form: StepForm) -> bool:
    return form.partitions_by_numpy and values.dtype in (t.float32, t.float64)
