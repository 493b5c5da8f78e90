"""The formulas of the metrics whose rows in metrics.py don't hold them.

Each takes the totals, or makes a function that does. It returns None where the metric does not apply to
the SAE, and raises NotMeasured where the totals don't define it.
"""

import math
from collections.abc import Callable

from ..trainers import posterior
from .totals import LanguageModelLosses, NotMeasured, Totals


def fve(totals: Totals) -> float:
    return 1 - totals.residual / totals.total_variance


def description_length(totals: Totals) -> float | None:
    l0 = totals.mean("l0")
    if l0 is None:
        return None
    on = min(l0, totals.dict_size)
    choices = math.lgamma(totals.dict_size + 1) - math.lgamma(on + 1)
    choices -= math.lgamma(totals.dict_size - on + 1)
    left = max(totals.residual / totals.total_variance, 1e-12)
    return choices + totals.activation_dim / 2 * math.log(left)


def near_dead(r: float) -> Callable[[Totals], float]:
    def share(totals: Totals) -> float:
        l0 = totals.frequency_F.sum() if totals.k is None else float(totals.k)
        return (totals.frequency_F < r * (l0 / totals.dict_size)).double().mean().item()

    return share


def noise_to_signal(totals: Totals) -> float | None:
    variance = totals.mean("noise_variance")
    if variance is None:
        return None
    if totals.squares == 0:
        raise NotMeasured("the activations are all 0")
    return posterior.noise_to_signal(totals.k or 0, variance, totals.squares / totals.tokens)


def mean_sigma(totals: Totals) -> float | None:
    std = totals.mean("std")
    return None if std is None else std / totals.norm_factor


def fve_sampled(totals: Totals) -> float | None:
    sampled = totals.residual_sampled
    return None if sampled is None else 1 - sampled / totals.total_variance


def frac_recovered(totals: Totals) -> float | None:
    if (losses := ce_losses(totals)) is None:
        return None
    if losses.zero == losses.original:
        raise NotMeasured("zeros in place of the activations do not change the loss")
    return (losses.zero - losses.reconstructed) / (losses.zero - losses.original)


def ce_losses(totals: Totals) -> LanguageModelLosses | None:
    losses = totals.losses
    if losses is None and totals.no_losses:
        raise NotMeasured(totals.no_losses)
    if losses is not None and losses.tokens == 0:
        raise NotMeasured("no held-out document has a second token, which could be predicted")
    return losses


def loss(which: str) -> Callable[[Totals], float | None]:
    def loss(totals: Totals) -> float | None:
        losses = ce_losses(totals)
        return None if losses is None else getattr(losses, which)

    return loss


def count(which: str) -> Callable[[Totals], float | None]:
    return lambda totals: totals.losses and getattr(totals.losses, which)


def truth(which: str) -> Callable[[Totals], float | None]:
    return lambda totals: totals.truth and getattr(totals.truth, which)
