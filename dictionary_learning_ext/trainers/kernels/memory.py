"""Memory that steps and language models use again, since new memory is slow on CPUs."""

import ctypes
import os
import sys
import threading

import torch as t

SWITCH = "VSAE_TUNE_PROCESS"
_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: t.dtype) -> t.Tensor:
    """An uninitialised tensor on the CPU in memory that steps reuse. The next call with `name` overwrites it.

    A CPU's allocator may return large blocks to the system each time they are freed. Getting new
    pages from the system, and clearing them, costs a step more than its matmuls in bf16. Each thread
    has its own memory.
    """
    n_bytes = t.Size(shape).numel() * dtype.itemsize
    with t.inference_mode(False):  # so it can be written to outside of inference mode too
        buffer = getattr(_buffers, name, None)
        if buffer is None or len(buffer) < n_bytes:
            buffer = t.empty(n_bytes, dtype=t.uint8)
            setattr(_buffers, name, buffer)
        return buffer[:n_bytes].view(dtype).view(shape)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed blocks for the next ones, in this process from here on.

    By default glibc gets a block above 32 MB from the system, which clears its pages, and returns it
    when it is freed. For the logits of a small language model that takes a third of the time of its
    losses. Afterwards such blocks come from the heap, of which up to 2 GB may lie free at the end
    (mallopt(3)). The peak of memory rises by 6 to 11% (experiments/results/benchmark_memory.md). Nothing
    is changed where glibc's environment variables are set, if VSAE_TUNE_PROCESS=0 is in the environment, or
    without glibc.
    """
    is_set = "GLIBC_TUNABLES" in os.environ or any(n.startswith("MALLOC_") for n in os.environ)
    if is_set or os.environ.get(SWITCH) == "0" or sys.platform == "win32":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
