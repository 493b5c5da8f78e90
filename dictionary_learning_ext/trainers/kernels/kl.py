"""A batch's KL from the prior."""

import torch as t

from ..posterior import point_kl, variance_kl
from .drawn_code import DrawnCode
from .means import Moments
from .objective import StepObjective


def batch_kl(
    moments: Moments | None,
    draw: DrawnCode,
    objective: StepObjective,
) -> t.Tensor:
    """The KL in nats per token, averaged over the batch: 0-dim.

    Arguments:
        moments: of all features; None for the KL of the selected ones.
    """
    std, prior_std = objective.kl_std, objective.prior_std
    if moments is None:
        kl_BK = point_kl(draw.mu_BK, prior_std)
        if std is not None:
            kl_BK = kl_BK + variance_kl(2 * std.log(), prior_std)
        if draw.log_var is not None:
            kl_BK = kl_BK + variance_kl(draw.log_var.selected_BK, prior_std)
        return kl_BK.sum(-1).mean()

    mean_kl_F = moments.square_F / (2 * prior_std.square())
    if std is not None:
        mean_kl_F = mean_kl_F + variance_kl(2 * std.log(), prior_std)
    if draw.log_var is not None and draw.log_var.kl_sum_F is not None:
        mean_kl_F = mean_kl_F + draw.log_var.kl_sum_F / len(draw.smallest_B)
    return mean_kl_F.sum()
