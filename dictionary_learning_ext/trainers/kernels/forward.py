"""A step's forward pass: the code that is drawn, and the loss.

Only the encoder and the choice of the K largest go through B x F numbers, some rows at a time. The
KL over all features comes from second moments (`means.py`). B x F numbers are held at once for the
KL's gradient at a learned log-variance, for a ReLU, and where dense products of the code are faster
(`codes.py`).
"""

from typing import NamedTuple

import torch as t

from .auxk import AuxKLoss
from .codes import DenseCode, SparseCode, top_k_code
from .drawn_code import DrawnCode
from .kl import batch_kl
from .log_variance import BatchLogVariance
from .means import BatchMeans, Moments
from .objective import LossTerms, StepObjective, Weights
from .selection import draw_batch


class ForwardPass(NamedTuple):
    """What the gradients need of the forward pass."""

    means: BatchMeans
    log_var: BatchLogVariance | None
    draw: DrawnCode
    code: SparseCode | DenseCode
    error_BD: t.Tensor
    """x_hat - x"""
    moments: Moments | None
    """for the KL over all features; else None"""
    auxk: AuxKLoss | None


def evaluate(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective
) -> tuple[LossTerms, ForwardPass]:
    """The loss of one batch, and what its gradients need."""
    matmul_dtype, posterior = objective.matmul_dtype, objective.posterior
    needs_all_kl = objective.options.kl_scope == "all" and objective.measures_kl
    centred_BD = x_BD - weights.b_dec_D
    means = BatchMeans(
        centred_BD,
        weights.W_enc_FD,
        weights.b_enc_F,
        rectify=posterior.rectify,
        matmul_dtype=matmul_dtype,
        keep=posterior.rectify and objective.form.keeps_rectified,
        means_at_once=objective.form.means_at_once,
    )
    log_var = None
    if weights.W_var_FD is not None and weights.b_var_F is not None:
        assert objective.log_var_limits is not None
        log_var = BatchLogVariance(
            centred_BD,
            weights.W_var_FD,
            weights.b_var_F,
            objective.log_var_limits,
            objective.prior_std,
            matmul_dtype=matmul_dtype,
            with_kl=needs_all_kl,
            with_gradient=objective.kl_weight != 0,
        )
    draw = draw_batch(
        means,
        objective.sigma,
        log_var,
        objective.k,
        posterior.noise_on,
        0.0 if posterior.posterior == "point" else objective.noise_scale,
        objective.generator,
        objective.form.rows_at_once,
        select_by=posterior.select_by,
    )
    W_dec_FD = weights.W_dec_DF.t().contiguous()  # no copy when W is stored by feature
    code = top_k_code(draw.indices_BK, len(W_dec_FD), matmul_dtype, objective.form)
    error_BD = code.combine(draw.values_BK, W_dec_FD).add_(weights.b_dec_D).sub_(x_BD)

    has_one_B = draw.smallest_B < t.inf
    smallest_sum = draw.smallest_B.masked_fill(~has_one_B, 0).sum()
    fired_F, n_with_one, smallest_sum = objective.ranks.sums(
        draw.fired_F, has_one_B.sum(), smallest_sum
    )
    tokens = len(x_BD) * objective.ranks.count
    since_fired_F = (objective.tokens_since_fired_F + tokens).masked_fill_(fired_F.bool(), 0)
    l2_loss = t.linalg.vector_norm(error_BD).square() / len(x_BD)
    moments = means.moments(with_cross=objective.kl_weight != 0) if needs_all_kl else None
    kl_loss = l2_loss.new_zeros(())
    if objective.measures_kl:
        kl_loss = batch_kl(moments, draw, objective)
    auxk = None
    if objective.auxk_alpha > 0:
        dead_F = since_fired_F >= objective.dead_feature_threshold
        auxk = AuxKLoss.of(
            means,
            dead_F,
            W_dec_FD,
            error_BD,
            objective.top_k_aux,
            matmul_dtype,
            objective.form,
            objective.ranks,
            select_by=posterior.select_by,
        )
    auxk_loss = l2_loss.new_zeros(()) if auxk is None else auxk.loss
    terms = LossTerms(
        loss=l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss,
        l2_loss=l2_loss,
        kl_loss=kl_loss,
        auxk_loss=auxk_loss,
        mean_threshold=smallest_sum / n_with_one,
        tokens_since_fired_F=since_fired_F,
    )
    return terms, ForwardPass(means, log_var, draw, code, error_BD, moments, auxk)
