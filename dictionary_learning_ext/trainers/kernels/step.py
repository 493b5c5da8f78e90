"""The compiled training step of a vSAE in float32 on a CPU: the loss of `trainers/step.py`, and gradients by hand.

    terms, gradients = step(weights, objective, x)

Only the encoder and the selection of the K largest go through B x F numbers, in blocks of rows
(`select.py`). The reconstruction and its gradient use K values per row (`products.py`). The KL over all
features, and its gradient at mu, come from second moments of the batch (`encode.py`). A B x F tensor is only held
for a ReLU, and where dense products with the code are faster. A learned sigma and selection by magnitude have no compiled
step: `trainers/step.py` runs them.
"""

from typing import NamedTuple

import torch as t

from ..posterior import point_kl
from ..step import LossTerms, MeanSelection, StepObjective, Weights, row_variance
from . import compiled
from .compiled import DrawnCode
from .encode import BatchMeans, Moments
from .products import DenseCode, SparseCode, top_k_code
from .select import draw_batch, top_k


def supports(weights: Weights, objective: StepObjective) -> bool:
    """Whether `step` can take this step."""
    settings = objective.settings
    return (
        not objective.part.is_split
        and settings.posterior != "learned"
        and settings.select_by == "value"
        and compiled.is_available(weights.W_enc_FD, objective.matmul_dtype)
    )


@t.no_grad()
def step(
    weights: Weights, objective: StepObjective, x_BD: t.Tensor
) -> tuple[LossTerms, tuple[t.Tensor, ...]]:
    """The terms of `variational_loss`, and the gradients of the loss at `weights`.

    Draws noise from the objective's generator, with the same distribution as `variational_loss` but other values. A
    KL with weight 0 is not computed, and is 0 in the terms.

    Arguments:
        weights, x_BD: float32 on a CPU, where `supports` is true.
    """
    settings = objective.settings
    y_BD = x_BD if objective.y_BD is None else objective.y_BD
    means = BatchMeans(
        x_BD - weights.b_dec_D if objective.y_BD is None else x_BD,
        weights.W_enc_FD,
        weights.b_enc_F,
        rectify=settings.rectify,
        matmul_dtype=objective.matmul_dtype,
    )
    draw = draw_batch(means, objective.sigma, objective.draw)
    W_dec_FD = weights.W_dec_DF.t().contiguous()  # no copy when W is stored by feature
    dtype = objective.matmul_dtype
    code = top_k_code(draw.indices_BK, len(W_dec_FD), dtype, rows_BK=draw.rows_BK)
    error_BD = code.combine(draw.values_BK, W_dec_FD).add_(weights.b_dec_D).sub_(y_BD)
    l2_loss = t.linalg.vector_norm(error_BD).square() / len(x_BD)
    since_fired_F = objective.tokens_since_fired_F + len(x_BD)
    found = MeanSelection.of_smallest(draw.fired_F, draw.smallest, since_fired_F)
    kl_loss = auxk_loss = l2_loss.new_zeros(())
    moments = auxk = None
    if objective.kl_weight != 0:
        moments = means.moments() if settings.kl_scope == "all" else None
        kl_loss = _batch_kl(moments, draw.mu_BK, objective)
    if objective.auxk_alpha > 0:
        dead_F = found.tokens_since_fired_F >= objective.dead_feature_threshold
        auxk = AuxK.of(means, dead_F, W_dec_FD, error_BD, objective)
    if auxk is not None:
        auxk_loss = auxk.loss
    loss = l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss
    terms = LossTerms(loss, l2_loss, kl_loss, auxk_loss, *found)
    return terms, _gradients(objective, means, draw, code, error_BD, moments, auxk)


def _batch_kl(moments: Moments | None, mu_BK: t.Tensor, objective: StepObjective) -> t.Tensor:
    """`mean_kl` of `trainers/step.py`.

    Arguments:
        moments: of the means of all features. None: the KL of the selected features.
    """
    prior_std = objective.settings.prior_std
    if moments is None:
        return point_kl(mu_BK, prior_std).sum(-1).mean() + objective.k * objective.kl_of_sigma
    kl_F = moments.square_F / (2 * prior_std**2)
    return kl_F.sum() + len(kl_F) * objective.kl_of_sigma


def _gradients(
    objective: StepObjective,
    means: BatchMeans,
    draw: DrawnCode,
    code: SparseCode | DenseCode,
    error_BD: t.Tensor,
    moments: Moments | None,
    auxk: "AuxK | None",
) -> tuple[t.Tensor, ...]:
    """The loss's gradients at W_enc, b_enc, W_dec and b_dec, from what the step has computed.

    With I the K selected features of a row and e = x_hat - x (of a transcoder y_hat - y):

        dL/df_i       = (2/B) e . W_dec[:, i]              for i in I; over a batch 0 where f_i is 0
        dL/dW_dec[:,i] = (2/B) sum over rows with i in I of f_i e

    Arguments:
        moments: for the KL over all features; otherwise None.
    """
    batch, settings = len(error_BD), objective.settings
    grad_hat_BD = error_BD * (2 / batch)
    grad_mu_BK = code.project(grad_hat_BD)
    if settings.over_batch:
        grad_mu_BK = grad_mu_BK * (draw.values_BK > 0)
    grad_W_dec_FD = code.outer(draw.values_BK, grad_hat_BD)
    # The KL's gradient at mu is mu / p^2, times its weight, for the selected features or for all.
    kl_weight = objective.kl_weight / t.tensor(settings.prior_std).square()
    if settings.kl_scope == "selected":
        grad_mu_BK = grad_mu_BK + draw.mu_BK * (kl_weight / batch)
    if settings.rectify:
        grad_mu_BK = grad_mu_BK * (draw.mu_BK > 0)
    grad_W_enc_FD = code.outer(grad_mu_BK, means.centred_BD)
    grad_b_enc_F = t.zeros_like(means.bias_F)
    if moments is not None:
        grad_W_enc_FD.add_(moments.cross_FD.mul_(kl_weight))
        grad_b_enc_F = moments.mean_F * kl_weight
    grad_b_enc_F.scatter_add_(0, draw.indices_BK.flatten(), grad_mu_BK.flatten())
    if auxk is not None:
        grad_W_enc_FD.index_add_(0, auxk.dead_M, auxk.grad_W_enc_MD)
        grad_b_enc_F.scatter_add_(0, auxk.indices_BK.flatten(), auxk.grad_mu_BK.flatten())
        grad_W_dec_FD.index_add_(0, auxk.dead_M, auxk.grad_W_dec_MD)
    grad_b_dec_D = grad_hat_BD.sum(0)
    if objective.y_BD is None:
        grad_b_dec_D = grad_b_dec_D - grad_b_enc_F @ means.weight_FD
    return grad_W_enc_FD, grad_b_enc_F, grad_W_dec_FD.t(), grad_b_dec_D


class AuxK(NamedTuple):
    """`dead_features_loss` and the gradients of auxk_alpha times it, for M dead features."""

    loss: t.Tensor
    dead_M: t.Tensor
    """their indices"""
    indices_BK: t.Tensor
    """which of them each row selects"""
    grad_mu_BK: t.Tensor
    grad_W_enc_MD: t.Tensor
    grad_W_dec_MD: t.Tensor

    @classmethod
    def of(
        cls,
        means: BatchMeans,
        dead_F: t.Tensor,
        W_dec_FD: t.Tensor,
        error_BD: t.Tensor,
        objective: StepObjective,
    ) -> "AuxK | None":
        """Reads the weights of dead features alone. None if no feature is dead."""
        dead_M = dead_F.nonzero().squeeze(1)
        k_aux = min(objective.top_k_aux, len(dead_M))
        if k_aux == 0:
            return None
        values_BK, places_BK = top_k(means.of(dead_M), k_aux, rectified=means.rectify)
        values_BK = values_BK.clamp_(min=0)
        code = top_k_code(places_BK, len(dead_M), objective.matmul_dtype, name="aux_code")
        aux_error_BD = code.combine(values_BK, W_dec_FD[dead_M]) + error_BD
        variance = row_variance(error_BD)
        scale = t.where(variance > 0, 1 / variance, 0.0)
        loss = aux_error_BD.square().sum(-1).mean() * scale
        grad_BD = aux_error_BD * (scale * (2 * objective.auxk_alpha / len(error_BD)))
        grad_mu_BK = code.project(grad_BD).masked_fill_(values_BK == 0, 0)
        return cls(
            loss,
            dead_M,
            dead_M[places_BK],
            grad_mu_BK,
            code.outer(grad_mu_BK, means.centred_BD),
            code.outer(values_BK, grad_BD),
        )
