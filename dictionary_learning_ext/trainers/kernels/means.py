"""A batch's means mu_BF = W_enc (x - b_dec) + b_enc, some rows at a time, and their second moments.

The KL over all features needs only the second moments of mu. Without a ReLU these follow from the
moments of x: Cov(mu, x) = W_enc Cov(x). So no B x F tensor has to be held for it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch as t
from torch.nn import functional

from .codes import all_products


class Moments(NamedTuple):
    """Averages over a batch of means mu and centred activations x."""

    cross_FD: t.Tensor | None
    """E[mu_i x], the gradient of E[mu_i^2] / 2 at W_enc; None if it was not asked for"""
    mean_F: t.Tensor
    """E[mu_i], its gradient at b_enc"""
    square_F: t.Tensor
    """E[mu_i^2]"""


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

    def products(self, rows: slice = slice(None), features: t.Tensor | None = None) -> t.Tensor:
        """W_enc (x - b_dec) of some rows, for all features or those whose indices are given.

        In `matmul_dtype`. The next call overwrites it.
        """
        x_BD, weight_FD = self._operands
        weight_FD = weight_FD if features is None else weight_FD[features]
        return all_products("encoder", x_BD[rows], weight_FD)

    def finish(self, products_BF: t.Tensor, features: t.Tensor | None = None) -> t.Tensor:
        """The means, from `products`, as a new tensor."""
        bias_F = self.bias_F if features is None else self.bias_F[features]
        mu_BF = products_BF.to(bias_F.dtype, copy=True).add_(bias_F)
        return mu_BF.relu_() if self.rectify else mu_BF

    @property
    def unfinished_dtype(self) -> t.dtype:
        """Of the products that `unfinished` returns."""
        return self.matmul_dtype if self._kept_BF is None else self._kept_BF.dtype

    def unfinished(self, rows: slice) -> tuple[t.Tensor, t.Tensor, bool]:
        """Some rows' products, what must be added to them, and whether a ReLU follows.

        The next call overwrites the products.
        """
        if self._kept_BF is not None:
            return self._kept_BF[rows], t.zeros_like(self.bias_F), False
        return self.products(rows), self.bias_F, self.rectify

    def of(self, rows: slice = slice(None), features: t.Tensor | None = None) -> t.Tensor:
        """mu of some rows, for all features or those whose indices are given."""
        if self._kept_BF is not None:
            kept = self._kept_BF[rows]
            return kept if features is None else kept[:, features]
        return self.finish(self.products(rows, features), features)

    def moments(self, *, with_cross: bool) -> Moments:
        """The moments of all features. Without `with_cross`, `cross_FD` is None."""
        if self.rectify:
            return self._rectified_moments(with_cross=with_cross)
        dtype, batch = self.weight_FD.dtype, len(self.centred_BD)
        _, weight_FD = self._operands
        mean_x_D = self.centred_BD.mean(0)
        mean_F = self.weight_FD @ mean_x_D + self.bias_F
        # The mean may be large, and bf16 keeps 8 bits: subtract it before the matmul.
        x_BD = (self.centred_BD - mean_x_D).to(weight_FD.dtype)
        covariance_FD = (weight_FD @ (x_BD.t() @ x_BD).div_(batch)).to(dtype)
        square_F = t.linalg.vecdot(covariance_FD, self.weight_FD).clamp_(min=0) + mean_F**2
        cross_FD = covariance_FD.addr_(mean_F, mean_x_D) if with_cross else None
        return Moments(cross_FD, mean_F, square_F)

    def _rectified_moments(self, *, with_cross: bool) -> Moments:
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
