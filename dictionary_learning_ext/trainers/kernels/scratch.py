"""Memory that training steps use again, because a CPU's allocator gives large blocks back each time.

Having the system hand out and clear fresh pages costs a step more than its matmuls do in bf16.
"""

import threading

import torch as t

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: t.dtype, device: t.device) -> t.Tensor:
    """An uninitialised tensor in the memory that `name` had before: it is lost at the next call.

    Each thread has its own. On a GPU, whose allocator keeps memory itself, a fresh one.
    """
    if device.type != "cpu":
        return t.empty(shape, dtype=dtype, device=device)
    n_bytes = t.Size(shape).numel() * dtype.itemsize
    buffer = getattr(_buffers, name, None)
    if buffer is None or len(buffer) < n_bytes:
        with t.inference_mode(False):  # it may be needed outside of one
            buffer = t.empty(n_bytes, dtype=t.uint8)
        setattr(_buffers, name, buffer)
    return buffer[:n_bytes].view(dtype).view(shape)


def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MB of freed memory, its own maximum, without changing its settings.

    It keeps twice as much as the largest block freed so far, up to 32 MB (mallopt(3), "dynamic
    mmap threshold"). Elsewhere this does nothing.
    """
    t.empty(2**25 - 2**16, dtype=t.uint8)
