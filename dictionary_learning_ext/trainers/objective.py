"""The vSAE's training objective and its gradients, derived by hand.

One `torch.autograd.Function` computes the loss together with the gradients of every parameter, so
that no B x F tensor is made that the step does not need: the reconstruction's K gradients a row
and the KL's are put into one tensor, and one matmul takes both to the encoder. The same loss,
written densely for autograd, is the reference in the tests.

    mu_BF = W_enc (x - b_dec) + b_enc                     (then ReLU if rectify)
    I, v  = `draw_code`: the K selected features and their values
    x_hat = W_dec f + b_dec
    loss  = mean_B ||x - x_hat||^2 + kl_weight mean_B sum_{i in S} KL_i + auxk_alpha aux
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch as t
from torch.nn import functional

from ..options import ObjectiveOptions, PosteriorOptions
from ..posterior import draw_code, free_bits_kl, point_kl, variance_kl
from .auxk import AuxK
from .codes import DenseCode, SparseCode, pays_sparse, sparse_outer, top_k_code


class Weights(NamedTuple):
    """The parameters of a vSAE, as upstream shapes them; the last two if its sigma is learned."""

    W_enc_FD: t.Tensor
    b_enc_F: t.Tensor
    W_dec_DF: t.Tensor
    b_dec_D: t.Tensor
    W_var_FD: t.Tensor | None = None
    b_var_F: t.Tensor | None = None


@dataclass(frozen=True)
class Objective:
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
    log_var_limits: tuple[t.Tensor, t.Tensor] | None  # of the learned posterior
    tokens_since_fired_F: t.Tensor  # before this batch
    generator: t.Generator


class Terms(NamedTuple):
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


def variational_loss(x_BD: t.Tensor, weights: Weights, objective: Objective) -> Terms:
    """The objective of one batch, differentiable in `x_BD` and `weights`; draws from the generator."""
    return Terms(*_VariationalLoss.apply(x_BD, *weights, objective))


def loss_and_gradients(
    x_BD: t.Tensor, weights: Weights, objective: Objective
) -> tuple[Terms, tuple[t.Tensor | None, ...]]:
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


class _Evaluated(NamedTuple):
    """What the gradients need of the forward pass."""

    centred_BD: t.Tensor
    mu_BF: t.Tensor
    raw_log_var_BF: t.Tensor | None  # before clamping
    log_var_BF: t.Tensor | None
    indices_BK: t.Tensor
    values_BK: t.Tensor
    mu_BK: t.Tensor
    code: SparseCode | DenseCode
    error_BD: t.Tensor  # x_hat - x
    mean_kl_F: t.Tensor | None  # with free bits only
    auxk: AuxK | None


def _evaluate(x_BD: t.Tensor, weights: Weights, objective: Objective) -> tuple[Terms, _Evaluated]:
    dtype, matmul_dtype = weights.W_enc_FD.dtype, objective.matmul_dtype
    centred_BD = x_BD - weights.b_dec_D
    mu_BF = _linear(centred_BD, weights.W_enc_FD, weights.b_enc_F, matmul_dtype)
    if objective.posterior.rectify:
        mu_BF.relu_()
    raw_log_var_BF = log_var_BF = None
    std, noise_scale = objective.sigma, objective.noise_scale
    if weights.W_var_FD is not None:
        assert weights.b_var_F is not None
        assert objective.log_var_limits is not None
        raw_log_var_BF = _linear(centred_BD, weights.W_var_FD, weights.b_var_F, matmul_dtype)
        raw_log_var_BF = raw_log_var_BF.to(dtype)
        log_var_BF = raw_log_var_BF.clamp(*objective.log_var_limits)
        std = (0.5 * log_var_BF).exp()
    elif objective.posterior.posterior == "point":
        noise_scale = 0.0

    indices_BK, values_BK = draw_code(
        mu_BF, std, objective.k, objective.posterior.noise_on, noise_scale, objective.generator
    )
    mu_BK = mu_BF.gather(1, indices_BK).to(values_BK.dtype)
    code = top_k_code(indices_BK, values_BK, weights.W_dec_DF, matmul_dtype)
    error_BD = code.decode() + weights.b_dec_D - x_BD

    # What the mean selects: with noise on the selection, everything would count as fired.
    fired_mu_BK, fired_BK = mu_BK, indices_BK
    if noise_scale != 0 and objective.posterior.noise_on != "values":
        fired_mu_BK, fired_BK = mu_BF.topk(objective.k, dim=-1, sorted=False)
    since_fired_F = (objective.tokens_since_fired_F + len(x_BD)).index_fill_(
        0, fired_BK.flatten(), 0
    )

    l2_loss = error_BD.square().sum(-1).mean()
    kl_loss, mean_kl_F = _kl(mu_BF, mu_BK, log_var_BF, indices_BK, objective)
    auxk = None
    if objective.auxk_alpha > 0:
        dead_F = since_fired_F >= objective.dead_feature_threshold
        auxk = AuxK.of(mu_BF, dead_F, weights.W_dec_DF, error_BD, objective.top_k_aux, matmul_dtype)
    auxk_loss = l2_loss.new_zeros(()) if auxk is None else auxk.loss
    terms = Terms(
        loss=l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss,
        l2_loss=l2_loss,
        kl_loss=kl_loss,
        auxk_loss=auxk_loss,
        mean_variance=std.square().mean(),
        mean_threshold=_mean_threshold(fired_mu_BK),
        tokens_since_fired_F=since_fired_F,
    )
    return terms, _Evaluated(
        centred_BD, mu_BF, raw_log_var_BF, log_var_BF, indices_BK, values_BK, mu_BK, code,
        error_BD, mean_kl_F, auxk,
    )  # fmt: skip


def _kl(
    mu_BF: t.Tensor,
    mu_BK: t.Tensor,
    log_var_BF: t.Tensor | None,
    indices_BK: t.Tensor,
    objective: Objective,
) -> tuple[t.Tensor, t.Tensor | None]:
    """The KL in nats per token, and each feature's mean over the batch if free bits need it.

    Over all features the means enter by their norms, so that no B x F tensor of KLs is made.
    """
    prior_std = objective.prior_std
    if objective.posterior.posterior == "fixed":
        fixed_kl = variance_kl(2 * objective.sigma.log(), prior_std)
    else:
        fixed_kl = t.zeros_like(objective.sigma)

    if objective.options.kl_scope == "selected":
        kl_BK = point_kl(mu_BK, prior_std) + fixed_kl
        if log_var_BF is not None:
            kl_BK = kl_BK + variance_kl(log_var_BF.gather(1, indices_BK), prior_std)
        return kl_BK.sum(-1).mean(), None

    dtype = mu_BK.dtype
    if objective.options.free_bits > 0:
        norm_F = t.linalg.vector_norm(mu_BF, dim=0, dtype=dtype)
        mean_kl_F = point_kl(norm_F, prior_std) / len(mu_BF) + fixed_kl
        if log_var_BF is not None:
            mean_kl_F = mean_kl_F + variance_kl(log_var_BF, prior_std).mean(0)
        return free_bits_kl(mean_kl_F, objective.options.free_bits), mean_kl_F

    kl = point_kl(t.linalg.vector_norm(mu_BF, dtype=dtype), prior_std) / len(mu_BF)
    kl = kl + fixed_kl * mu_BF.shape[1]
    if log_var_BF is not None:
        kl = kl + variance_kl(log_var_BF, prior_std).sum() / len(mu_BF)
    return kl, None


def _mean_threshold(mu_BK: t.Tensor) -> t.Tensor:
    """Upstream's threshold: the mean over rows of the smallest positive selected mean."""
    smallest_B = mu_BK.float().masked_fill(mu_BK <= 0, t.inf).amin(-1)
    has_one_B = smallest_B < t.inf
    return smallest_B.masked_fill(~has_one_B, 0).sum() / has_one_B.sum()


def _gradients(
    evaluated: _Evaluated, weights: Weights, objective: Objective, *, x_grad: bool
) -> tuple[t.Tensor | None, ...]:
    """Of x (if `x_grad`) and of each of `weights`. Overwrites `evaluated.mu_BF`."""
    e, batch = evaluated, len(evaluated.centred_BD)
    grad_hat_BD = e.error_BD * (2 / batch)
    grad_values_BK, grad_W_dec_DF = e.code.backward(grad_hat_BD)
    on_mu = [(e.indices_BK, grad_values_BK)]
    on_log_var = []
    if objective.posterior.noise_on != "selection":  # dz / dlog_var = sigma eps tau / 2
        on_log_var.append((e.indices_BK, grad_values_BK * (e.values_BK - e.mu_BK) / 2))
    if e.auxk is not None:
        aux_grad_mu_BK, aux_grad_W_dec_DF = e.auxk.backward(objective.auxk_alpha)
        on_mu.append((e.auxk.indices_BK, aux_grad_mu_BK))
        grad_W_dec_DF = grad_W_dec_DF + aux_grad_W_dec_DF
    if objective.posterior.rectify:
        on_mu = [(i, grad * (e.mu_BF.gather(1, i) > 0)) for i, grad in on_mu]

    # The KL's gradients are mu / p^2 and (sigma^2 / p^2 - 1) / 2, times this number (a number a
    # feature with free bits), on all features or on the selected.
    kl_factor = e.error_BD.new_full((), objective.kl_weight / batch)
    if e.mean_kl_F is not None:
        kl_factor = kl_factor * (e.mean_kl_F > objective.options.free_bits)
    prior_var = objective.prior_std.square()
    dense_mu_BF = dense_log_var_BF = None
    if objective.kl_weight != 0 and objective.options.kl_scope == "all":
        dense_mu_BF = e.mu_BF.mul_(kl_factor / prior_var)
        if e.log_var_BF is not None:
            dense_log_var_BF = (e.log_var_BF.exp() / prior_var - 1) * (kl_factor / 2)
    elif objective.kl_weight != 0:
        on_mu.append((e.indices_BK, e.mu_BK * (kl_factor / prior_var)))
        if e.log_var_BF is not None:
            var_BK = e.log_var_BF.gather(1, e.indices_BK).exp()
            on_log_var.append((e.indices_BK, (var_BK / prior_var - 1) * (kl_factor / 2)))

    def through_linear(dense_BF, scattered, W_FD):
        return _linear_gradients(
            dense_BF, scattered, e.centred_BD, W_FD, objective.matmul_dtype, x_grad
        )

    grad_W_enc_FD, grad_b_enc_F, grad_x_BD = through_linear(dense_mu_BF, on_mu, weights.W_enc_FD)
    grad_b_dec_D = grad_hat_BD.sum(0) - grad_b_enc_F @ weights.W_enc_FD
    grad_W_var_FD = grad_b_var_F = None
    if e.raw_log_var_BF is not None:
        assert objective.log_var_limits is not None
        assert weights.W_var_FD is not None
        low, high = objective.log_var_limits
        inside_BF = (e.raw_log_var_BF >= low) & (e.raw_log_var_BF <= high)
        on_log_var = [(i, grad * inside_BF.gather(1, i)) for i, grad in on_log_var]
        if dense_log_var_BF is not None:
            dense_log_var_BF.mul_(inside_BF)
        grad_W_var_FD, grad_b_var_F, var_grad_x_BD = through_linear(
            dense_log_var_BF, on_log_var, weights.W_var_FD
        )
        grad_b_dec_D = grad_b_dec_D - grad_b_var_F @ weights.W_var_FD
        if grad_x_BD is not None and var_grad_x_BD is not None:
            grad_x_BD = grad_x_BD + var_grad_x_BD
    if grad_x_BD is not None:
        grad_x_BD = grad_x_BD - grad_hat_BD
    return (
        grad_x_BD, grad_W_enc_FD, grad_b_enc_F, grad_W_dec_DF, grad_b_dec_D,
        grad_W_var_FD, grad_b_var_F,
    )  # fmt: skip


def _linear(x_BD: t.Tensor, W_FD: t.Tensor, b_F: t.Tensor, matmul_dtype: t.dtype) -> t.Tensor:
    return functional.linear(x_BD.to(matmul_dtype), W_FD.to(matmul_dtype), b_F.to(matmul_dtype))


def _linear_gradients(
    dense_BF: t.Tensor | None,
    scattered: list[tuple[t.Tensor, t.Tensor]],
    x_BD: t.Tensor,
    W_FD: t.Tensor,
    matmul_dtype: t.dtype,
    x_grad: bool,
) -> tuple[t.Tensor, t.Tensor, t.Tensor | None]:
    """The gradients of W, b and x, where y = W x + b has the gradient dense + scattered.

    Arguments:
        dense_BF: overwritten; None where y's gradient is `scattered` alone, and then no B x F
            tensor is made if k-sparse products are faster.
        scattered: pairs of indices (B, K) and values (B, K) to add.
    """
    batch, dict_size = len(x_BD), len(W_FD)
    width = sum(indices_BK.shape[1] for indices_BK, _ in scattered)
    if dense_BF is None and not x_grad and pays_sparse(width, dict_size, x_BD.device):
        grad_W_FD, grad_b_F = t.zeros_like(W_FD), W_FD.new_zeros(dict_size)
        for indices_BK, values_BK in scattered:
            grad_W_FD += sparse_outer(indices_BK, values_BK, x_BD, dict_size)
            grad_b_F.index_add_(0, indices_BK.flatten(), values_BK.flatten())
        return grad_W_FD, grad_b_F, None

    if dense_BF is None:
        dense_BF = x_BD.new_zeros(batch, dict_size, dtype=matmul_dtype)
    for indices_BK, values_BK in scattered:
        dense_BF.scatter_add_(1, indices_BK, values_BK.to(dense_BF.dtype))
    grad_b_F = dense_BF.sum(0, dtype=W_FD.dtype)
    dense_BF = dense_BF.to(matmul_dtype)
    grad_W_FD = (dense_BF.t() @ x_BD.to(matmul_dtype)).to(W_FD.dtype)
    grad_x_BD = (dense_BF @ W_FD.to(matmul_dtype)).to(W_FD.dtype) if x_grad else None
    return grad_W_FD, grad_b_F, grad_x_BD
