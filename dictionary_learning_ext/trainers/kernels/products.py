"""Products of a TopK code with weights, in the form that is fastest on this machine.

A code is K of F features per row: their indices I, `indices_BK`, and their values, (B, K). Where a batch shares its B K
features, `rows_BK` says the row of each, ascending. Training needs three products of a code with weights (F, D), stored
feature by feature:

    combine   values W         (B, D)  the reconstruction
    project   (rows W^T) on I  (B, K)  its gradient at the K values, by the same weights
    outer     values^T rows    (F, D)  its gradient at W, and the encoder's

Sparse products take B K D multiplications and dense ones B F D, but dense ones run many times faster. All forms
give the same numbers up to rounding.
"""

import torch as t

from ..matmuls import Densities, held_in, operand
from ..sparse_sum import SparseSum, starts_of, weighted_sums
from . import compiled
from .memory import scratch


def top_k_code(
    indices_BK: t.Tensor,
    dict_size: int,
    matmul_dtype: t.dtype,
    name: str = "code",
    *,
    rows_BK: t.Tensor | None = None,
) -> "SparseCode | DenseCode":
    """A code in the form that is fastest for this k, F and dtype.

    Codes in use at the same time need different names.
    """
    density, most = indices_BK.shape[1] / dict_size, Densities.here(matmul_dtype)
    if density > most.sparse:
        return DenseCode(indices_BK, dict_size, matmul_dtype, name, rows_BK)
    projects_densely = matmul_dtype == t.bfloat16 and density > most.sparse_projection
    return SparseCode(
        indices_BK, dict_size, matmul_dtype, rows_BK, projects_densely=projects_densely
    )


class SparseCode:
    """Products that only touch each row's K features.

    Arguments:
        projects_densely: compute all B x F products in `project`, and keep K per row.
    """

    def __init__(
        self,
        indices_BK: t.Tensor,
        dict_size: int,
        matmul_dtype: t.dtype,
        rows_BK: t.Tensor | None = None,
        *,
        projects_densely: bool = False,
    ):
        self.indices_BK, self.rows_BK = indices_BK, rows_BK
        self._starts_B = None if rows_BK is None else starts_of(rows_BK, len(rows_BK))
        self.dict_size = dict_size
        self._matmul_dtype = matmul_dtype
        self._projects_densely = projects_densely
        self._grouped: tuple[t.Tensor, t.Tensor, t.Tensor] | None = None

    def combine(self, values_BK: t.Tensor, weight_FD: t.Tensor) -> t.Tensor:
        """Each row's sum of its features' weights times their values: (B, D)."""
        if self._projects_densely:
            self._weight_FD = weight_FD.detach().to(self._matmul_dtype)
            values_BK = values_BK.detach().to(self._matmul_dtype)
            sum_BD = weighted_sums(self.indices_BK, values_BK, self._weight_FD, self._starts_B)
            return sum_BD.to(weight_FD.dtype)
        values_BK = values_BK.to(weight_FD.dtype)
        self._sum = SparseSum(self.indices_BK, values_BK, weight_FD, self._starts_B)
        return self._sum.sum_BD

    def project(self, rows_BD: t.Tensor) -> t.Tensor:
        """Each row's products with its K features' weights, those of the last `combine`: (B, K)."""
        if self._projects_densely:
            dtype = self._matmul_dtype
            operands = operand(rows_BD, dtype), operand(self._weight_FD, dtype)
            places_BK = places_of(self.indices_BK, self.rows_BK, self.dict_size)
            products_BK = all_products("projection", *operands).take(places_BK)
            return products_BK.to(dtype).to(rows_BD.dtype)
        return self._sum.products_with(rows_BD)

    def outer(self, values_BK: t.Tensor, rows_BD: t.Tensor) -> t.Tensor:
        """Each feature's sum over the rows that hold it, weighted by its values there: (F, D)."""
        if self._grouped is None:
            self._grouped = compiled.group_by_feature(self.indices_BK, self.dict_size)
        order, row_numbers, offsets_F = self._grouped
        if self.rows_BK is not None:
            row_numbers = self.rows_BK.flatten()[order]
        dtype = self._matmul_dtype
        values_M = values_BK.flatten()[order].to(dtype)
        return weighted_sums(row_numbers, values_M, rows_BD.to(dtype), offsets_F).to(rows_BD.dtype)


class DenseCode:
    """Products as matmuls in `matmul_dtype`. Results have the weights' and rows' dtype."""

    def __init__(
        self,
        indices_BK: t.Tensor,
        dict_size: int,
        matmul_dtype: t.dtype,
        name: str,
        rows_BK: t.Tensor | None = None,
    ):
        self.indices_BK = indices_BK
        self._matmul_dtype, batch = matmul_dtype, len(indices_BK)
        held = held_in(matmul_dtype, indices_BK.device)
        self._code_BF = scratch(name, (batch, dict_size), held).zero_()
        self._places_BK = places_of(indices_BK, rows_BK, dict_size)

    def combine(self, values_BK: t.Tensor, weight_FD: t.Tensor) -> t.Tensor:
        """See `SparseCode.combine`."""
        self._weight_FD = self._operand(weight_FD)
        return self._rounded(self._scattered(values_BK) @ self._weight_FD, weight_FD.dtype)

    def project(self, rows_BD: t.Tensor) -> t.Tensor:
        """See `SparseCode.project`."""
        products_BF = all_products("projection", self._operand(rows_BD), self._weight_FD)
        return self._rounded(products_BF.take(self._places_BK), rows_BD.dtype)

    def outer(self, values_BK: t.Tensor, rows_BD: t.Tensor) -> t.Tensor:
        """See `SparseCode.outer`."""
        products_FD = self._scattered(values_BK).t() @ self._operand(rows_BD)
        return self._rounded(products_FD, rows_BD.dtype)

    def _scattered(self, values_BK: t.Tensor) -> t.Tensor:
        if t.are_deterministic_algorithms_enabled():  # put_ has no such form
            values_N = self._operand(values_BK).flatten()
            self._code_BF.flatten().scatter_(0, self._places_BK.flatten(), values_N)
            return self._code_BF
        return self._code_BF.put_(
            self._places_BK, self._operand(values_BK)
        )  # a quarter of the time in bf16

    def _operand(self, tensor: t.Tensor) -> t.Tensor:
        return operand(tensor.detach(), self._matmul_dtype)

    def _rounded(self, products: t.Tensor, dtype: t.dtype) -> t.Tensor:
        return products.to(self._matmul_dtype).to(dtype)


def places_of(indices_BK: t.Tensor, rows_BK: t.Tensor | None, dict_size: int) -> t.Tensor:
    """Where a code's features stand in a flattened (B, F), (B, K)."""
    if rows_BK is None:
        rows_BK = t.arange(len(indices_BK), device=indices_BK.device)[:, None]
    return rows_BK * dict_size + indices_BK


def all_products(name: str, rows_BD: t.Tensor, weight_FD: t.Tensor) -> t.Tensor:
    """rows W^T of operands, (B, F), in a buffer that the next call with the same name overwrites."""
    shape = (len(rows_BD), len(weight_FD))
    products_BF = scratch(name, shape, rows_BD.dtype)
    return t.mm(rows_BD, weight_FD.t(), out=products_BF)
