"""What is drawn in a step: the code, and what the mean alone selects."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as t

from ...config.sae import NoiseOn, SelectBy
from .log_variance import DrawnLogVariance


class DrawnCode(NamedTuple):
    """The code of some rows, and what the mean alone selects there."""

    indices_BK: t.Tensor
    """each row's selected features"""
    values_BK: t.Tensor
    """their values in the code"""
    mu_BK: t.Tensor
    """their means"""
    fired_F: t.Tensor
    """whether the mean's selection of some row holds the feature (bool). Where noise chooses, a mean
    equal to the K-th largest (in magnitude, if it selects by magnitude) counts as selected. A mean of
    0 fires only where nothing is drawn, as upstream counts a ReLU's zeros"""
    smallest_B: t.Tensor
    """each row's smallest positive selected mean, or the smallest magnitude above 0 if it selects by
    magnitude; inf if it has none"""
    log_var: DrawnLogVariance | None
    """of a learned posterior"""

    @classmethod
    def joined(cls, parts: Sequence["DrawnCode"]) -> "DrawnCode":
        """The parts' rows, one after the other."""
        if len(parts) == 1:
            return parts[0]
        indices, values, mus, fired, smallest, log_vars = zip(*parts, strict=True)
        log_var = None if log_vars[0] is None else DrawnLogVariance.joined(log_vars)
        fired_F = t.stack(fired).any(0)
        return cls(t.cat(indices), t.cat(values), t.cat(mus), fired_F, t.cat(smallest), log_var)


def compared(values: t.Tensor, select_by: SelectBy) -> t.Tensor:
    """The numbers whose largest are kept: the values themselves, or their magnitudes."""
    return values.abs() if select_by == "magnitude" else values


def chooses(noise_on: NoiseOn, noise_scale: float) -> bool:
    """Whether noise decides which features are kept."""
    return noise_scale != 0 and noise_on != "values"
