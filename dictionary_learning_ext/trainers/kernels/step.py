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
from .encode import BatchMeans, Moments
from .products import CodeMatrix, DenseCode, SparseCode, SubsetCode, top_k_code
from .select import DrawnCode, draw_batch, top_k


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
    centred_BD = x_BD - weights.b_dec_D
    means = BatchMeans(
        centred_BD,
        weights.W_enc_FD,
        weights.b_enc_F,
        rectify=settings.rectify,
        matmul_dtype=objective.matmul_dtype,
    )
    has_all_kl = settings.kl_scope == "all" and objective.kl_weight != 0
    draw = draw_batch(means, objective.sigma, objective.draw)
    W_dec_FD = weights.W_dec_DF.t().contiguous()  # no copy when W is stored by feature
    code = top_k_code(draw.indices_BK, len(W_dec_FD), objective.matmul_dtype)
    error_BD = code.combine(draw.values_BK, W_dec_FD).add_(weights.b_dec_D).sub_(x_BD)
    l2_loss = t.linalg.vector_norm(error_BD).square() / len(x_BD)
    found = MeanSelection.of_rows(draw.fired_F, draw.smallest_B, objective.tokens_since_fired_F)
    moments = means.moments() if has_all_kl else None
    kl_loss = auxk_loss = l2_loss.new_zeros(())
    if objective.kl_weight != 0:
        kl_loss = _batch_kl(moments, draw, objective)
    auxk = None
    if objective.auxk_alpha > 0:
        dead_F = found.tokens_since_fired_F >= objective.dead_feature_threshold
        auxk = AuxKLoss.of(means, dead_F, W_dec_FD, error_BD, objective)
    if auxk is not None:
        auxk_loss = auxk.loss
    loss = l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss
    terms = LossTerms(loss, l2_loss, kl_loss, auxk_loss, *found)
    forward_pass = _ForwardPass(means, draw, code, error_BD, moments, auxk)
    return terms, _gradients(forward_pass, weights, objective)


class _ForwardPass(NamedTuple):
    """What the gradients need from the forward pass."""

    means: BatchMeans
    draw: DrawnCode
    code: SparseCode | DenseCode
    error_BD: t.Tensor
    """x_hat - x"""
    moments: Moments | None
    """for the KL over all features; otherwise None"""
    auxk: "AuxKLoss | None"


def _batch_kl(moments: Moments | None, draw: DrawnCode, objective: StepObjective) -> t.Tensor:
    """`mean_kl` of `trainers/step.py`.

    Arguments:
        moments: of the means of all features. None: the KL of the selected features.
    """
    prior_std = objective.settings.prior_std
    if moments is None:
        kl_BK = point_kl(draw.mu_BK, prior_std)
        return kl_BK.sum(-1).mean() + objective.k * objective.kl_of_sigma
    kl_F = moments.square_F / (2 * prior_std**2)
    return kl_F.sum() + len(kl_F) * objective.kl_of_sigma


def _gradients(
    forward_pass: _ForwardPass, weights: Weights, objective: StepObjective
) -> tuple[t.Tensor, ...]:
    """The loss's gradients at each of `weights`.

    With I the K selected features of a row and e = x_hat - x:

        dL/df_i       = (2/B) e . W_dec[:, i]              for i in I
        dL/dW_dec[:,i] = (2/B) sum over rows with i in I of f_i e
    """
    e, batch = forward_pass, len(forward_pass.error_BD)
    W_enc_FD, centred_BD = weights.W_enc_FD, e.means.centred_BD
    prior_std = t.tensor(objective.settings.prior_std)
    grad_hat_BD = e.error_BD * (2 / batch)
    # AuxK comes first: its products may be dense, and no other gradient takes memory yet.
    aux_grad_mu_BK = aux_grad_W_dec_FD = None
    if e.auxk is not None:
        aux_grad_mu_BK, aux_grad_W_dec_FD = e.auxk.backward(objective.auxk_alpha)
    grad_values_BK = e.code.project(grad_hat_BD)
    grad_W_dec_FD = e.code.outer(e.draw.values_BK, grad_hat_BD)
    if aux_grad_W_dec_FD is not None:
        grad_W_dec_FD = aux_grad_W_dec_FD.add_(grad_W_dec_FD)
    # The KL's gradient at mu is mu / p^2, times its weight, for the selected features or for all.
    grad_mu_BK = grad_values_BK
    if objective.settings.kl_scope == "selected":
        kl_weight = objective.kl_weight / prior_std.square()
        grad_mu_BK = grad_mu_BK + e.draw.mu_BK * (kl_weight / batch)
    if objective.settings.rectify:
        grad_mu_BK = grad_mu_BK * (e.draw.mu_BK > 0)
    on_mu: list[tuple[CodeMatrix, t.Tensor]] = [(e.code, grad_mu_BK)]
    if e.auxk is not None and aux_grad_mu_BK is not None:
        on_mu.append((e.auxk.code, aux_grad_mu_BK))

    grad_W_enc_FD, grad_b_enc_F = t.zeros(()), t.zeros_like(weights.b_enc_F)  # 0 broadcasts
    if e.moments is not None:
        factor_F = (objective.kl_weight / prior_std.square()).expand_as(grad_b_enc_F)
        grad_W_enc_FD = e.moments.cross_FD.mul_(factor_F[:, None])
        grad_b_enc_F = e.moments.mean_F * factor_F
    for code, grad_BK in on_mu:
        grad_W_enc_FD = code.outer(grad_BK, centred_BD).add_(grad_W_enc_FD)
        grad_b_enc_F.scatter_add_(0, code.indices_BK.flatten(), grad_BK.flatten())
    grad_b_dec_D = grad_hat_BD.sum(0) - grad_b_enc_F @ W_enc_FD
    return grad_W_enc_FD, grad_b_enc_F, grad_W_dec_FD.t(), grad_b_dec_D


class AuxKLoss(NamedTuple):
    """`dead_features_loss` and its gradient. Only reads the weights of dead features."""

    loss: t.Tensor
    values_BK: t.Tensor
    code: SubsetCode
    """each row's selected dead features"""
    aux_error_BD: t.Tensor
    scale: t.Tensor
    """1 / the residual's variance"""

    @classmethod
    def of(
        cls,
        means: BatchMeans,
        dead_F: t.Tensor,
        W_dec_FD: t.Tensor,
        error_BD: t.Tensor,
        objective: StepObjective,
    ) -> "AuxKLoss | None":
        """See `dead_features_loss`. None if no feature is dead."""
        dead = dead_F.nonzero().squeeze(1)
        k_aux = min(objective.top_k_aux, len(dead))
        if k_aux == 0:
            return None
        values_BK, places_BK = top_k(means.of(dead), k_aux, rectified=means.rectify)
        values_BK = values_BK.clamp_(min=0)
        code = SubsetCode(places_BK, dead, len(dead_F), objective.matmul_dtype, name="aux_code")
        aux_error_BD = code.combine(values_BK, W_dec_FD) + error_BD
        residual_variance = row_variance(error_BD)
        scale = t.where(residual_variance > 0, 1 / residual_variance, 0.0)
        loss = aux_error_BD.square().sum(-1).mean() * scale
        return cls(loss, values_BK, code, aux_error_BD, scale)

    def backward(self, weight: float) -> tuple[t.Tensor, t.Tensor]:
        """The gradients of weight * loss at the code's means, (B, K), and at W_dec, (F, D)."""
        grad_BD = self.aux_error_BD * (self.scale * (2 * weight / len(self.aux_error_BD)))
        grad_mu_BK = self.code.project(grad_BD).masked_fill_(self.values_BK == 0, 0)
        return grad_mu_BK, self.code.outer(self.values_BK, grad_BD)
