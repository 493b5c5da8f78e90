"""The encoder of a step: posterior means and learned log-variances, in blocks of rows.

    mu_BF          = W_enc (x - b_dec) + b_enc               (then ReLU if rectify)
    log sigma^2_BF = W_var (x - b_dec) + b_var, clamped      (only a learned sigma)

Without a ReLU, the means are never held as a B x F tensor: the KL over all features only needs their second moments,
which follow from the D x D matrix C = E[(x - b_dec)(x - b_dec)^T]:

    dKL/dW_enc = (beta s / p^2) E[mu (x - b_dec)^T] = (beta s / p^2) (W_enc C + b_enc E[x - b_dec]^T)

The KL's gradient at a learned log-variance is held as one B x F tensor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch as t
from torch.nn import functional

from .memory import scratch
from .products import all_products


class BatchMeans:
    """The means of one batch. After a ReLU, they are computed and kept as a whole.

    Arguments:
        centred_BD: x - b_dec.
        weight_FD, bias_F: the encoder's.
        rectify: whether a ReLU is applied.
        matmul_dtype: the dtype of matmuls. Results have the weights' dtype.
    """

    def __init__(
        self,
        centred_BD: t.Tensor,
        weight_FD: t.Tensor,
        bias_F: t.Tensor,
        *,
        rectify: bool,
        matmul_dtype: t.dtype,
    ):
        self.weight_FD, self.bias_F = weight_FD, bias_F
        self.rectify = rectify
        self.centred_BD = centred_BD
        self._operands = centred_BD.to(matmul_dtype), weight_FD.to(matmul_dtype)
        self._kept_BF = None
        if rectify:
            mu_BF = functional.linear(*self._operands, bias_F.to(matmul_dtype)).to(weight_FD.dtype)
            self._kept_BF = mu_BF.relu_()

    def of(self, features: t.Tensor) -> t.Tensor:
        """The means of some features, given their indices."""
        if self._kept_BF is not None:
            return self._kept_BF[:, features]
        x_BD, weight_FD = self._operands
        return all_products("encoder", x_BD, weight_FD[features]) + self.bias_F[features]

    def unfinished(self, rows: slice) -> tuple[t.Tensor, t.Tensor]:
        """The means of some rows, as two terms to add: products (overwritten by the next call) and a bias."""
        if self._kept_BF is not None:
            return self._kept_BF[rows], t.zeros_like(self.bias_F)
        x_BD, weight_FD = self._operands
        return all_products("encoder", x_BD[rows], weight_FD), self.bias_F

    def moments(self) -> "Moments":
        """The moments of all features' means over the batch."""
        x_BD, weight_FD = self._operands
        dtype, batch = self.weight_FD.dtype, len(self.centred_BD)
        if self._kept_BF is not None:
            mu_BF = self._kept_BF
            cross_FD = (mu_BF.to(x_BD.dtype).t() @ x_BD).to(dtype).div_(batch)
            return Moments(cross_FD, mu_BF.sum(0).div_(batch), mu_BF.square().sum(0).div_(batch))
        mean_x_D = self.centred_BD.mean(0)
        mean_F = self.weight_FD @ mean_x_D + self.bias_F
        # Subtract the mean before the matmul: it may be large, and bf16 keeps 8 bits.
        x_BD = (self.centred_BD - mean_x_D).to(weight_FD.dtype)
        covariance_FD = (weight_FD @ (x_BD.t() @ x_BD).div_(batch)).to(dtype)
        square_F = t.linalg.vecdot(covariance_FD, self.weight_FD).clamp_(min=0) + mean_F**2
        return Moments(covariance_FD.addr_(mean_F, mean_x_D), mean_F, square_F)


class Moments(NamedTuple):
    """Averages over a batch of means mu and centred activations x."""

    cross_FD: t.Tensor
    """E[mu_i x], the gradient of E[mu_i^2] / 2 at W_enc"""
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
        prior_std: the prior's standard deviation, 0-dim.
        matmul_dtype: see `BatchMeans`.
        with_kl: whether the KL of all features and its gradient are needed.
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
    ):
        self.weight_FD, self._bias_F = weight_FD, bias_F
        self._limits, self._prior_std = limits, prior_std
        self._operands = centred_BD.to(matmul_dtype), weight_FD.to(matmul_dtype)
        self._kl_gradient_BF = None
        if with_kl:
            shape = (len(centred_BD), len(weight_FD))
            self._kl_gradient_BF = scratch("kl_gradient", shape, matmul_dtype)

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
            gradient_BF,
        )

    def kl_outer(self) -> t.Tensor:
        """The sum over rows of the outer product of dKL/d(log-variance) and x - b_dec: (F, D)."""
        assert self._kl_gradient_BF is not None
        return (self._kl_gradient_BF.t() @ self._operands[0]).to(self.weight_FD.dtype)


class RowsLogVariance(NamedTuple):
    """The log-variance of all features in some rows."""

    clamped_BF: t.Tensor
    is_inside_BF: t.Tensor
    """1 where it was not clamped, else 0"""
    std_BF: t.Tensor
    prior_std: t.Tensor
    kl_gradient_BF: t.Tensor | None
    """where to write the KL's gradient at these rows' log-variance; None: not needed"""

    def drawn(self, indices_BK: t.Tensor) -> "DrawnLogVariance":
        """What the loss and its gradient need, given the selected features."""
        kl_sum_F = gradient_sum_F = None
        if self.kl_gradient_BF is not None:  # `variance_kl`, from the sigma that is there already
            excess_BF = self.std_BF.square().div_(self.prior_std.square()).sub_(1)
            log_ratio_BF = self.clamped_BF - 2 * self.prior_std.log()
            kl_sum_F = (excess_BF - log_ratio_BF).sum(0) / 2
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
    """What the loss and its gradient need from the log-variance of some rows."""

    selected_BK: t.Tensor
    """the log-variance of each row's selected features"""
    is_inside_BK: t.Tensor
    """1 where it was not clamped, else 0"""
    kl_sum_F: t.Tensor | None
    """the sum over rows of `variance_kl`; None: not needed"""
    kl_gradient_sum_F: t.Tensor | None
    """the sum over rows of its derivatives"""

    @classmethod
    def joined(cls, parts: Sequence["DrawnLogVariance"]) -> "DrawnLogVariance":
        """Concatenate the rows of several blocks, and add up their sums."""
        selected, inside, *sums = zip(*parts, strict=True)
        return cls(t.cat(selected), t.cat(inside), *map(_total, sums))


def _total(parts: Sequence[t.Tensor | None]) -> t.Tensor | None:
    tensors = [part for part in parts if part is not None]
    return t.stack(tensors).sum(0) if tensors else None
