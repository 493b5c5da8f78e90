"""What this machine multiplies fast: how products in bfloat16 are computed, and which products of codes are matmuls.

A product in bfloat16 rounds its operands to bfloat16, sums in float32, and rounds the result. On a CPU without instructions
for that, torch takes several times as long as in float32. There the rounded operands are held in float32, multiplied,
and the result is rounded: the same numbers up to the order of sums.

What decides is the device's instructions, never a timing, so a continued run computes as before.
"""

from typing import NamedTuple

import torch as t
from torch import nn
from torch.nn import functional

from ..devices import bf16_instructions


def held_in(dtype: t.dtype, device: t.device) -> t.dtype:
    """The dtype in which operands rounded to `dtype` are multiplied on a device. Their product is rounded by `.to(dtype)`."""
    is_emulated = dtype == t.bfloat16 and device.type == "cpu" and bf16_instructions() is None
    return t.float32 if is_emulated else dtype


def operand(x: t.Tensor, dtype: t.dtype) -> t.Tensor:
    """`x` rounded to `dtype`, as it is multiplied on its device."""
    return x.to(dtype).to(held_in(dtype, x.device))


def product(
    x: t.Tensor, weight: t.Tensor, matmul_dtype: t.dtype | None, bias: t.Tensor | None = None
) -> t.Tensor:
    """x W^T (+ bias), computed and returned in `matmul_dtype` (None: the weight's): (…, M), (N, M) -> (…, N).

    Differentiable. In bfloat16, gradients are rounded as the product is.
    """
    dtype = matmul_dtype or weight.dtype
    held = held_in(dtype, weight.device)
    bias = None if bias is None else bias.to(dtype).to(held)
    return functional.linear(x.to(dtype).to(held), weight.to(dtype).to(held), bias).to(dtype)


class Linear(nn.Linear):
    """torch's, with `product`."""

    def forward(self, input: t.Tensor) -> t.Tensor:
        return product(input, self.weight, None, self.bias)


class Densities(NamedTuple):
    """The largest k/F at which sparse products are faster than matmuls on a CPU.

    Measured on 2 cores, at B=2048, D=512, F=2048 (experiments/results/benchmark_parts.md).
    """

    sparse: float = 1 / 8
    """For all products. With AMX it is 1/16. In bf16 without instructions it is 3/8, as sums of bf16 rows read half of what a
    matmul in fp32 reads."""
    sparse_projection: float = 1 / 16
    """For `project` with matmuls in bf16. With AMX it is 1/128: AMX multiplies bf16 matrices in a seventh of
    fp32's time, and the sparse form isn't faster in bf16."""

    @classmethod
    def here(cls, matmul_dtype: t.dtype) -> "Densities":
        """The densities for this CPU."""
        instructions = bf16_instructions()
        if instructions == "AMX":
            return cls(1 / 16, 1 / 128)
        is_emulated = matmul_dtype == t.bfloat16 and instructions is None
        return cls(sparse=3 / 8) if is_emulated else cls()
