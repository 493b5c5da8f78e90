"""Products of a TopK code with a decoder: k-sparse where that pays, dense where it does not.

A code f_BF holds K of F values a row, given as `indices_BK` and `values_BK`. Training needs three
products: the reconstruction f W^T, its gradient at the K values, and its gradient at W. Each takes
B K D multiplications sparse and B F D dense, but a dense one runs at several times the rate.
"""

import torch as t
from torch.nn import functional

# Three products together, sparse / dense, on 2 cores with AVX-512 (fp32, B=2048, D=512, F=2048):
# 28 / 75 ms at k/F = 1/32, 56 / 66 at 1/16, 104 / 67 at 1/8 (experiments/results/benchmark_step.md).
# On a GPU, where this was not measured, dense products are used.
SPARSE_DENSITY = 1 / 16


def pays_sparse(k: int, dict_size: int, device: t.device) -> bool:
    """Whether the k-sparse products are the faster ones."""
    return device.type == "cpu" and k <= SPARSE_DENSITY * dict_size


def scatter_code(indices_BK: t.Tensor, values_BK: t.Tensor, dict_size: int) -> t.Tensor:
    """The code as a dense tensor (B, F)."""
    code_BF = values_BK.new_zeros(values_BK.shape[0], dict_size)
    return code_BF.scatter_(1, indices_BK, values_BK)


def sparse_outer(
    indices_BK: t.Tensor, values_BK: t.Tensor, rows_BD: t.Tensor, dict_size: int
) -> t.Tensor:
    """f^T rows, of shape (F, D): for each feature, the sum of the rows it is on in, weighted.

    The code is transposed by sorting its indices; each feature's rows are then summed as one bag.
    """
    k = indices_BK.shape[1]
    order = indices_BK.flatten().int().argsort(stable=True)
    features = indices_BK.flatten()[order]
    offsets_F = t.searchsorted(features, t.arange(dict_size, device=features.device))
    return functional.embedding_bag(
        order // k,
        rows_BD,
        offsets_F,
        mode="sum",
        per_sample_weights=values_BK.flatten()[order],
    )


class SparseCode:
    """A code whose products touch only its K values a row. Sums are in the weights' dtype."""

    def __init__(self, indices_BK: t.Tensor, values_BK: t.Tensor, weight_DF: t.Tensor):
        self.indices_BK = indices_BK
        self.dict_size = weight_DF.shape[1]
        self.values_BK = values_BK.detach().to(weight_DF.dtype).requires_grad_()
        with t.enable_grad():
            self._product_BD = functional.embedding_bag(
                indices_BK,
                weight_DF.detach().t().contiguous(),  # no copy when W is stored by feature
                mode="sum",
                per_sample_weights=self.values_BK,
            )

    def decode(self) -> t.Tensor:
        """f W^T, of shape (B, D)."""
        return self._product_BD.detach()

    def backward(self, grad_BD: t.Tensor) -> tuple[t.Tensor, t.Tensor]:
        """The gradients of the values, (B, K), and of the weight, (D, F), from that of f W^T."""
        (grad_values_BK,) = t.autograd.grad(self._product_BD, self.values_BK, grad_BD)
        grad_weight_FD = sparse_outer(
            self.indices_BK, self.values_BK.detach(), grad_BD, self.dict_size
        )
        return grad_values_BK, grad_weight_FD.t()


class DenseCode:
    """A code whose products are dense matmuls in `matmul_dtype`, returned in the weight's dtype."""

    def __init__(
        self,
        indices_BK: t.Tensor,
        values_BK: t.Tensor,
        weight_DF: t.Tensor,
        matmul_dtype: t.dtype,
    ):
        self.indices_BK = indices_BK
        self.dtype = weight_DF.dtype
        self._weight_DF = weight_DF.detach().to(matmul_dtype)
        self._code_BF = scatter_code(indices_BK, values_BK.to(matmul_dtype), weight_DF.shape[1])

    def decode(self) -> t.Tensor:
        """f W^T, of shape (B, D)."""
        return (self._code_BF @ self._weight_DF.t()).to(self.dtype)

    def backward(self, grad_BD: t.Tensor) -> tuple[t.Tensor, t.Tensor]:
        """The gradients of the values, (B, K), and of the weight, (D, F), from that of f W^T."""
        grad_BD = grad_BD.to(self._code_BF.dtype)
        grad_values_BK = (grad_BD @ self._weight_DF).gather(1, self.indices_BK)
        grad_weight_FD = self._code_BF.t() @ grad_BD
        return grad_values_BK.to(self.dtype), grad_weight_FD.t().to(self.dtype)


def top_k_code(
    indices_BK: t.Tensor, values_BK: t.Tensor, weight_DF: t.Tensor, matmul_dtype: t.dtype
) -> SparseCode | DenseCode:
    """The form that is faster at this k, F and device. Both give the same numbers up to rounding."""
    if pays_sparse(indices_BK.shape[1], weight_DF.shape[1], weight_DF.device):
        return SparseCode(indices_BK, values_BK, weight_DF)
    return DenseCode(indices_BK, values_BK, weight_DF, matmul_dtype)
