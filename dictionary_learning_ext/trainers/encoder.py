"""A batch's means mu_BF = W_enc (x - b_dec) + b_enc, some rows at a time, and what the KL needs of them.

The KL over all features needs of mu only its second moments with x, and without a ReLU these follow
from those of x: E[mu x^T] = W_enc E[x x^T] + b_enc E[x]^T. So no B x F tensor is held for it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch as t

from .scratch import scratch

BLOCK = 2**22
"""Means held at a time where not all are needed: 16 MB."""


class Moments(NamedTuple):
    """Averages over a batch of means mu and centred activations x."""

    cross_FD: t.Tensor
    """E[mu_i x], the gradient of E[mu_i^2] / 2 at W_enc"""
    mean_F: t.Tensor
    """E[mu_i], its gradient at b_enc"""
    square_F: t.Tensor
    """E[mu_i^2]"""


class Encoder:
    """The means of one batch.

    Arguments:
        centred_BD: x - b_dec.
        weight_FD, bias_F: the encoder's.
        rectify: whether a ReLU is applied.
        matmul_dtype: of the products; what is returned has the weights' dtype.
        keep: compute the means of the whole batch at once and keep them.
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
    ):
        self.weight_FD, self.bias_F = weight_FD, bias_F
        self.rectify = rectify
        self.centred_BD = centred_BD
        self._operands = [part.to(matmul_dtype) for part in (centred_BD, weight_FD, bias_F)]
        self._kept_BF = self._means(*self._operands) if keep else None

    def row_blocks(self, n_features: int) -> Iterator[slice]:
        """Slices of the batch, of as many rows as to hold at most `BLOCK` of so many features."""
        batch = len(self.centred_BD)
        rows = batch if self._kept_BF is not None else max(1, BLOCK // n_features)
        return (slice(i, min(i + rows, batch)) for i in range(0, batch, rows))

    def means(self, rows: slice = slice(None), features: t.Tensor | None = None) -> t.Tensor:
        """mu of some rows, of all features or of those whose indices are given.

        Not to be changed, and lost at the next call.
        """
        if self._kept_BF is not None:
            kept = self._kept_BF[rows]
            return kept if features is None else kept[:, features]
        x_BD, weight_FD, bias_F = self._operands
        if features is not None:
            weight_FD, bias_F = weight_FD[features], bias_F[features]
        return self._means(x_BD[rows], weight_FD, bias_F)

    def _means(self, x_BD: t.Tensor, weight_FD: t.Tensor, bias_F: t.Tensor) -> t.Tensor:
        shape, device = (len(x_BD), len(weight_FD)), x_BD.device
        mu_BF = scratch("linear", shape, x_BD.dtype, device)
        t.addmm(bias_F, x_BD, weight_FD.t(), out=mu_BF)
        if mu_BF.dtype != self.weight_FD.dtype:
            mu_BF = scratch("means", shape, self.weight_FD.dtype, device).copy_(mu_BF)
        return mu_BF.relu_() if self.rectify else mu_BF

    def moments(self) -> Moments:
        """Of all features."""
        dtype, batch = self.weight_FD.dtype, len(self.centred_BD)
        x_BD, weight_FD, _ = self._operands
        if self.rectify:
            mu_BF = self.means()
            cross_FD = (mu_BF.to(x_BD.dtype).t() @ x_BD).to(dtype).div_(batch)
            mean_F = mu_BF.mean(0)
        else:
            mean_x_D = self.centred_BD.mean(0)
            second_DD = (x_BD.t() @ x_BD).div_(batch)
            cross_FD = (weight_FD @ second_DD).to(dtype)
            cross_FD.addr_(self.bias_F, mean_x_D)
            mean_F = self.weight_FD @ mean_x_D + self.bias_F
        # mu^2 = mu (w x + b), with a ReLU too
        square_F = t.linalg.vecdot(cross_FD, self.weight_FD) + self.bias_F * mean_F
        return Moments(cross_FD, mean_F, square_F)

    def combine(self, factor_F: t.Tensor) -> t.Tensor:
        """sum_i factor_i mu_i w_i, (B, D): the gradient at x of sum_i factor_i mu_i^2 / 2."""
        if self.rectify:
            return (self.means() * factor_F) @ self.weight_FD
        scaled_FD = self.weight_FD * factor_F[:, None]
        return self.centred_BD @ (self.weight_FD.t() @ scaled_FD) + self.bias_F @ scaled_FD
