"""Sums of weights that a sparse code selects, by torch's `embedding_bag`, which reads these weights alone.

Shapes: B rows, D, F features, M selections: K of each row, (B, K), or all in the order of rows, in any shape.
"""

import torch as t
from torch.nn import functional


def weighted_sums(
    indices: t.Tensor, values: t.Tensor, weight_FD: t.Tensor, starts_B: t.Tensor | None = None
) -> t.Tensor:
    """Each row's sum of the weights at its indices times its values, (B, D).

    Arguments:
        indices, values: (B, K), or M with `starts_B`, where each row's begin. The values have the weights' dtype.
    """
    if starts_B is not None:
        indices, values = indices.flatten(), values.flatten()
    return functional.embedding_bag(
        indices, weight_FD, starts_B, mode="sum", per_sample_weights=values
    )


def starts_of(ascending: t.Tensor, count: int) -> t.Tensor:
    """Where each of the numbers below `count` begins among ascending ones, (count,)."""
    return t.searchsorted(ascending.flatten(), t.arange(count, device=ascending.device))


class SparseSum:
    """`weighted_sums`, and its gradient at the values."""

    def __init__(
        self,
        indices: t.Tensor,
        values: t.Tensor,
        weight_FD: t.Tensor,
        starts_B: t.Tensor | None = None,
    ):
        with t.enable_grad():  # torch has a kernel for the gradient at the values alone
            self._values = values.detach().requires_grad_()
            self._sum_BD = weighted_sums(indices, self._values, weight_FD.detach(), starts_B)
        self.sum_BD = self._sum_BD.detach()

    def products_with(self, rows_BD: t.Tensor) -> t.Tensor:
        """Each row's products with the weights at its indices, in the values' shape: the gradient at the values."""
        return t.autograd.grad(self._sum_BD, self._values, rows_BD, retain_graph=True)[0]
