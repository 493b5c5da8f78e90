"""A batch's KL from the prior, and the squares that a learned prior is the mean of."""

import torch as t

from ..posterior import free_bits_kl, point_kl, variance_kl
from .drawn_code import DrawnCode
from .means import Moments
from .objective import StepObjective


def batch_kl(
    moments: Moments | None,
    draw: DrawnCode,
    objective: StepObjective,
) -> tuple[t.Tensor, t.Tensor | None]:
    """The KL in nats per token, and with free bits each feature's mean KL over the batch.

    Arguments:
        moments: of all features; None for the KL of the selected ones.
    """
    std = objective.kl_std
    if moments is None:
        prior_std = objective.prior_std_at(draw.indices_BK)
        kl_BK = point_kl(draw.mu_BK, prior_std)
        if std is not None:
            kl_BK = kl_BK + variance_kl(2 * std.log(), prior_std)
        if draw.log_var is not None:
            kl_BK = kl_BK + variance_kl(draw.log_var.selected_BK, prior_std)
        return kl_BK.sum(-1).mean(), None

    mean_kl_F = moments.square_F / (2 * objective.prior_std.square())
    if std is not None:
        mean_kl_F = mean_kl_F + variance_kl(2 * std.log(), objective.prior_std)
    if draw.log_var is not None and draw.log_var.kl_sum_F is not None:
        mean_kl_F = mean_kl_F + draw.log_var.kl_sum_F / len(draw.smallest_B)
    free_bits = objective.options.free_bits
    if free_bits > 0:  # otherwise the mean over ranks of the loss is enough
        objective.ranks.mean_(mean_kl_F)
    return free_bits_kl(mean_kl_F, free_bits), mean_kl_F if free_bits > 0 else None


def squares(
    moments: Moments | None, draw: DrawnCode, objective: StepObjective
) -> tuple[t.Tensor, t.Tensor]:
    """Each feature's sum of mu^2 + sigma^2 over the tokens whose KL counts, and how many: (F,), (F,).

    Of this rank's tokens.
    """
    std, n_features = objective.kl_std, len(objective.prior_std)
    variance = t.zeros_like(objective.sigma) if std is None else std.square()
    if moments is None:
        square_BK = draw.mu_BK.square() + variance
        if draw.log_var is not None:
            square_BK = square_BK + draw.log_var.selected_BK.exp()
        both_2F = square_BK.new_zeros(2, n_features)
        indices = draw.indices_BK.flatten()
        both_2F[0].index_add_(0, indices, square_BK.flatten())
        both_2F[1].index_add_(0, indices, t.ones_like(square_BK).flatten())
        return both_2F[0], both_2F[1]
    tokens = len(draw.smallest_B)
    sum_F = (moments.square_F + variance) * tokens
    if draw.log_var is not None and draw.log_var.variance_sum_F is not None:
        sum_F = sum_F + draw.log_var.variance_sum_F
    return sum_F, t.full_like(sum_F, tokens)
