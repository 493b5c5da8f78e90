"""One training step of a vSAE: the loss of a batch, and its gradients, derived by hand.

    mu_BF = W_enc (x - b_dec) + b_enc                     (then ReLU if rectify)
    I, v  = the K selected features and their values      (`select.draw_code`)
    x_hat = W_dec f + b_dec,  f = v on I, 0 elsewhere
    loss  = mean_B ||x - x_hat||^2 + kl_weight mean_B sum_{i in S} KL_i + auxk_alpha aux

S is all features, or I (`kl_scope`). A trainer gives the `Weights` and the `StepObjective`, and gets the `LossTerms`.
The same loss, written densely for autograd, is the reference in the tests.

Only the encoder and the choice of the K largest go through B x F numbers, some rows at a time. The
reconstruction and its gradient have K values per row. The KL over all features, and its gradient at mu,
come from second moments of the batch (`encode.py`). B x F numbers are held at once for the KL's
gradient at a learned log-variance, for a ReLU, and where dense products of the code are faster
(`products.py`).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch as t

from ...config.sae import Variational
from ..posterior import kl_scale, noise_scale, point_kl, survival_target, variance_kl
from ..ranks import ALONE, Ranks
from .encode import BatchLogVariance, BatchMeans, Moments
from .products import Code, DenseCode, SparseCode, StepForm, SubsetCode, top_k_code
from .select import Draw, DrawnCode, draw_batch, top_k


class Weights(NamedTuple):
    """The parameters of a vSAE, in upstream's shapes. Only a learned sigma has the last two."""

    W_enc_FD: t.Tensor
    b_enc_F: t.Tensor
    W_dec_DF: t.Tensor
    b_dec_D: t.Tensor
    W_var_FD: t.Tensor | None = None
    b_var_F: t.Tensor | None = None


@dataclass(frozen=True)
class StepObjective:
    """What one step minimises. Plain numbers are known on the host; tensors stay on the device."""

    k: int
    settings: Variational
    kl_weight: float
    """beta s(t)"""
    noise_scale: float
    """tau(t)"""
    auxk_alpha: float
    top_k_aux: int
    """how many dead features AuxK takes per row"""
    dead_feature_threshold: int
    """tokens without firing after which a feature is dead"""
    matmul_dtype: t.dtype
    sigma: t.Tensor
    """of the fixed posterior, in the activations' units, like prior_std: 0-dim, or (B, 1) for one of each row"""
    prior_std: t.Tensor
    """0-dim"""
    log_var_limits: t.Tensor | None
    """the lower and the upper limit of a learned posterior's log-variance"""
    tokens_since_fired_F: t.Tensor
    """before this batch"""
    generator: t.Generator
    form: StepForm
    """how the step is computed; up to rounding, the numbers do not depend on it"""
    ranks: Ranks = ALONE
    """the processes that share the batch: its statistics cover all ranks, the loss only this one"""
    measures_kl: bool = True
    """whether the log or the gradient needs the KL; without it `kl_loss` is 0"""
    kl_scale: float = 1.0
    """s(t), which is in `kl_weight`: for the log"""

    @classmethod
    def at(
        cls, step: int, settings: Variational, steps: int, *, logs_kl: bool = True, **given: Any
    ) -> "StepObjective":
        """That of a step of a run of `steps`, which the settings' schedules weigh.

        Arguments:
            logs_kl: whether the KL is wanted where its weight is 0.
            given: the other fields.
        """
        schedules = settings.in_steps(steps)
        tau = noise_scale(step, schedules["noise_anneal"])
        if settings.survival is not None:  # sigma itself fades
            tau = float(survival_target(step, settings.survival, schedules["noise_anneal"]) < 1)
        warmup = schedules["kl_warmup"]
        assert warmup is not None, "it has a default"
        scale = kl_scale(step, settings.kl_schedule, warmup)
        kl_weight = settings.beta * scale
        return cls(
            settings=settings,
            kl_weight=kl_weight,
            kl_scale=scale,
            noise_scale=tau,
            measures_kl=logs_kl or kl_weight != 0,
            **given,
        )


class LossTerms(NamedTuple):
    """The loss and its parts: 0-dim, but those that end in _F are (F,). Only `loss` has a gradient."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """mean over the batch of ||x - x_hat||^2"""
    kl_loss: t.Tensor
    """nats per token, before beta and s(t); see `StepObjective.measures_kl`"""
    auxk_loss: t.Tensor
    """AuxK's loss, relative to the residual's variance, before auxk_alpha"""
    mean_threshold: t.Tensor
    """each row's smallest positive selected mean, or magnitude (see `PosteriorOptions.select_by`),
    averaged over rows; NaN if no row has one. This and what follows is of the rows of all ranks"""
    survival: t.Tensor
    """the share of the rows' noiseless top k that the noise leaves selected"""
    tokens_since_fired_F: t.Tensor
    """after this batch; a feature fires when it is selected by the mean"""


def variational_loss(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> LossTerms:
    """The loss of one batch, differentiable in `x_BD` and `weights`. Draws from the generator."""
    if not t.is_grad_enabled():
        return _evaluate(x_BD, weights, objective, for_gradients=False)[0]
    return LossTerms(*_VariationalLoss.apply(x_BD, *weights, objective))


def code_by_mean(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective
) -> tuple[t.Tensor, t.Tensor, t.Tensor]:
    """What the objective's k selects without noise: x_hat - x (B, D), indices and values (B, K)."""
    without = {"noise_scale": 0.0, "kl_weight": 0.0, "measures_kl": False, "auxk_alpha": 0.0}
    weights = weights._replace(W_var_FD=None, b_var_F=None)
    with t.no_grad():
        found = _evaluate(x_BD, weights, replace(objective, **without), for_gradients=False)[1]
    return found.error_BD, found.draw.indices_BK, found.draw.values_BK


def loss_and_gradients(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective
) -> tuple[LossTerms, tuple[t.Tensor | None, ...]]:
    """`variational_loss` without autograd: its terms, and the gradient of each of `weights`."""
    with t.no_grad():
        terms, forward_pass = _evaluate(x_BD, weights, objective)
        return terms, _gradients(forward_pass, weights, objective, x_grad=False)[1:]


class _VariationalLoss(t.autograd.Function):
    """The gradients are computed with the loss. `backward` only scales them: the loss is a scalar."""

    @staticmethod
    def forward(ctx, x_BD, W_enc, b_enc, W_dec, b_dec, W_var, b_var, objective):
        weights = Weights(W_enc, b_enc, W_dec, b_dec, W_var, b_var)
        terms, forward_pass = _evaluate(x_BD, weights, objective)
        if any(ctx.needs_input_grad):
            x_grad = ctx.needs_input_grad[0]
            ctx.gradients = _gradients(forward_pass, weights, objective, x_grad=x_grad)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @t.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if g is None else g * grad_loss for g in ctx.gradients), None


def _evaluate(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective, *, for_gradients: bool = True
) -> "tuple[LossTerms, _ForwardPass]":
    """The loss of one batch, and what its gradients need.

    Without `for_gradients`, what only the KL's gradient needs is not computed.
    """
    matmul_dtype, settings = objective.matmul_dtype, objective.settings
    needs_all_kl = settings.kl_scope == "all" and objective.measures_kl
    has_kl_gradient = for_gradients and objective.kl_weight != 0
    centred_BD = x_BD - weights.b_dec_D
    means = BatchMeans(
        centred_BD,
        weights.W_enc_FD,
        weights.b_enc_F,
        rectify=settings.rectify,
        matmul_dtype=matmul_dtype,
        keep=settings.rectify and objective.form.keeps_rectified,
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
            with_gradient=has_kl_gradient,
        )
    tau = 0.0 if settings.posterior == "point" else objective.noise_scale
    noise = settings.noise_on, tau, objective.generator
    how = Draw(objective.k, *noise, settings.select_by)
    draw = draw_batch(means, objective.sigma, log_var, how, objective.form.rows_at_once)
    W_dec_FD = weights.W_dec_DF.t().contiguous()  # no copy when W is stored by feature
    code = top_k_code(draw.indices_BK, len(W_dec_FD), matmul_dtype, objective.form)
    error_BD = code.combine(draw.values_BK, W_dec_FD).add_(weights.b_dec_D).sub_(x_BD)

    has_one_B = draw.smallest_B < t.inf
    smallest_sum = draw.smallest_B.masked_fill(~has_one_B, 0).sum()
    fired_F, n_with_one, n_survived, smallest_sum = objective.ranks.sums(
        draw.fired_F, has_one_B.sum(), draw.survived_B.sum(), smallest_sum
    )
    tokens = len(x_BD) * objective.ranks.count
    since_fired_F = (objective.tokens_since_fired_F + tokens).masked_fill_(fired_F.bool(), 0)
    l2_loss = t.linalg.vector_norm(error_BD).square() / len(x_BD)
    moments = means.moments(with_cross=has_kl_gradient) if needs_all_kl else None
    kl_loss = l2_loss.new_zeros(())
    if objective.measures_kl:
        kl_loss = _batch_kl(moments, draw, objective)
    auxk = None
    if objective.auxk_alpha > 0:
        dead_F = since_fired_F >= objective.dead_feature_threshold
        auxk = AuxKLoss.of(means, dead_F, W_dec_FD, error_BD, objective)
    auxk_loss = l2_loss.new_zeros(()) if auxk is None else auxk.loss
    terms = LossTerms(
        loss=l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss,
        l2_loss=l2_loss,
        kl_loss=kl_loss,
        auxk_loss=auxk_loss,
        mean_threshold=smallest_sum / n_with_one,
        survival=n_survived / (tokens * objective.k),
        tokens_since_fired_F=since_fired_F,
    )
    return terms, _ForwardPass(means, log_var, draw, code, error_BD, moments, auxk)


class _ForwardPass(NamedTuple):
    """What the gradients need of the forward pass."""

    means: BatchMeans
    log_var: BatchLogVariance | None
    draw: DrawnCode
    code: SparseCode | DenseCode
    error_BD: t.Tensor
    """x_hat - x"""
    moments: Moments | None
    """for the KL over all features; else None"""
    auxk: "AuxKLoss | None"


def _batch_kl(moments: Moments | None, draw: DrawnCode, objective: StepObjective) -> t.Tensor:
    """The KL from the prior in nats per token, averaged over the batch: 0-dim.

    A sigma that `survival` controls is not part of it.

    Arguments:
        moments: of all features; None for the KL of the selected ones.
    """
    prior_std, settings = objective.prior_std, objective.settings
    has_sigma = settings.posterior == "fixed" and settings.survival is None
    std = objective.sigma if has_sigma else None
    if moments is None:
        kl_BK = point_kl(draw.mu_BK, prior_std)
        if std is not None:
            kl_BK = kl_BK + variance_kl(2 * std.log(), prior_std)
        if draw.log_var is not None:
            kl_BK = kl_BK + variance_kl(draw.log_var.selected_BK, prior_std)
        return kl_BK.sum(-1).mean()

    mean_kl_F = moments.square_F / (2 * prior_std.square())
    if std is not None:
        mean_kl_F = mean_kl_F + variance_kl(2 * std.log(), prior_std).mean()
    if draw.log_var is not None and draw.log_var.kl_sum_F is not None:
        mean_kl_F = mean_kl_F + draw.log_var.kl_sum_F / len(draw.smallest_B)
    return mean_kl_F.sum()


def _gradients(
    forward_pass: _ForwardPass, weights: Weights, objective: StepObjective, *, x_grad: bool
) -> tuple[t.Tensor | None, ...]:
    """The loss's gradients at x (None without `x_grad`) and at each of `weights`."""
    e, batch = forward_pass, len(forward_pass.error_BD)
    W_enc_FD, centred_BD = weights.W_enc_FD, e.means.centred_BD
    grad_hat_BD = e.error_BD * (2 / batch)
    # AuxK's first: its products may be dense, and no other gradient is held yet.
    aux_grad_mu_BK = aux_grad_W_dec_FD = None
    if e.auxk is not None:
        aux_grad_mu_BK, aux_grad_W_dec_FD = e.auxk.backward(objective.auxk_alpha)
    grad_values_BK = e.code.project(grad_hat_BD)
    grad_W_dec_FD = e.code.outer(e.draw.values_BK, grad_hat_BD)
    if aux_grad_W_dec_FD is not None:
        grad_W_dec_FD = aux_grad_W_dec_FD.add_(grad_W_dec_FD)
    # The KL's gradient is mu / p^2 at mu, and (sigma^2 / p^2 - 1) / 2 at log_var, times its weight.
    # It is on the selected features, or on all.
    grad_mu_BK = grad_values_BK
    if objective.settings.kl_scope == "selected":
        kl_weight = objective.kl_weight / objective.prior_std.square()
        grad_mu_BK = grad_mu_BK + e.draw.mu_BK * (kl_weight / batch)
    if objective.settings.rectify:
        grad_mu_BK = grad_mu_BK * (e.draw.mu_BK > 0)
    on_mu: list[tuple[Code, t.Tensor]] = [(e.code, grad_mu_BK)]
    if e.auxk is not None and aux_grad_mu_BK is not None:
        if objective.settings.rectify:
            aux_grad_mu_BK = aux_grad_mu_BK * (e.auxk.values_BK > 0)
        on_mu.append((e.auxk.code, aux_grad_mu_BK))

    grad_W_enc_FD, grad_b_enc_F = t.zeros(()), t.zeros_like(weights.b_enc_F)  # 0 broadcasts
    grad_x_BD = -grad_hat_BD if x_grad else None
    if e.moments is not None and e.moments.cross_FD is not None:
        factor_F = (objective.kl_weight / objective.prior_std.square()).expand_as(grad_b_enc_F)
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
    e: _ForwardPass, grad_values_BK: t.Tensor, objective: StepObjective, *, x_grad: bool
) -> tuple[t.Tensor, t.Tensor, t.Tensor | None]:
    """The loss's gradients at W_var, b_var and, if `x_grad`, x."""
    assert e.log_var is not None
    assert e.draw.log_var is not None
    batch, drawn = len(e.error_BD), e.draw.log_var
    selected_BK = t.zeros_like(grad_values_BK)
    if objective.settings.noise_on != "selection":  # dz / dlog_var = sigma eps tau / 2
        selected_BK = grad_values_BK * (e.draw.values_BK - e.draw.mu_BK) / 2
    if objective.settings.kl_scope == "selected":
        excess_BK = drawn.selected_BK.exp() / objective.prior_std.square() - 1
        selected_BK = selected_BK + excess_BK * (objective.kl_weight / (2 * batch))
    selected_BK = selected_BK * drawn.is_inside_BK
    weight_FD = e.log_var.weight_FD
    grad_W_FD = e.code.outer(selected_BK, e.means.centred_BD)
    grad_b_F = t.zeros_like(weight_FD[:, 0])
    grad_b_F.scatter_add_(0, e.code.indices_BK.flatten(), selected_BK.flatten())
    grad_x_BD = e.code.combine(selected_BK, weight_FD) if x_grad else None

    if drawn.kl_gradient_sum_F is not None:
        factor_F = t.full_like(grad_b_F, objective.kl_weight / batch)
        grad_W_FD.addcmul_(e.log_var.kl_outer(), factor_F[:, None])
        grad_b_F.addcmul_(drawn.kl_gradient_sum_F, factor_F)
        if grad_x_BD is not None:
            grad_x_BD = grad_x_BD + e.log_var.kl_combine(weight_FD * factor_F[:, None])
    return grad_W_FD, grad_b_F, grad_x_BD


class AuxKLoss(NamedTuple):
    """AuxK: dead features learn to reconstruct what the living ones do not (Gao et al. 2024, A.2).

    It is upstream's `TopKTrainer.get_auxiliary_loss`, with its gradient.
    """

    loss: t.Tensor
    """||residual - its reconstruction||^2, relative to the residual's variance (0-dim)"""
    values_BK: t.Tensor
    is_dead_BK: t.Tensor
    """false for a living feature, taken because there were too few dead ones"""
    code: Code
    """each row's largest dead features"""
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
        """Reconstruct the residual from each row's `top_k_aux` largest dead features.

        If `form.reads_dead_count`, having no dead features costs nothing, and None is returned.
        Otherwise `top_k_aux` features are always taken, and living ones among them count as zero.

        Arguments:
            dead_F: which features are dead (bool), the same on all ranks.
            error_BD: x_hat - x; no gradient flows through it. The residual's variance is of the rows
                of all ranks.
        """
        form, matmul_dtype = objective.form, objective.matmul_dtype
        select_by = objective.settings.select_by
        k_aux = min(objective.top_k_aux, len(dead_F))
        rows_at_once, how = form.rows_at_once, {"rectified": means.rectify, "select_by": select_by}
        if form.reads_dead_count:
            dead = dead_F.nonzero().squeeze(1)
            k_aux = min(k_aux, len(dead))
            if k_aux == 0:
                return None
            blocks = means.row_blocks(len(dead))
            parts = [top_k(means.of(rows, dead), k_aux, rows_at_once, **how) for rows in blocks]
            values_BK, places_BK = (t.cat(tensors) for tensors in zip(*parts, strict=True))
            code = SubsetCode(places_BK, dead, len(dead_F), matmul_dtype, form, name="aux_code")
        else:
            blocks = means.row_blocks(len(dead_F))
            least = 0.0 if select_by == "magnitude" else -t.inf
            masked = (means.of(rows).masked_fill(~dead_F, least) for rows in blocks)
            parts = [top_k(mu_BF, k_aux, rows_at_once, **how) for mu_BF in masked]
            values_BK, indices_BK = (t.cat(tensors) for tensors in zip(*parts, strict=True))
            code = top_k_code(indices_BK, len(dead_F), matmul_dtype, form, name="aux_code")
        is_dead_BK = dead_F[code.indices_BK]
        values_BK = values_BK.masked_fill(~is_dead_BK, 0.0)
        aux_error_BD = code.combine(values_BK, W_dec_FD) + error_BD
        residual_variance = row_variance(error_BD, objective.ranks)
        scale = t.where(residual_variance > 0, 1 / residual_variance, 0.0)
        scale = scale * dead_F.any()  # without dead features there is nothing to reconstruct with
        loss = aux_error_BD.square().sum(-1).mean() * scale
        return cls(loss, values_BK, is_dead_BK, code, aux_error_BD, scale)

    def backward(self, weight: float) -> tuple[t.Tensor, t.Tensor]:
        """The gradients of weight * loss at the code's means, (B, K), and at W_dec, (F, D)."""
        grad_BD = self.aux_error_BD * (self.scale * (2 * weight / len(self.aux_error_BD)))
        grad_values_BK = self.code.project(grad_BD) * self.is_dead_BK
        return grad_values_BK, self.code.outer(self.values_BK, grad_BD)


def row_variance(error_BD: t.Tensor, ranks: Ranks) -> t.Tensor:
    """The mean over the rows of all ranks of the squared distance from their mean (0-dim)."""
    mean_D = error_BD.mean(0)
    variance = (error_BD - mean_D).square().sum(-1).mean()
    if ranks.count == 1:
        return variance
    all_ranks = ranks.gather(t.cat([mean_D, variance[None]]))
    means_ND, variances_N = all_ranks[:, :-1], all_ranks[:, -1]
    between_N = (means_ND - means_ND.mean(0)).square().sum(-1)
    return (variances_N + between_N).mean()
