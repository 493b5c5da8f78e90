"""The encoder of a step: the posterior's means and its learned log-variances, some rows at a time.

    mu_BF          = W_enc (x - b_dec) + b_enc               (then ReLU if rectify)
    log sigma^2_BF = W_var (x - b_dec) + b_var, clamped      (only a learned sigma)

No B x F tensor is held for the means: the KL over all features needs only their second moments, which
without a ReLU follow from the moments of x, as Cov(mu, x) = W_enc Cov(x). (For fewer than D rows and without
gradients, e.g. in a log, computing the means themselves takes fewer operations.) The KL of a learned
log-variance needs every one of them, so its gradient is held as one B x F tensor.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch as t
from torch.nn import functional

from .memory import scratch
from .products import all_products


class BatchMeans:
    """The means of one batch.

    Arguments:
        centred_BD: x - b_dec.
        weight_FD, bias_F: the encoder's.
        rectify: whether a ReLU is applied.
        matmul_dtype: of the products. Results have the weights' dtype.
        keep: compute the means of the whole batch at once and keep them.
        means_at_once: how many are held at a time otherwise.
    """

    def __init__(
        self,
        centred_BD: t.Tensor,
        weight_FD: t.Tensor,
        bias_F: t.Tensor,
        *,
        rectify: bool,
        matmul_dtype: t.dtype,
        keep: bool,
        means_at_once: int,
    ):
        self.weight_FD, self.bias_F = weight_FD, bias_F
        self.rectify = rectify
        self.centred_BD = centred_BD
        self.matmul_dtype = matmul_dtype
        self._means_at_once = means_at_once
        self._operands = centred_BD.to(matmul_dtype), weight_FD.to(matmul_dtype)
        self._kept_BF = None
        if keep:
            mu_BF = functional.linear(*self._operands, bias_F.to(matmul_dtype)).to(weight_FD.dtype)
            self._kept_BF = mu_BF.relu_() if rectify else mu_BF

    def row_blocks(self, n_features: int) -> Iterator[slice]:
        """Slices of the batch, small enough to hold their means of `n_features` at once."""
        batch = len(self.centred_BD)
        rows = max(1, self._means_at_once // n_features)
        return (slice(i, min(i + rows, batch)) for i in range(0, batch, rows))

    def of(self, rows: slice = slice(None), features: t.Tensor | None = None) -> t.Tensor:
        """mu of some rows, for all features or those whose indices are given."""
        if self._kept_BF is not None:
            kept = self._kept_BF[rows]
            return kept if features is None else kept[:, features]
        bias_F = self.bias_F if features is None else self.bias_F[features]
        mu_BF = self._products(rows, features) + bias_F  # in the bias's dtype, which is the wider
        return mu_BF.relu_() if self.rectify else mu_BF

    def unfinished(self, rows: slice) -> tuple[t.Tensor, t.Tensor, bool]:
        """Some rows' products, what must be added to them, and whether a ReLU follows.

        The next call overwrites the products.
        """
        if self._kept_BF is not None:
            return self._kept_BF[rows], t.zeros_like(self.bias_F), False
        return self._products(rows), self.bias_F, self.rectify

    @property
    def unfinished_dtype(self) -> t.dtype:
        """Of the products that `unfinished` returns."""
        return self.matmul_dtype if self._kept_BF is None else self._kept_BF.dtype

    def _products(self, rows: slice, features: t.Tensor | None = None) -> t.Tensor:
        """W_enc (x - b_dec) in `matmul_dtype`. The next call overwrites it."""
        x_BD, weight_FD = self._operands
        weight_FD = weight_FD if features is None else weight_FD[features]
        return all_products("encoder", x_BD[rows], weight_FD)

    def moments(self, *, with_cross: bool) -> "Moments":
        """The moments of all features. Without `with_cross`, `cross_FD` is None."""
        if self.rectify:
            return self._rectified_moments(with_cross=with_cross)
        dtype, batch = self.weight_FD.dtype, len(self.centred_BD)
        _, weight_FD = self._operands
        mean_x_D = self.centred_BD.mean(0)
        mean_F = self.weight_FD @ mean_x_D + self.bias_F
        # The mean may be large, and bf16 keeps 8 bits: subtract it before the matmul.
        x_BD = (self.centred_BD - mean_x_D).to(weight_FD.dtype)
        if not with_cross and batch < len(mean_x_D):  # few rows, e.g. a log's: B D F < F D D
            deviations_BF = functional.linear(x_BD, weight_FD).to(dtype)
            return Moments(None, mean_F, deviations_BF.square_().mean(0) + mean_F**2)
        covariance_FD = (weight_FD @ (x_BD.t() @ x_BD).div_(batch)).to(dtype)
        square_F = t.linalg.vecdot(covariance_FD, self.weight_FD).clamp_(min=0) + mean_F**2
        cross_FD = covariance_FD.addr_(mean_F, mean_x_D) if with_cross else None
        return Moments(cross_FD, mean_F, square_F)

    def _rectified_moments(self, *, with_cross: bool) -> "Moments":
        x_BD, (n_features, width) = self._operands[0], self.weight_FD.shape
        mean_F, square_F = self.weight_FD.new_zeros(2, n_features)
        cross_FD = self.weight_FD.new_zeros(n_features, width) if with_cross else None
        for rows in self.row_blocks(n_features):
            mu_BF = self.of(rows)
            mean_F += mu_BF.sum(0)
            square_F += mu_BF.square().sum(0)
            if cross_FD is not None:
                cross_FD += mu_BF.to(x_BD.dtype).t() @ x_BD[rows]
        batch = len(x_BD)
        return Moments(
            None if cross_FD is None else cross_FD.div_(batch),
            mean_F.div_(batch),
            square_F.div_(batch),
        )

    def combine(self, factor_F: t.Tensor) -> t.Tensor:
        """sum_i factor_i mu_i w_i, (B, D): the gradient at x of sum_i factor_i mu_i^2 / 2."""
        if self.rectify:
            blocks = self.row_blocks(len(factor_F))
            return t.cat([(self.of(rows) * factor_F) @ self.weight_FD for rows in blocks])
        scaled_FD = self.weight_FD * factor_F[:, None]
        return self.centred_BD @ (self.weight_FD.t() @ scaled_FD) + self.bias_F @ scaled_FD


class Moments(NamedTuple):
    """Averages over a batch of means mu and centred activations x."""

    cross_FD: t.Tensor | None
    """E[mu_i x], the gradient of E[mu_i^2] / 2 at W_enc; None if it was not asked for"""
    mean_F: t.Tensor
    """E[mu_i], its gradient at b_enc"""
    square_F: t.Tensor
    """E[mu_i^2]"""


class BatchLogVariance:
    """The log-variance of one batch.

    Arguments:
        centred_BD: x - b_dec.
        weight_FD, bias_F: W_var and b_var.
        limits: the lower and the upper limit of the log-variance.
        prior_std: of the KL's prior, 0-dim.
        matmul_dtype: of the products, as in `BatchMeans`.
        with_kl: whether the KL of all features will be asked for.
        with_gradient: whether its gradient will be, too.
    """

    def __init__(
        self,
        centred_BD: t.Tensor,
        weight_FD: t.Tensor,
        bias_F: t.Tensor,
        limits: t.Tensor,
        prior_std: t.Tensor,
        *,
        matmul_dtype: t.dtype,
        with_kl: bool,
        with_gradient: bool,
    ):
        self.weight_FD, self._bias_F = weight_FD, bias_F
        self._limits, self._prior_std, self._with_kl = limits, prior_std, with_kl
        self._operands = centred_BD.to(matmul_dtype), weight_FD.to(matmul_dtype)
        self._kl_gradient_BF = None
        if with_kl and with_gradient:
            shape = (len(centred_BD), len(weight_FD))
            self._kl_gradient_BF = scratch("kl_gradient", shape, matmul_dtype, weight_FD.device)

    def of(self, rows: slice) -> "RowsLogVariance":
        """The log-variance of some rows."""
        x_BD, weight_FD = self._operands
        products_BF = all_products("log_variance", x_BD[rows], weight_FD)
        raw_BF = products_BF + self._bias_F
        # On CPUs torch vectorises neither `clamp` by tensors nor operations that return or take bools.
        lower, upper = self._limits
        clamped_BF = raw_BF.minimum(upper).maximum(lower)
        gradient_BF = None if self._kl_gradient_BF is None else self._kl_gradient_BF[rows]
        return RowsLogVariance(
            clamped_BF,
            raw_BF.eq_(clamped_BF),
            (0.5 * clamped_BF).exp_(),
            self._prior_std,
            self._with_kl,
            gradient_BF,
        )

    def kl_outer(self) -> t.Tensor:
        """The sum over rows of the KL's derivatives at each log-variance, times x - b_dec: (F, D)."""
        assert self._kl_gradient_BF is not None
        return (self._kl_gradient_BF.t() @ self._operands[0]).to(self.weight_FD.dtype)

    def kl_combine(self, weight_FD: t.Tensor) -> t.Tensor:
        """Each row's sum of W's rows times the KL's derivatives at its log-variances: (B, D)."""
        assert self._kl_gradient_BF is not None
        gradient_BF = self._kl_gradient_BF
        return (gradient_BF @ weight_FD.to(gradient_BF.dtype)).to(weight_FD.dtype)


class RowsLogVariance(NamedTuple):
    """The log-variance of every feature, for some rows."""

    clamped_BF: t.Tensor
    is_inside_BF: t.Tensor
    """1 where it was not clamped, else 0"""
    std_BF: t.Tensor
    prior_std: t.Tensor
    with_kl: bool
    kl_gradient_BF: t.Tensor | None
    """where to put these rows' derivatives of the KL"""

    def drawn(self, indices_BK: t.Tensor) -> "DrawnLogVariance":
        """What the loss and its gradient need of it, once the selected features are known."""
        kl_sum_F = gradient_sum_F = None
        if self.with_kl:  # `variance_kl`, with the exponential that is already there
            excess_BF = self.std_BF.square().div_(self.prior_std.square()).sub_(1)
            log_ratio_BF = self.clamped_BF - 2 * self.prior_std.log()
            kl_sum_F = (excess_BF - log_ratio_BF).sum(0) / 2
            if self.kl_gradient_BF is not None:
                gradient_BF = excess_BF.mul_(self.is_inside_BF).div_(2)
                gradient_sum_F = gradient_BF.sum(0)
                self.kl_gradient_BF.copy_(gradient_BF)
        return DrawnLogVariance(
            self.clamped_BF.gather(1, indices_BK),
            self.is_inside_BF.gather(1, indices_BK),
            kl_sum_F,
            gradient_sum_F,
        )


class DrawnLogVariance(NamedTuple):
    """What the loss and its gradient need of the log-variance of some rows."""

    selected_BK: t.Tensor
    """at each row's selected features"""
    is_inside_BK: t.Tensor
    """1 where it was not clamped, else 0"""
    kl_sum_F: t.Tensor | None
    """the sum over rows of `variance_kl`; None if it was not asked for"""
    kl_gradient_sum_F: t.Tensor | None
    """the same of the KL's derivatives at the log-variances"""

    @classmethod
    def joined(cls, parts: Sequence["DrawnLogVariance"]) -> "DrawnLogVariance":
        """The parts' rows, one after the other."""
        selected, inside, *sums = zip(*parts, strict=True)
        return cls(t.cat(selected), t.cat(inside), *map(_total, sums))


def _total(parts: Sequence[t.Tensor | None]) -> t.Tensor | None:
    tensors = [part for part in parts if part is not None]
    return t.stack(tensors).sum(0) if tensors else None
