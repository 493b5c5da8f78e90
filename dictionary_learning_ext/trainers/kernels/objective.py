"""The vSAE's training objective and its gradients, derived by hand.

One `torch.autograd.Function` computes the loss together with the gradients of every parameter. Only
the encoder and the choice of the K largest go through B x F numbers, and on a CPU some rows at a
time: the reconstruction's gradient has K values a row, and the KL's comes from second moments
(`means.py`). B x F numbers are held at once for a learned log-variance, for a ReLU, where dense
products of the code are the faster ones (`codes.py`), and on a GPU. The same loss, written densely
for autograd, is the reference in the tests.

    mu_BF = W_enc (x - b_dec) + b_enc                     (then ReLU if rectify)
    I, v  = `draw_code`: the K selected features and their values
    x_hat = W_dec f + b_dec
    loss  = mean_B ||x - x_hat||^2 + kl_weight mean_B sum_{i in S} KL_i + auxk_alpha aux
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch as t

from ...config.options import ObjectiveOptions, PosteriorOptions
from ..posterior import free_bits_kl, point_kl, variance_kl
from .auxk import AuxK
from .codes import DenseCode, SparseCode, top_k_code
from .log_variance import LogVariance
from .means import BatchMeans, Moments
from .row_blocks import map_row_blocks
from .selection import MeanSelection, chooses, draw_code
from .step_form import StepForm


class Weights(NamedTuple):
    """The parameters of a vSAE, as upstream shapes them; the last two if its sigma is learned."""

    W_enc_FD: t.Tensor
    b_enc_F: t.Tensor
    W_dec_DF: t.Tensor
    b_dec_D: t.Tensor
    W_var_FD: t.Tensor | None = None
    b_var_F: t.Tensor | None = None


@dataclass(frozen=True)
class StepObjective:
    """What one step minimises. Numbers are known on the host; tensors stay on the device."""

    k: int
    posterior: PosteriorOptions
    options: ObjectiveOptions
    kl_weight: float  # beta s(t)
    noise_scale: float  # tau(t)
    auxk_alpha: float
    top_k_aux: int
    dead_feature_threshold: int  # tokens
    matmul_dtype: t.dtype
    sigma: t.Tensor  # 0-dim, of the fixed posterior; in the model's scale, as is the prior's
    prior_std: t.Tensor  # 0-dim
    log_var_limits: t.Tensor | None  # lower and upper, of the learned posterior
    tokens_since_fired_F: t.Tensor  # before this batch
    generator: t.Generator
    form: StepForm


class LossTerms(NamedTuple):
    """The loss and what it was made of (0-dim but the last). Only `loss` carries a gradient."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """mean over the batch of ||x - x_hat||^2"""
    kl_loss: t.Tensor
    """nats per token, before beta and s(t)"""
    auxk_loss: t.Tensor
    """AuxK's loss, relative to the residual's variance, before auxk_alpha"""
    mean_variance: t.Tensor
    """sigma^2, averaged over tokens and features"""
    mean_threshold: t.Tensor
    """the smallest positive mean that the mean selects, averaged over rows; NaN if no row has one"""
    tokens_since_fired_F: t.Tensor
    """after this batch: a feature fires when the mean's selection holds it"""


def variational_loss(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> LossTerms:
    """The objective of one batch, differentiable in `x_BD` and `weights`; draws from the generator."""
    return LossTerms(*_VariationalLoss.apply(x_BD, *weights, objective))


def loss_and_gradients(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective
) -> tuple[LossTerms, tuple[t.Tensor | None, ...]]:
    """`variational_loss` without autograd: the terms, and the gradients of each of `weights`."""
    with t.no_grad():
        terms, evaluated = _evaluate(x_BD, weights, objective)
        return terms, _gradients(evaluated, weights, objective, x_grad=False)[1:]


class _VariationalLoss(t.autograd.Function):
    """The loss is a scalar: its gradients are computed with it, and only scaled in `backward`."""

    @staticmethod
    def forward(ctx, x_BD, W_enc, b_enc, W_dec, b_dec, W_var, b_var, objective):
        weights = Weights(W_enc, b_enc, W_dec, b_dec, W_var, b_var)
        terms, evaluated = _evaluate(x_BD, weights, objective)
        if any(ctx.needs_input_grad):
            x_grad = ctx.needs_input_grad[0]
            ctx.gradients = _gradients(evaluated, weights, objective, x_grad=x_grad)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @t.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if g is None else g * grad_loss for g in ctx.gradients), None


class _Draw(NamedTuple):
    """A batch's code."""

    indices_BK: t.Tensor
    values_BK: t.Tensor
    mu_BK: t.Tensor
    fired_F: t.Tensor
    smallest_B: t.Tensor


class _Evaluated(NamedTuple):
    """What the gradients need of the forward pass."""

    means: BatchMeans
    log_var: LogVariance | None
    draw: _Draw
    code: SparseCode | DenseCode
    error_BD: t.Tensor  # x_hat - x
    moments: Moments | None  # with the KL over all features only
    mean_kl_F: t.Tensor | None  # with free bits only
    auxk: AuxK | None


def _evaluate(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective
) -> tuple[LossTerms, _Evaluated]:
    matmul_dtype, posterior = objective.matmul_dtype, objective.posterior
    centred_BD = x_BD - weights.b_dec_D
    means = BatchMeans(
        centred_BD,
        weights.W_enc_FD,
        weights.b_enc_F,
        rectify=posterior.rectify,
        matmul_dtype=matmul_dtype,
        keep=x_BD.device.type != "cpu" or posterior.rectify or posterior.posterior == "learned",
        means_at_once=objective.form.means_at_once,
    )
    log_var = None
    if weights.W_var_FD is not None and weights.b_var_F is not None:
        assert objective.log_var_limits is not None
        log_var = LogVariance.of(
            centred_BD, weights.W_var_FD, weights.b_var_F, objective.log_var_limits, matmul_dtype
        )
    draw = _draw(means, log_var, objective)
    W_dec_FD = weights.W_dec_DF.t().contiguous()  # no copy when W is stored by feature
    code = top_k_code(draw.indices_BK, len(W_dec_FD), matmul_dtype, objective.form)
    error_BD = code.combine(draw.values_BK, W_dec_FD).add_(weights.b_dec_D).sub_(x_BD)

    since_fired_F = (objective.tokens_since_fired_F + len(x_BD)).masked_fill_(draw.fired_F, 0)
    l2_loss = t.linalg.vector_norm(error_BD).square() / len(x_BD)
    moments = None
    if objective.options.kl_scope == "all":
        moments = means.moments(with_cross=objective.kl_weight != 0)
    kl_loss, mean_kl_F = _kl(moments, draw, log_var, objective)
    auxk = None
    if objective.auxk_alpha > 0:
        dead_F = since_fired_F >= objective.dead_feature_threshold
        auxk = AuxK.of(
            means, dead_F, W_dec_FD, error_BD, objective.top_k_aux, matmul_dtype, objective.form
        )
    auxk_loss = l2_loss.new_zeros(()) if auxk is None else auxk.loss
    has_one_B = draw.smallest_B < t.inf
    terms = LossTerms(
        loss=l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss,
        l2_loss=l2_loss,
        kl_loss=kl_loss,
        auxk_loss=auxk_loss,
        mean_variance=(objective.sigma if log_var is None else log_var.std_BF).square().mean(),
        mean_threshold=draw.smallest_B.float().masked_fill(~has_one_B, 0).sum() / has_one_B.sum(),
        tokens_since_fired_F=since_fired_F,
    )
    return terms, _Evaluated(means, log_var, draw, code, error_BD, moments, mean_kl_F, auxk)


def _draw(means: BatchMeans, log_var: LogVariance | None, objective: StepObjective) -> _Draw:
    """Select each row's features and draw their values."""
    posterior, k, form = objective.posterior, objective.k, objective.form
    noise_scale = 0.0 if posterior.posterior == "point" else objective.noise_scale
    generator = None if noise_scale == 0 else objective.generator
    batch, dict_size = len(means.centred_BD), len(means.weight_FD)

    def draw(
        mu_BF: t.Tensor, rows: slice, generator: t.Generator | None
    ) -> tuple[t.Tensor, t.Tensor, t.Tensor, MeanSelection]:
        std = objective.sigma if log_var is None else log_var.std_BF[rows]
        indices_BK, values_BK = draw_code(
            mu_BF, std, k, posterior.noise_on, noise_scale, generator, form
        )
        mu_BK = mu_BF.gather(1, indices_BK)
        if chooses(posterior.noise_on, noise_scale):
            return indices_BK, values_BK, mu_BK, MeanSelection.of_means(mu_BF, k, form)
        return indices_BK, values_BK, mu_BK, MeanSelection.of_code(indices_BK, mu_BK, dict_size)

    if means.centred_BD.device.type != "cpu":
        indices_BK, values_BK, mu_BK, fired = draw(means.of(), slice(None), generator)
        return _Draw(indices_BK, values_BK, mu_BK, fired.fired_F, fired.smallest_B)

    with t.inference_mode(False):  # other threads write to them
        values = means.weight_FD.new_empty(2, batch, k)
        indices = values.new_empty(batch, k, dtype=t.int64)
        smallest_B = values.new_empty(batch)
    fired = []
    for block in means.row_blocks(dict_size):
        read = means.reader(block)

        def draw_rows(
            rows: slice, generator: t.Generator | None, read=read, first=block.start
        ) -> t.Tensor:
            places = slice(first + rows.start, first + rows.stop)
            drawn = draw(read(rows), places, generator)
            indices[places], values[0, places], values[1, places], mean = drawn
            smallest_B[places] = mean.smallest_B
            return mean.fired_F

        fired += map_row_blocks(
            draw_rows, block.stop - block.start, dict_size, generator, form.block
        )
    return _Draw(indices, values[0], values[1], t.stack(fired).any(0), smallest_B)


def _kl(
    moments: Moments | None,
    draw: _Draw,
    log_var: LogVariance | None,
    objective: StepObjective,
) -> tuple[t.Tensor, t.Tensor | None]:
    """The KL in nats per token, and each feature's mean over the batch if free bits need it.

    Arguments:
        moments: of all features, or None for the KL of the selected.
    """
    prior_std = objective.prior_std
    if objective.posterior.posterior == "fixed":
        fixed_kl = variance_kl(2 * objective.sigma.log(), prior_std)
    else:
        fixed_kl = t.zeros_like(objective.sigma)

    if moments is None:
        kl_BK = point_kl(draw.mu_BK, prior_std) + fixed_kl
        if log_var is not None:
            kl_BK = kl_BK + log_var.selected_kl(draw.indices_BK, prior_std)
        return kl_BK.sum(-1).mean(), None

    mean_kl_F = moments.square_F / (2 * prior_std.square()) + fixed_kl
    if log_var is not None:
        mean_kl_F = mean_kl_F + log_var.mean_kl(prior_std)
    free_bits = objective.options.free_bits
    return free_bits_kl(mean_kl_F, free_bits), mean_kl_F if free_bits > 0 else None


def _gradients(
    evaluated: _Evaluated, weights: Weights, objective: StepObjective, *, x_grad: bool
) -> tuple[t.Tensor | None, ...]:
    """Of x (if `x_grad`) and of each of `weights`."""
    e, batch = evaluated, len(evaluated.error_BD)
    W_enc_FD, centred_BD = weights.W_enc_FD, e.means.centred_BD
    grad_hat_BD = e.error_BD * (2 / batch)
    grad_values_BK = e.code.project(grad_hat_BD)
    grad_W_dec_FD = e.code.outer(e.draw.values_BK, grad_hat_BD)
    # The KL's gradients are mu / p^2 and (sigma^2 / p^2 - 1) / 2, times its weight, on the
    # selected or on all features; with free bits, on those that have more.
    kl_weight = objective.kl_weight / objective.prior_std.square()
    grad_mu_BK = grad_values_BK
    if objective.options.kl_scope == "selected":
        grad_mu_BK = grad_mu_BK + e.draw.mu_BK * (kl_weight / batch)
    if objective.posterior.rectify:
        grad_mu_BK = grad_mu_BK * (e.draw.mu_BK > 0)
    on_mu = [(e.code, grad_mu_BK)]
    if e.auxk is not None:
        aux_grad_mu_BK, aux_grad_W_dec_FD = e.auxk.backward(objective.auxk_alpha)
        if objective.posterior.rectify:
            aux_grad_mu_BK = aux_grad_mu_BK * (e.auxk.values_BK > 0)
        on_mu.append((e.auxk.code, aux_grad_mu_BK))
        grad_W_dec_FD = grad_W_dec_FD + aux_grad_W_dec_FD

    grad_W_enc_FD, grad_b_enc_F = t.zeros(()), t.zeros_like(weights.b_enc_F)
    grad_x_BD = -grad_hat_BD if x_grad else None
    if e.moments is not None and e.moments.cross_FD is not None:
        factor_F = kl_weight.expand_as(grad_b_enc_F)
        if e.mean_kl_F is not None:
            factor_F = factor_F * (e.mean_kl_F > objective.options.free_bits)
        grad_W_enc_FD = e.moments.cross_FD.mul_(factor_F[:, None])
        grad_b_enc_F = e.moments.mean_F * factor_F
        if grad_x_BD is not None:
            grad_x_BD = grad_x_BD + e.means.combine(factor_F / batch)
    for code, grad_BK in on_mu:
        grad_W_enc_FD = code.outer(grad_BK, centred_BD).add_(grad_W_enc_FD)
        grad_b_enc_F.scatter_add_(0, code.indices_BK.flatten(), grad_BK.flatten())
        if grad_x_BD is not None:
            grad_x_BD = grad_x_BD + code.combine(grad_BK, W_enc_FD)
    grad_b_dec_D = grad_hat_BD.sum(0) - grad_b_enc_F @ W_enc_FD

    grad_W_var_FD = grad_b_var_F = None
    if e.log_var is not None:
        grad_W_var_FD, grad_b_var_F, var_grad_x_BD = _log_var_gradients(
            e, grad_values_BK, objective, x_grad=x_grad
        )
        grad_b_dec_D = grad_b_dec_D - grad_b_var_F @ e.log_var.weight_FD
        if grad_x_BD is not None and var_grad_x_BD is not None:
            grad_x_BD = grad_x_BD + var_grad_x_BD
    return (
        grad_x_BD, grad_W_enc_FD, grad_b_enc_F, grad_W_dec_FD.t(), grad_b_dec_D,
        grad_W_var_FD, grad_b_var_F,
    )  # fmt: skip


def _log_var_gradients(
    e: _Evaluated, grad_values_BK: t.Tensor, objective: StepObjective, *, x_grad: bool
) -> tuple[t.Tensor, t.Tensor, t.Tensor | None]:
    """Of W_var, b_var and, if `x_grad`, x."""
    assert e.log_var is not None
    selected_BK = t.zeros_like(grad_values_BK)
    if objective.posterior.noise_on != "selection":  # dz / dlog_var = sigma eps tau / 2
        selected_BK = grad_values_BK * (e.draw.values_BK - e.draw.mu_BK) / 2
    dense_BF = None
    if objective.kl_weight != 0:
        kl_BF = e.log_var.kl_gradient(objective.prior_std)
        weight = objective.kl_weight / len(e.error_BD)
        if e.moments is None:
            selected_BK = selected_BK + weight * kl_BF.gather(1, e.code.indices_BK)
        else:
            dense_BF = kl_BF.mul_(weight)
            if e.mean_kl_F is not None:
                dense_BF.mul_(e.mean_kl_F > objective.options.free_bits)
    return e.log_var.backward(e.code, selected_BK, dense_BF, objective.matmul_dtype, x_grad=x_grad)
