"""Memory that training steps reuse.

A CPU's allocator returns large blocks to the system each time they are freed. Getting new pages from
the system, and clearing them, costs a step more than its matmuls in bf16.
"""

import threading

import torch as t

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: t.dtype, device: t.device) -> t.Tensor:
    """An uninitialised tensor in the memory of `name`. The next call with that name overwrites it.

    Each thread has its own memory. On a GPU the tensor is new: the allocator there keeps memory
    itself.
    """
    if device.type != "cpu":
        return t.empty(shape, dtype=dtype, device=device)
    n_bytes = t.Size(shape).numel() * dtype.itemsize
    with t.inference_mode(False):  # so it can be written to outside of inference mode too
        buffer = getattr(_buffers, name, None)
        if buffer is None or len(buffer) < n_bytes:
            buffer = t.empty(n_bytes, dtype=t.uint8)
            setattr(_buffers, name, buffer)
        return buffer[:n_bytes].view(dtype).view(shape)


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory, its maximum, without changing its settings.

    glibc keeps twice the size of the largest block freed so far, which counts up to 32 MB
    (mallopt(3), "dynamic mmap threshold"). With other allocators this does nothing.
    """
    t.empty(2**25 - 2**16, dtype=t.uint8)
