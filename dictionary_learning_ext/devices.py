"""The device to compute on, and glibc's settings for memory."""

import contextlib
import ctypes
import functools
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch as t

from .config.run import AUTO
from .errors import ConfigError, first_line

logger = logging.getLogger(__name__)


def without_auto(device: str | None) -> str:
    """The device, with auto and None replaced: by cuda if torch can use it, or else by cpu."""
    if device in (None, AUTO):
        return "cuda" if t.cuda.is_available() else "cpu"
    return device


def chosen_device(device: str | None, name: str = "device") -> str:
    """The device to compute on, after a check that torch can use it.

    Arguments:
        device: auto, cpu, cuda, cuda:N, or another that torch knows. None: auto.
        name: the setting that names the device, for messages.

    Raises: ConfigError if there is no such device, or it can't be used.
    """
    device = without_auto(device)
    try:
        t.device(device)
    except RuntimeError as error:  # which lists all that torch may be built for
        raise ConfigError(
            name=name, value=device, expected="auto, cpu, cuda or cuda:N, e.g. cuda:0"
        ) from error
    try:
        t.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(
            f"can't be used ({first_line(error)})",
            name=name,
            value=device,
            instead=f"use {name}='cpu'",
        ) from error
    return device


@functools.cache
def bf16_instructions() -> str | None:
    """The instructions by which torch multiplies bfloat16 matrices on this CPU: AMX, AVX-512 or another architecture's.
    None if it has none.

    On x86, an environment that limits torch to AVX2 (ATEN_CPU_CAPABILITY) leaves none.
    """
    if not (t.backends.mkldnn.is_available() and t.ops.mkldnn._is_mkldnn_bf16_supported()):
        return None
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    if t.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX", "DEFAULT"):
        return None
    if t.cpu._is_amx_tile_supported():  # torch 2.6 has no public names for these
        return "AMX"
    return "AVX-512" if t.cpu._is_avx512_bf16_supported() else None


def warn_of_slow_bf16(device: str, dtype: str, slow: Sequence[str]) -> None:
    """Warn of bfloat16 on a CPU that lacks instructions for it.

    Arguments:
        slow: the parts of a run whose matmuls are torch's own. Ours (`trainers/matmuls.py`) take about as long as in float32.
    """
    is_slow = device == "cpu" and bf16_instructions() is None
    if is_slow and slow and dtype == "bfloat16":
        logger.warning(
            "dtype='bfloat16': this CPU has no instructions for it, and matmuls of %s take 5 to 30 times as long as in "
            "float32; leave it out unless the numbers have to be those of bfloat16",
            " and ".join(slow),
        )


@contextlib.contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Let CUDA multiply float32 matrices in TF32 inside, if `allowed`."""
    if not allowed:
        yield
        return
    products: Any = t.backends.cuda.matmul
    name, value = "allow_tf32", True
    try:
        former = products.allow_tf32
    except RuntimeError:  # the caller has set it by its newer name
        name, value, former = "fp32_precision", "tf32", products.fp32_precision
    setattr(products, name, value)
    try:
        yield
    finally:
        setattr(products, name, former)


SWITCH = "VSAE_TUNE_PROCESS"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of large freed blocks, in this process from now on.

    By default, glibc gets each block above 32 MB from the system, which clears its pages, and returns it when it is
    freed. For the logits of a small language model that takes a third of the time of its losses. Afterwards, such
    blocks come from the heap, of which up to 2 GB may stay free (mallopt(3)). The peak of memory rises by 6 to 11%
    (experiments/results/benchmark_memory.md). Does nothing without glibc, if glibc's environment variables are set, or
    with VSAE_TUNE_PROCESS=0 in the environment.
    """
    is_set = "GLIBC_TUNABLES" in os.environ or any(n.startswith("MALLOC_") for n in os.environ)
    if is_set or os.environ.get(SWITCH) == "0":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
