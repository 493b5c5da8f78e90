"""Defines the training step of a vSAE: the loss of a batch, in plain torch with autograd.

    mu_BF = W_enc (x - b_dec) + b_enc                     (then ReLU if rectify)
    z_BF  = mu + tau sigma eps,  eps ~ N(0, I)
    I     = the K largest of z (noise_on both, selection) or of mu (values)
    f     = z (both, values) or mu (selection) on I, 0 elsewhere
            over a batch: I is the B K largest of all rows, and a ReLU is applied to f
    x_hat = W_dec f + b_dec
    loss  = mean_B ||x - x_hat||^2 + kl_weight mean_B sum_{i in S} KL_i + auxk_alpha AuxK

S is all features, or only I (`kl_scope`). `variational_loss` takes any dtype and device, and never makes the host wait
for a GPU. In float32 on a CPU, trainers use the compiled version of this step in `kernels/step.py`. If the features are
split over processes, each process runs this step on its `part` of them.

A transcoder reconstructs another activation than it reads: in all of the above y takes the place of x, except that
mu_BF = W_enc x + b_enc.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch as t

from ..config.sae import NoiseOn, SelectBy, Variational
from .matmuls import Densities, product
from .parts import WHOLE, Part, Selection
from .posterior import fixed_variance_kl, kl_scale, noise_scale, variance_kl
from .sparse_sum import SparseSum, starts_of, weighted_sums

MaybeTensor = TypeVar("MaybeTensor", t.Tensor, t.Tensor | None)


class Weights(NamedTuple):
    """The parameters of a vSAE, in upstream's shapes. The last two are None unless sigma is learned."""

    W_enc_FD: t.Tensor
    b_enc_F: t.Tensor
    W_dec_DF: t.Tensor
    b_dec_D: t.Tensor
    W_var_FD: t.Tensor | None = None
    b_var_F: t.Tensor | None = None


def schedules_at(step: int, settings: Variational) -> dict[str, float]:
    """A step's place in the schedules: kl_scale is s(t), and noise_scale is tau(t)."""
    fading = settings.noise_anneal_steps if settings.posterior != "point" else None
    return {
        "kl_scale": kl_scale(step, settings.kl_schedule, settings.kl_warmup_steps),
        "noise_scale": noise_scale(step, fading),
    }


@dataclass(frozen=True)
class StepObjective:
    """What one step minimises. Tensors are on the weights' device, and are never read on the host."""

    k: int
    settings: Variational
    """resolved"""
    kl_weight: float
    """beta s(t)"""
    kl_of_sigma: float
    """what a fixed sigma adds to each feature's KL, in nats; 0 for any other sigma"""
    noise_scale: float
    """tau(t)"""
    auxk_alpha: float
    top_k_aux: int
    """how many dead features AuxK uses per row"""
    dead_feature_threshold: int
    """tokens without firing after which a feature is dead"""
    matmul_dtype: t.dtype
    sigma: t.Tensor
    """the noise's standard deviation, unless it is learned: 0-dim"""
    log_var_limits: t.Tensor | None
    """the lower and the upper limit of a learned log-variance; otherwise None"""
    tokens_since_fired_F: t.Tensor
    """before this batch"""
    generator: t.Generator
    part: Part = WHOLE
    """which of the dictionary's features the weights hold"""
    y_BD: t.Tensor | None = None
    """what a transcoder reconstructs from x; None: x itself"""

    @classmethod
    def at(
        cls, step: int, settings: Variational, *, energy: float, **given: Any
    ) -> "StepObjective":
        """The objective of a step, after the settings and their schedules.

        Arguments:
            energy: E||x||^2 of the activations.
            given: the fields that the settings don't tell.
        """
        now, sigma = schedules_at(step, settings), settings.sigma_of(energy)
        return cls(
            k=settings.kept_per_token or 0,
            settings=settings,
            kl_weight=settings.beta * now["kl_scale"],
            kl_of_sigma=fixed_variance_kl(sigma, settings.prior_std) if sigma else 0.0,
            noise_scale=now["noise_scale"],
            **given,
        )

    @property
    def draw(self) -> "Draw":
        """How to draw the code."""
        tau = 0.0 if self.settings.posterior == "point" else self.noise_scale
        settings = self.settings
        how = (settings.select_by, settings.over_batch, self.part)
        return Draw(self.k, settings.noise_on, tau, self.generator, *how)


class LossTerms(NamedTuple):
    """The loss of a batch and its parts, 0-dim or (F,). Only `loss` has a gradient. Of split features, those in _F are
    this part's, and the rest are totals over all parts."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """mean over the batch of ||x - x_hat||^2"""
    kl_loss: t.Tensor
    """nats per token, before beta and s(t)"""
    auxk_loss: t.Tensor
    """AuxK's loss, relative to the residual's variance, before auxk_alpha"""
    mean_threshold: t.Tensor
    """the smallest positive mean (or magnitude: see `TokenSelection.select_by`) that a row selects,
    averaged over rows; over a batch, the smallest that it selects; NaN if there is none"""
    tokens_since_fired_F: t.Tensor
    """after this batch; a feature fires when the mean selects it"""


def variational_loss(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> LossTerms:
    """The loss of one batch, differentiable in `x_BD` and `weights`. Draws noise from the objective's generator."""
    y_BD = x_BD if objective.y_BD is None else objective.y_BD
    settings, dtype, part = objective.settings, objective.matmul_dtype, objective.part
    mu_BF, log_var_BF, sigma = means(x_BD, weights, objective), None, objective.sigma
    if weights.W_var_FD is not None and weights.b_var_F is not None:
        assert objective.log_var_limits is not None
        lower, upper = objective.log_var_limits
        input_BD = encoded_input(x_BD, weights, objective)
        raw_BF = product(input_BD, weights.W_var_FD, dtype) + weights.b_var_F
        log_var_BF = raw_BF.clamp(lower, upper)
        sigma = (log_var_BF / 2).exp()

    code = draw_code(mu_BF, sigma, objective.draw)
    decoded_BD = part.sum(decode(code.selection, code.values, weights.W_dec_DF, dtype))
    error_BD = decoded_BD + weights.b_dec_D - y_BD
    l2_loss = mean_squared_norm(error_BD)
    kl_loss = mean_kl(mu_BF, log_var_BF, code, objective)
    found = mean_selection(mu_BF, code, objective)
    loss, auxk_loss = l2_loss + objective.kl_weight * kl_loss, l2_loss.new_zeros(())
    if objective.auxk_alpha > 0:
        auxk_loss = dead_features_loss(
            error_BD,
            mu_BF,
            found.tokens_since_fired_F >= objective.dead_feature_threshold,
            weights.W_dec_DF,
            objective.top_k_aux,
            select_by=settings.select_by,
            matmul_dtype=dtype,
            part=part,
        )
        loss = loss + objective.auxk_alpha * auxk_loss
    return LossTerms(loss, l2_loss.detach(), kl_loss.detach(), auxk_loss.detach(), *found)


def mean_kl(
    mu_BF: t.Tensor, log_var_BF: t.Tensor | None, code: "Code", objective: StepObjective
) -> t.Tensor:
    """mean_B sum_{i in S} KL_i in nats, 0-dim.

    sum_i KL_i is ||mu||^2 / (2 p^2) plus what sigma adds: a constant if it is fixed, and nothing for a point.
    """
    settings, part = objective.settings, objective.part
    mu, log_var, n_features = mu_BF, log_var_BF, part.count * mu_BF.shape[1]
    if settings.kl_scope == "selected":
        mu, n_features = code.selection.only(code.means), objective.k
        log_var = at_selection(log_var_BF, code.selection, mu_BF)
    kl = part.sum(mean_squared_norm(mu)) / (2 * settings.prior_std**2)
    if log_var is not None:
        of_sigma = variance_kl(log_var, settings.prior_std)
        if settings.kl_scope == "selected":
            of_sigma = code.selection.only(of_sigma)
        return kl + part.sum(of_sigma.sum(-1).mean())
    return kl + n_features * objective.kl_of_sigma


@t.no_grad()
def code_by_mean(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> "Code":
    """The code of a batch without noise."""
    return draw_code(
        means(x_BD, weights, objective), t.zeros(()), objective.draw._replace(noise_scale=0.0)
    )


def encoded_input(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> t.Tensor:
    """The encoder's input: x - b_dec, or x for a transcoder, whose b_dec is of y."""
    part = objective.part
    if objective.y_BD is not None:
        return part.shared(x_BD)
    return part.shared(x_BD) - part.shared(weights.b_dec_D)


def means(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> t.Tensor:
    """The posterior means mu, (B, F)."""
    input_BD = encoded_input(x_BD, weights, objective)
    mu_BF = product(input_BD, weights.W_enc_FD, objective.matmul_dtype) + weights.b_enc_F
    return mu_BF.relu() if objective.settings.rectify else mu_BF


# --- the noise and the K largest


class Draw(NamedTuple):
    """How to draw each row's K features and their values from N(mu, (noise_scale sigma)^2)."""

    k: int
    noise_on: NoiseOn
    """both: I = TopK(z), values z_I. values: I = TopK(mu), values z_I; only K numbers are drawn. selection:
    I = TopK(z), values mu_I"""
    noise_scale: float
    """tau; 0 draws nothing and gives the code by the mean"""
    generator: t.Generator | None
    """on the means' device; None: torch's default"""
    select_by: SelectBy = "value"
    """value: TopK(z) is the K largest z. magnitude: the K largest |z|"""
    over_batch: bool = False
    """whether the rows share their K: TopK(z) is the B K largest of all, and the values are rectified"""
    part: Part = WHOLE
    """which features the means belong to"""

    @property
    def noise_chooses(self) -> bool:
        """Whether noise changes which features are selected."""
        return self.noise_scale != 0 and self.noise_on != "values"

    def select(self, values: t.Tensor) -> Selection:
        """The largest of values (…, F)."""
        if self.over_batch:
            return largest_of_batch(values, self.k)
        return largest(values, self.k, self.select_by, self.part)


class Code(NamedTuple):
    """The K features that each row keeps, or the B K of a batch."""

    selection: Selection
    values: t.Tensor
    """their values in the code, (…, K); 0 for those that another part of the features outranks"""
    means: t.Tensor
    """their means, (…, K)"""


def draw_code(mu: t.Tensor, sigma: t.Tensor, how: Draw) -> Code:
    """Draw a code from means (…, F), or (B, F) over a batch. Its values are differentiable in mu and sigma.

    Arguments:
        sigma: of mu's shape, or 0-dim.
    """
    tau, eps = how.noise_scale, None
    if how.noise_chooses:
        eps = noise_of(mu, how)
        with t.no_grad():
            selection = how.select(t.addcmul(mu, eps, sigma, value=tau))
    else:
        selection = how.select(mu)
        if tau != 0 and how.part.is_split:
            eps = noise_of(mu, how)
    values = mu_K = selection.of(mu)
    if tau != 0 and how.noise_on != "selection":
        eps_K = noise_of(mu_K, how) if eps is None else selection.of(eps)
        values = t.addcmul(mu_K, eps_K, at_selection(sigma, selection, mu), value=tau)
    if how.over_batch:
        values = values.relu()
    return Code(selection, selection.only(values), mu_K)


def noise_of(mu: t.Tensor, how: Draw) -> t.Tensor:
    """Independent N(0, 1) noise of mu's shape."""
    return how.part.draw(mu, how.generator, t.Tensor.normal_)


def at_selection(values: MaybeTensor, selection: Selection, mu: t.Tensor) -> MaybeTensor:
    """The values at selected features if there is one for each of `mu`; otherwise the values as they are."""
    if values is None or values.shape != mu.shape:
        return values
    found: Any = selection.of(values)
    return found


def ranking_key(values: t.Tensor, select_by: SelectBy) -> t.Tensor:
    """What features are ranked by: their values, or their magnitudes."""
    return values.abs() if select_by == "magnitude" else values


def largest(values: t.Tensor, k: int, select_by: SelectBy, part: Part = WHOLE) -> Selection:
    """Select each row's K largest. NaN ranks highest."""
    by = ranking_key(values.detach(), select_by)
    found = by.topk(min(k, by.shape[-1]), dim=-1, sorted=False)
    return part.select(found.indices, found.values, k)


def largest_of_batch(values_BF: t.Tensor, k: int) -> Selection:
    """Select the B k largest of a batch. NaN ranks highest."""
    (batch, n_features), flat = values_BF.shape, values_BF.detach().flatten()
    places_N = flat.topk(batch * k, sorted=False).indices.sort().values
    places_BK = places_N.view(batch, k)
    keys_BK = flat[places_N].view(batch, k)
    return Selection(places_BK % n_features, keys_BK, rows=places_BK // n_features)


class MeanSelection(NamedTuple):
    """What the mean alone selects in a batch; see `LossTerms`."""

    mean_threshold: t.Tensor
    tokens_since_fired_F: t.Tensor

    @classmethod
    def of(
        cls, selection: Selection, fires_BK: t.Tensor, since_fired_F: t.Tensor
    ) -> "MeanSelection":
        """What is selected in a batch, given which of it fires (bool), and the tokens since features fired before it."""
        fired_F = t.zeros_like(since_fired_F, dtype=t.bool)
        fired_F.index_add_(0, selection.indices.flatten(), selection.only(fires_BK).flatten())
        positive_BK = selection.keys.masked_fill(selection.keys <= 0, t.inf)
        smallest = positive_BK.amin(-1) if selection.rows is None else positive_BK.amin()[None]
        return cls.of_smallest(fired_F, smallest, since_fired_F + len(positive_BK))

    @classmethod
    def of_smallest(
        cls, fired_F: t.Tensor, smallest: t.Tensor, since_fired_F: t.Tensor
    ) -> "MeanSelection":
        """The same, given which features fire in any row (bool), the smallest positive selected mean of each row, or the one of
        the batch (inf if there is none), and the tokens since features fired without this batch's firing."""
        has_one = smallest < t.inf
        mean_threshold = smallest.masked_fill(~has_one, 0).sum() / has_one.sum()
        return cls(mean_threshold, since_fired_F.masked_fill(fired_F, 0))


@t.no_grad()
def mean_selection(mu_BF: t.Tensor, code: Code, objective: StepObjective) -> MeanSelection:
    """What the mean alone selects. A mean of 0 fires only in a step without noise, as a ReLU's zeros do upstream. Over a batch
    only positive means fire."""
    how, selection = objective.draw, code.selection
    if how.noise_chooses:
        selection = how.select(mu_BF)
    mu_BK = selection.of(mu_BF)
    if how.over_batch:
        fires_BK = mu_BK > 0
    else:
        fires_BK = mu_BK.ne(0) if how.noise_scale != 0 else t.ones_like(mu_BK, dtype=t.bool)
    return MeanSelection.of(selection, fires_BK, objective.tokens_since_fired_F)


# --- the reconstruction


def dense_from(matmul_dtype: t.dtype, device: t.device) -> float:
    """The k/F from which a dense matmul is faster than reading K rows of weights per token."""
    return Densities.here(matmul_dtype).sparse if device.type == "cpu" else 1 / 256


def decode(
    selection: Selection, values_BK: t.Tensor, W_dec_DF: t.Tensor, matmul_dtype: t.dtype
) -> t.Tensor:
    """W_dec f, (B, D), where f is 0 except for the values of a selection."""
    n_features = W_dec_DF.shape[1]
    if values_BK.shape[1] < dense_from(matmul_dtype, W_dec_DF.device) * n_features:
        indices, rows = selection.indices, selection.rows
        found: Any = SparseDecode.apply(indices, values_BK, W_dec_DF.t(), matmul_dtype, rows)
        return found
    f_BF = selection.spread(values_BK, n_features)
    return product(f_BF, W_dec_DF, matmul_dtype).to(W_dec_DF.dtype)


class SparseDecode(t.autograd.Function):
    """sum_{i in I} f_i W_i, (B, D). It and its gradients read only K rows of W for each row of the batch. Where a batch
    shares its B K, `rows_BK` says the row of each.

    dL/df_i = e . W_i                             for i in I
    dL/dW_i = sum over the rows with i in I of f_i e         e = the gradient at the row's sum
    """

    @staticmethod
    def forward(ctx: Any, indices_BK, values_BK, W_FD, matmul_dtype, rows_BK=None):
        starts_B = None if rows_BK is None else starts_of(rows_BK, len(rows_BK))
        operands = values_BK.to(matmul_dtype), W_FD.to(matmul_dtype)
        ctx.sum = SparseSum(indices_BK, *operands, starts_B)
        ctx.save_for_backward(indices_BK, values_BK, rows_BK)
        ctx.n_features, ctx.matmul_dtype = len(W_FD), matmul_dtype
        return ctx.sum.sum_BD.to(W_FD.dtype)

    @staticmethod
    @t.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BD):  # pyright: ignore[reportIncompatibleMethodOverride]
        indices_BK, values_BK, rows_BK = ctx.saved_tensors
        grad_values_BK = ctx.sum.products_with(grad_BD.to(ctx.matmul_dtype)).to(values_BK.dtype)
        if not ctx.needs_input_grad[2]:
            return None, grad_values_BK, None, None, None
        features, order = indices_BK.flatten().sort(stable=True)
        starts_F = starts_of(features, ctx.n_features)
        rows = order // indices_BK.shape[1] if rows_BK is None else rows_BK.flatten()[order]
        grad_W_FD = weighted_sums(rows, values_BK.flatten()[order], grad_BD, starts_F)
        return None, grad_values_BK, grad_W_FD, None, None


# --- the norm


class MeanSquaredNorm(t.autograd.Function):
    """mean_B ||x||^2 of (B, N), 0-dim. Its gradient 2 x / B is derived by hand to take one pass over a (B, F)."""

    @staticmethod
    def forward(ctx: Any, x_BN):
        ctx.save_for_backward(x_BN)
        return t.linalg.vector_norm(x_BN, dim=-1).square().mean()

    @staticmethod
    @t.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_BN,) = ctx.saved_tensors
        return x_BN * (grad * (2 / len(x_BN)))


mean_squared_norm: Callable[[t.Tensor], t.Tensor] = MeanSquaredNorm.apply  # pyright: ignore


# --- AuxK


def dead_features_loss(
    error_BD: t.Tensor,
    mu_BF: t.Tensor,
    is_dead_F: t.Tensor,
    W_dec_DF: t.Tensor,
    k_aux: int,
    *,
    select_by: SelectBy,
    matmul_dtype: t.dtype,
    part: Part = WHOLE,
) -> t.Tensor:
    """AuxK: dead features learn to reconstruct the residual (Gao et al. 2024, A.2).

    Upstream's `TopKTrainer.get_auxiliary_loss`: ||residual - its reconstruction||^2, relative to the
    residual's variance, 0-dim. If fewer than `k_aux` features are dead, living ones fill up with values of 0, because
    the host would have to wait for the number of dead ones. A mean below 0 counts as 0, too, with or without rectify,
    unless features are selected by magnitude: a feature that helps by a negative value would stay dead.

    Arguments:
        error_BD: x_hat - x. No gradient flows through it.
        k_aux: how many dead features reconstruct each row.
    """
    error_BD = error_BD.detach()
    strength_BF = ranking_key(mu_BF.detach(), select_by).masked_fill(~is_dead_F, -t.inf)
    selection = largest(strength_BF, k_aux, "value", part)
    values_BK = selection.only(selection.of(mu_BF).where(is_dead_F[selection.indices], 0.0))
    if select_by == "value":
        values_BK = values_BK.relu()
    unexplained_BD = part.sum(decode(selection, values_BK, W_dec_DF, matmul_dtype)) + error_BD
    variance = row_variance(error_BD)
    scale = t.where(variance > 0, 1 / variance, 0.0) * part.max(is_dead_F.any())
    return mean_squared_norm(unexplained_BD) * scale


def row_variance(error_BD: t.Tensor) -> t.Tensor:
    """The mean squared distance of the rows from their mean, 0-dim."""
    return (error_BD - error_BD.mean(0)).square().sum(-1).mean()
