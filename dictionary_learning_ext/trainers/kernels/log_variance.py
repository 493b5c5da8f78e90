"""The learned posterior's log-variance, log sigma^2 = W_var (x - b_dec) + b_var, clamped.

Its KL depends on every feature of every token. So, unlike the means, it is held as a dense tensor.
"""

from typing import NamedTuple

import torch as t
from torch.nn import functional

from ..posterior import variance_kl
from .codes import DenseCode, SparseCode


class BatchLogVariance(NamedTuple):
    """The log-variance of every feature, for one batch."""

    centred_BD: t.Tensor
    weight_FD: t.Tensor
    clamped_BF: t.Tensor
    is_inside_BF: t.Tensor
    """whether it was not clamped"""
    std_BF: t.Tensor

    @classmethod
    def of(
        cls,
        centred_BD: t.Tensor,
        weight_FD: t.Tensor,
        bias_F: t.Tensor,
        limits: t.Tensor,
        matmul_dtype: t.dtype,
    ) -> "BatchLogVariance":
        """The log-variance of activations x - b_dec."""
        operands = [part.to(matmul_dtype) for part in (centred_BD, weight_FD, bias_F)]
        raw_BF = functional.linear(*operands).to(weight_FD.dtype)
        clamped_BF = raw_BF.clamp(limits[0], limits[1])
        return cls(
            centred_BD, weight_FD, clamped_BF, raw_BF == clamped_BF, (0.5 * clamped_BF).exp()
        )

    def selected_kl(self, indices_BK: t.Tensor, prior_std: t.Tensor) -> t.Tensor:
        """`variance_kl` at some features, (B, K)."""
        return variance_kl(self.clamped_BF.gather(1, indices_BK), prior_std)

    def mean_kl(self, prior_std: t.Tensor) -> t.Tensor:
        """`variance_kl` of each feature, averaged over the batch: (F,)."""
        return variance_kl(self.clamped_BF, prior_std).mean(0)

    def kl_gradient(self, prior_std: t.Tensor) -> t.Tensor:
        """The KL's derivative at each log-variance, (B, F)."""
        return (self.clamped_BF.exp() / prior_std.square() - 1) / 2

    def backward(
        self,
        code: SparseCode | DenseCode,
        selected_BK: t.Tensor,
        dense_BF: t.Tensor | None,
        matmul_dtype: t.dtype,
        *,
        x_grad: bool,
    ) -> tuple[t.Tensor, t.Tensor, t.Tensor | None]:
        """The gradients at W_var, b_var and, if `x_grad`, x.

        Arguments:
            selected_BK: the loss's gradient at the log-variances of the code.
            dense_BF: the loss's other gradient, at the log-variances of all features; None for 0.
        """
        selected_BK = selected_BK * self.is_inside_BF.gather(1, code.indices_BK)
        if dense_BF is None:
            grad_b_F = self.weight_FD.new_zeros(len(self.weight_FD))
            grad_b_F.index_add_(0, code.indices_BK.flatten(), selected_BK.flatten())
            grad_W_FD = code.outer(selected_BK, self.centred_BD)
            grad_x_BD = code.combine(selected_BK, self.weight_FD) if x_grad else None
            return grad_W_FD, grad_b_F, grad_x_BD
        grad_BF = dense_BF.mul_(self.is_inside_BF).scatter_add_(1, code.indices_BK, selected_BK)
        grad_b_F = grad_BF.sum(0)
        grad_BF = grad_BF.to(matmul_dtype)
        grad_W_FD = grad_BF.t() @ self.centred_BD.to(matmul_dtype)
        grad_x_BD = None
        if x_grad:
            grad_x_BD = (grad_BF @ self.weight_FD.to(matmul_dtype)).to(grad_b_F.dtype)
        return grad_W_FD.to(grad_b_F.dtype), grad_b_F, grad_x_BD
