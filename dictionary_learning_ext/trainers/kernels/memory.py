"""Buffers that steps reuse, because allocating memory is slow on CPUs."""

import threading

import torch as t

_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: t.dtype) -> t.Tensor:
    """An uninitialised CPU tensor in a reused buffer. The next call with the same `name` overwrites it.

    Each thread has its own buffers. Without them, large blocks may go back to the system whenever they are freed, and
    getting and clearing new pages costs a step more than its matmuls in bf16.
    """
    n_bytes = t.Size(shape).numel() * dtype.itemsize
    with t.inference_mode(False):  # so it can be written to outside of inference mode too
        buffer = getattr(_buffers, name, None)
        if buffer is None or len(buffer) < n_bytes:
            buffer = t.empty(n_bytes, dtype=t.uint8)
            setattr(_buffers, name, buffer)
        return buffer[:n_bytes].view(dtype).view(shape)
