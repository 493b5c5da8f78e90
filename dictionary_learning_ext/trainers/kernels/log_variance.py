"""The learned posterior's log-variance, log sigma^2 = W_var (x - b_dec) + b_var, clamped.

Its KL depends on every feature of every token. So one dense tensor is held for it: the KL's gradient.
Everything else is computed some rows at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch as t

from .codes import all_products
from .scratch import scratch


class DrawnLogVariance(NamedTuple):
    """What the loss and its gradient need of the log-variance."""

    selected_BK: t.Tensor
    """at each row's selected features"""
    is_inside_BK: t.Tensor
    """whether it was not clamped there"""
    kl_sum_F: t.Tensor | None
    """the sum over rows of `variance_kl`; None if it was not asked for"""
    kl_gradient_sum_F: t.Tensor | None
    """the same of the KL's derivatives at the log-variances"""

    @classmethod
    def joined(cls, parts: Sequence["DrawnLogVariance"]) -> "DrawnLogVariance":
        """The parts' rows, one after the other."""
        selected, inside, *sums = zip(*parts, strict=True)
        return cls(t.cat(selected), t.cat(inside), *map(_total, sums))


class RowsLogVariance(NamedTuple):
    """The log-variance of every feature, for some rows."""

    clamped_BF: t.Tensor
    is_inside_BF: t.Tensor
    """whether it was not clamped"""
    std_BF: t.Tensor
    prior_std: t.Tensor
    with_kl: bool
    kl_gradient_BF: t.Tensor | None
    """where to put these rows' derivatives of the KL"""

    def drawn(self, indices_BK: t.Tensor) -> DrawnLogVariance:
        """What remains of it once the code is drawn.

        Arguments:
            indices_BK: the selected features.
        """
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


class BatchLogVariance:
    """The log-variance of one batch.

    Arguments:
        centred_BD: x - b_dec.
        weight_FD, bias_F: W_var and b_var.
        limits: the lower and the upper limit of the log-variance.
        prior_std: of the KL's prior, 0-dim.
        matmul_dtype: of the products. Results have the weights' dtype.
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

    def of(self, rows: slice) -> RowsLogVariance:
        """The log-variance of some rows."""
        x_BD, weight_FD = self._operands
        products_BF = all_products("log_variance", x_BD[rows], weight_FD)
        raw_BF = products_BF.to(self._bias_F.dtype, copy=True).add_(self._bias_F)
        clamped_BF = raw_BF.clamp(*self._limits)
        gradient_BF = None if self._kl_gradient_BF is None else self._kl_gradient_BF[rows]
        return RowsLogVariance(
            clamped_BF,
            raw_BF == clamped_BF,
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


def _total(parts: Sequence[t.Tensor | None]) -> t.Tensor | None:
    tensors = [part for part in parts if part is not None]
    return t.stack(tensors).sum(0) if tensors else None
