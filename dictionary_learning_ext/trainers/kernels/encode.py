"""The encoder of a step: posterior means, in blocks of rows.

    mu_BF = W_enc (x - b_dec) + b_enc               (then ReLU if rectify)

Without a ReLU, the means are never held as a B x F tensor: the KL over all features only needs their second moments,
which follow from the D x D matrix C = E[(x - b_dec)(x - b_dec)^T]:

    dKL/dW_enc = (beta s / p^2) E[mu (x - b_dec)^T] = (beta s / p^2) (W_enc C + b_enc E[x - b_dec]^T)
"""

from typing import NamedTuple

import torch as t
from torch.nn import functional

from ..matmuls import operand
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
        self._matmul_dtype = matmul_dtype
        self._operands = operand(centred_BD, matmul_dtype), operand(weight_FD, matmul_dtype)
        self._kept_BF = None
        if rectify:
            if matmul_dtype == weight_FD.dtype:
                mu_BF = functional.linear(*self._operands, bias_F)
            else:  # a sum in bf16 would be rounded
                products_BF = functional.linear(*self._operands).to(matmul_dtype)
                mu_BF = products_BF.to(weight_FD.dtype).add_(bias_F)
            self._kept_BF = mu_BF.relu_()

    def of(self, features: t.Tensor) -> t.Tensor:
        """The means of some features, given their indices."""
        if self._kept_BF is not None:
            return self._kept_BF[:, features]
        x_BD, weight_FD = self._operands
        products_BM = all_products("encoder", x_BD, weight_FD[features])
        return products_BM.to(self._matmul_dtype) + self.bias_F[features]

    def unfinished(self, rows: slice) -> tuple[t.Tensor, t.Tensor]:
        """The means of some rows, as two terms to add: products (overwritten by the next call) and a bias."""
        if self._kept_BF is not None:
            return self._kept_BF[rows], t.zeros_like(self.bias_F)
        x_BD, weight_FD = self._operands
        products_BF = all_products("encoder", x_BD[rows], weight_FD)
        return products_BF.to(self._matmul_dtype), self.bias_F

    def moments(self) -> "Moments":
        """The moments of all features' means over the batch."""
        x_BD, weight_FD = self._operands
        dtype, rounded, batch = self.weight_FD.dtype, self._matmul_dtype, len(self.centred_BD)
        if self._kept_BF is not None:
            mu_BF = self._kept_BF
            cross_FD = (operand(mu_BF, rounded).t() @ x_BD).to(rounded).to(dtype).div_(batch)
            return Moments(cross_FD, mu_BF.sum(0).div_(batch), mu_BF.square().sum(0).div_(batch))
        mean_x_D = self.centred_BD.mean(0)
        mean_F = self.weight_FD @ mean_x_D + self.bias_F
        # Subtract the mean before the matmul: it may be large, and bf16 keeps 8 bits.
        x_BD = operand(self.centred_BD - mean_x_D, rounded)
        second_DD = operand((x_BD.t() @ x_BD).to(rounded).div_(batch), rounded)
        covariance_FD = (weight_FD @ second_DD).to(rounded).to(dtype)
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
