"""The sizes at which a step's parts change their form, and which forms are fastest on this machine.

All forms give the same numbers up to rounding. The defaults were measured on 2 cores with AVX-512,
at B=2048, D=512, F=2048 (experiments/results/benchmark_parts.md).
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch as t


@dataclass(frozen=True)
class StepForm:
    """Which form each part of a step takes. The defaults are for a CPU without AMX."""

    sparse_density: float = 1 / 16
    """The largest k/F at which products with a code are k-sparse. Above it they are matmuls."""
    sparse_projection_density: float = 1.0
    """The same for `project` alone, where matmuls are in bf16. With AMX it is 1/128: there is no fast
    sparse form in bf16, and AMX multiplies bf16 matrices in a seventh of fp32's time."""
    means_at_once: int = 2**24
    """How many means are held at a time where not all are needed: 64 MB in fp32. With fewer, the
    weights are read more often."""
    block: int = 2**19
    """How many numbers of a B x F tensor are in a block of rows, which one thread works through."""
    reads_dead_count: bool = True
    """Whether AuxK reads the number of dead features. On a GPU the host would have to wait for it."""
    partitions_by_numpy: bool = False
    """Whether numpy finds the K largest. numpy 2 partitions in AVX-512, which halves the time on the
    processors that also have AMX. Elsewhere it may lose: on AMD's Zen 4, whose compressing stores
    are slow, torch's topk takes a third to a sixth of numpy's time."""

    @classmethod
    def of(cls, device: t.device) -> "StepForm":
        """The fastest form on a device. On a GPU sparse products were not measured: all are dense."""
        if device.type != "cpu":
            return cls(sparse_density=0.0, reads_dead_count=False)
        if not _has_amx():
            return cls()
        has_numpy_2 = int(np.__version__.partition(".")[0]) >= 2
        return cls(sparse_projection_density=1 / 128, partitions_by_numpy=has_numpy_2)


@functools.cache
def _has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices by AMX."""
    return t.cpu._is_amx_tile_supported()  # torch 2.6 has no public name for it
