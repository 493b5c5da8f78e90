"""Memory that steps use again, since new memory is slow on CPUs."""

import threading

import torch as t

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
