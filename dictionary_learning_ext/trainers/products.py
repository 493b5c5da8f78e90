"""The one product that our autograd trainers compute in another dtype than their parameters'."""

import torch as t
from torch.nn import functional


def product(x: t.Tensor, weight: t.Tensor, matmul_dtype: t.dtype | None) -> t.Tensor:
    """x W^T in `matmul_dtype`, returned in the weight's dtype: (…, M), (N, M) -> (…, N)."""
    dtype = matmul_dtype or weight.dtype
    return functional.linear(x.to(dtype), weight.to(dtype)).to(weight.dtype)
