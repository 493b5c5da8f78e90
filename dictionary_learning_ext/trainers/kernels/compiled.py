"""Runs the compiled selection of `row_kernels.py` on several threads of a CPU.

Each thread encodes a block of rows and draws its code while the means are in cache. numba compiles the kernel
once per installation. Where it can't, `is_available` is false, and trainers use `trainers/step.py` instead.
"""

import atexit
import functools
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as t

from ...config.sae import NoiseOn
from ...errors import first_line

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BLOCK_ROWS = 128
"""How many rows a thread encodes and draws at a time. It is fixed, so that results don't depend on the number
of threads. More rows are at most a tenth faster on two threads, and can be shared among fewer."""


def is_available(weight: t.Tensor, products: t.dtype = t.float32) -> bool:
    """Whether the compiled step can be used: weights in float32 on a CPU, and numba compiles it for this matmul dtype.

    The first call compiles it. Trainers call it when they are built, before a progress bar is shown.
    """
    return weight.device.type == "cpu" and weight.dtype == t.float32 and _compiles(products)


class BatchNoise(NamedTuple):
    """The noise of a batch; see `row_kernels.draw_rows`. Default: none."""

    on: NoiseOn | None = None
    scale: float = 0.0
    key: int = 0


class DrawnCode:
    """The code of a batch, and what the mean alone selects; the kernel writes it, some rows at a time.

    Attributes:
        indices_BK: each row's selected features.
        values_BK: their values in the code.
        mu_BK: their means.
        smallest_B: each row's smallest positive selected mean; inf if it has none.
        fired_F: whether the mean selects the feature in any row (bool). If noise decides the selection, ties with the K-th
            largest mean count as selected. A mean of 0 only counts in a step without noise, as a ReLU's zeros do upstream.
    """

    fired_F: t.Tensor

    def __init__(self, batch: int, k: int):
        self.k = k
        with t.inference_mode(False):  # other threads write to them
            self.indices_BK = t.empty(batch, k, dtype=t.int64)
            self.values_BK, self.mu_BK = t.empty(2, batch, k)
            self.smallest_B = t.empty(batch)
        outputs = (self.indices_BK, self.values_BK, self.mu_BK, self.smallest_B)
        self._arrays = [output.numpy() for output in outputs]

    def draw(
        self,
        rows: slice,
        products_BF: t.Tensor,
        bias_F: t.Tensor,
        std: t.Tensor,
        noise: BatchNoise,
    ) -> t.Tensor:
        """Draw some rows. Returns which features fire in them (bool)."""
        kernels = _kernels()
        is_bf16 = products_BF.dtype == t.bfloat16
        fired_F = t.zeros(len(bias_F), dtype=t.bool)
        kernels.draw_rows(
            (products_BF.view(t.uint16) if is_bf16 else products_BF).detach().numpy(),
            bias_F.detach().numpy(),
            np.float32(std),
            kernels.NOISE_CODES[noise.on],
            np.float32(noise.scale),
            _normal_values(),
            np.uint64(noise.key),
            rows.start,
            self.k,
            *(array[rows] for array in self._arrays),
            fired_F.numpy(),
        )
        return fired_F

    def draw_as_upstream(self, rows: slice, mu_BF: t.Tensor) -> t.Tensor:
        """Select without noise where a ReLU leaves fewer than K positive means. torch's topk chooses among the zeros,
        as upstream does.
        """
        values_BK, indices_BK = mu_BF.topk(self.k, sorted=False)
        self.indices_BK[rows] = indices_BK
        self.values_BK[rows] = self.mu_BK[rows] = values_BK
        self.smallest_B[rows] = values_BK.masked_fill(values_BK <= 0, t.inf).amin(-1)
        fired_F = t.zeros(mu_BF.shape[1], dtype=t.bool)
        fired_F[indices_BK.flatten()] = True
        return fired_F


def group_by_feature(indices_BK: t.Tensor, n_features: int) -> tuple[t.Tensor, t.Tensor, t.Tensor]:
    """The positions in (B, K) indices sorted by feature, their rows, and each feature's first position."""
    order_N, rows_N = t.empty(2, indices_BK.numel(), dtype=t.int64)
    starts_F = t.empty(n_features, dtype=t.int64)
    flat_N, k = indices_BK.flatten().numpy(), indices_BK.shape[1]
    _kernels().group_by_feature(flat_N, k, order_N.numpy(), rows_N.numpy(), starts_F.numpy())
    return order_N, rows_N, starts_F


@functools.cache
def _normal_values() -> np.ndarray:
    """The mean of N(0, 1) in each of 2^16 equally likely intervals, float32."""
    edges = t.special.ndtri(t.arange(2**16 + 1, dtype=t.float64) / 2**16)
    density = t.exp(-(edges**2) / 2) / (2 * t.pi) ** 0.5
    return (2**16 * (density[:-1] - density[1:])).float().numpy()


def map_row_blocks(
    function: Callable[[slice], Result], batch: int, rows_at_once: int
) -> list[Result]:
    """Call `function(rows)` for each block of rows, and return the results in order.

    Runs without gradients on as many threads as torch uses, each with torch's own threads turned off. Torch's
    threads would all wait for the slowest one after every operation, which takes long on a busy machine. Blocks have
    a fixed size, so results don't depend on the number of threads.
    """
    blocks = [slice(i, min(i + rows_at_once, batch)) for i in range(0, batch, rows_at_once)]
    n_threads = t.get_num_threads()
    if n_threads == 1 or len(blocks) == 1:
        with t.no_grad():
            return list(map(function, blocks))
    return list(_pool(n_threads).map(function, blocks))


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """A pool of threads that each use one torch thread."""
    started = threading.Barrier(n_threads + 1)

    def initialise() -> None:
        t.get_num_threads()  # the first call initialises torch in this thread
        t.set_num_threads(1)
        t.set_grad_enabled(False)
        started.wait()

    pool = ThreadPoolExecutor(n_threads, "row-blocks", initialise)
    try:
        for _ in range(n_threads):
            pool.submit(lambda: None)
        started.wait()
    except BaseException:
        started.abort()  # otherwise the threads that did start would wait forever
        raise
    t.set_num_threads(n_threads)  # the workers' setting also changed the default for new threads
    return pool


os.register_at_fork(
    after_in_child=_pool.cache_clear
)  # a child process has the pool without its threads


@functools.cache
def _compiles(products: t.dtype) -> bool:
    """Compile the kernels for a matmul dtype, or load them from numba's cache. Returns False if numba fails, and warns."""
    try:
        with logging_compilation("the selection of features"):
            products_BF = t.zeros(1, 4, dtype=products)
            noise, out = BatchNoise("both", 1.0, 0), DrawnCode(1, 1)
            out.draw(slice(0, 1), products_BF, t.zeros(4), t.ones(()), noise)
            group_by_feature(out.indices_BK, 4)
    except Exception as error:  # numba's errors are of many types, or it is missing
        plain = re.sub(r"\x1b\[\d+m", "", first_line(error))  # numba's messages are coloured
        logger.warning("numba can't compile the selection of features; torch does it: %s", plain)
        return False
    return True


@contextmanager
def logging_compilation(what: str) -> Iterator[None]:
    """Log once if numba compiles something within it, instead of loading it from its cache."""
    from numba.core import event

    class Listener(event.Listener):
        has_logged = False

        def on_start(self, event: Any) -> None:
            if not self.has_logged:
                logger.info("compiling %s (once; it is cached)", what)
            self.has_logged = True

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


def _kernels() -> ModuleType:
    return compiled_module(f"{__package__}.row_kernels")


@functools.cache
def compiled_module(name: str) -> ModuleType:
    """Import a module that numba compiles. If numba finds no folder for its cache, it gets a temporary one.

    Raises: ImportError if numba is missing.
    """
    try:
        return import_module(name)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        import numba

        folder = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = folder  # pyright: ignore[reportAttributeAccessIssue]
        logger.warning(
            "numba can write neither beside the package nor in the home folder: each process compiles "
            "again; set NUMBA_CACHE_DIR to a folder that can be written"
        )
        return import_module(name)
