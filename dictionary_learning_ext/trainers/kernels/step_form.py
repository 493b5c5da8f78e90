"""The sizes at which a step's parts change their form, and which forms are fastest on this machine.

All forms give the same numbers up to rounding. The defaults were measured on 2 cores with AVX-512,
at B=2048, D=512, F=2048 (experiments/results/benchmark_parts.md).
"""

import functools
from dataclasses import dataclass

import torch as t


@dataclass(frozen=True)
class StepForm:
    """Which form each part of a step takes. The defaults are for a CPU without AMX."""

    sparse_density: float = 1 / 8
    """The largest k/F at which products with a code are k-sparse. Above it they are matmuls. With AMX
    it is 1/16."""
    sparse_projection_density: float = 1 / 16
    """The same for `project` alone, where matmuls are in bf16. With AMX it is 1/128: there is no fast
    sparse form in bf16, and AMX multiplies bf16 matrices in a seventh of fp32's time."""
    means_at_once: int = 2**24
    """How many means are held at a time where not all are needed: 64 MB in fp32. With fewer, the
    weights are read more often."""
    rows_at_once: int = 128
    """How many rows one thread encodes and draws at a time, on a CPU. The number is fixed, so that
    results don't depend on the number of threads. More rows are at most a tenth faster on two threads,
    and leave less to share among many."""
    keeps_rectified: bool = True
    """Whether a ReLU's means are kept for their moments. On a GPU memory is scarcer than time."""
    reads_dead_count: bool = True
    """Whether AuxK reads the number of dead features. On a GPU the host would have to wait for it."""

    @classmethod
    def of(cls, device: t.device) -> "StepForm":
        """The fastest form on a device. On a GPU sparse products were not measured: all are dense."""
        if device.type != "cpu":
            return cls(sparse_density=0.0, keeps_rectified=False, reads_dead_count=False)
        if _has_amx():
            return cls(sparse_density=1 / 16, sparse_projection_density=1 / 128)
        return cls()


@functools.cache
def _has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices by AMX."""
    return t.cpu._is_amx_tile_supported()  # torch 2.6 has no public name for it
