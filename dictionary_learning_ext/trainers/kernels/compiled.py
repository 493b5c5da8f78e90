"""The CPU's compiled form of drawing a code: runs `row_kernels.py` on several threads.

A thread encodes some rows and draws their code while their means are in cache. numba compiles the
kernel once per installation. Where it can't, `serves` says so, and `trainers/step.py` does the same.
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

ROWS_AT_ONCE = 128
"""How many rows one thread encodes and draws at a time. The number is fixed, so that results don't depend on
the number of threads. More rows are at most a tenth faster on two threads, and leave less to share among
many."""


def serves(weight: t.Tensor, products: t.dtype = t.float32) -> bool:
    """Whether the compiled form takes products of this dtype with these weights: float32 on a CPU.

    The first call compiles it. Trainers ask when they are built, before a progress bar is shown.
    """
    return weight.device.type == "cpu" and weight.dtype == t.float32 and _compiles(products)


class Noise(NamedTuple):
    """What the noise is: see `row_kernels.draw_rows`."""

    on: NoiseOn | None
    scale: float
    key: int


class DrawnRows:
    """The tensors that the kernel writes, for a batch; see `select.DrawnCode`."""

    def __init__(self, batch: int, k: int, *, by_magnitude: bool):
        self.k = k
        self.by_magnitude = by_magnitude
        with t.inference_mode(False):  # other threads write to them
            self.indices_BK = t.empty(batch, k, dtype=t.int64)
            self.values_BK, self.mu_BK = t.empty(2, batch, k)
            self.smallest_B, self.survived_B = t.empty(2, batch)
        outputs = (self.indices_BK, self.values_BK, self.mu_BK, self.smallest_B, self.survived_B)
        self._arrays = [output.numpy() for output in outputs]

    def draw(
        self,
        rows: slice,
        products_BF: t.Tensor,
        bias_F: t.Tensor,
        std: t.Tensor,
        noise: Noise,
    ) -> t.Tensor:
        """Fill in some rows. Returns what fired in them."""
        kernels = _kernels()
        is_bf16 = products_BF.dtype == t.bfloat16
        fired_F = t.zeros(len(bias_F), dtype=t.bool)
        kernels.draw_rows(
            (products_BF.view(t.uint16) if is_bf16 else products_BF).detach().numpy(),
            bias_F.detach().numpy(),
            self.by_magnitude,
            std.detach().reshape(-1, std.shape[-1] if std.dim() else 1).numpy(),
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
        """`draw` without noise, where a ReLU leaves fewer than K positive means: upstream's topk decides
        which zeros are selected.
        """
        values_BK, indices_BK = mu_BF.topk(self.k, sorted=False)
        self.indices_BK[rows] = indices_BK
        self.values_BK[rows] = self.mu_BK[rows] = values_BK
        self.smallest_B[rows] = values_BK.masked_fill(values_BK <= 0, t.inf).amin(-1)
        fired_F = t.zeros(mu_BF.shape[1], dtype=t.bool)
        fired_F[indices_BK.flatten()] = True
        return fired_F


def top_k(values_BF: t.Tensor, k: int, *, by_magnitude: bool) -> tuple[t.Tensor, t.Tensor]:
    """See `select.top_k`."""
    batch, n_features = values_BF.shape
    out, bias_F = DrawnRows(batch, k, by_magnitude=by_magnitude), t.zeros(n_features)

    def take(rows: slice) -> None:
        out.draw(rows, values_BF[rows], bias_F, t.zeros(()), Noise(None, 0.0, 0))

    map_row_blocks(take, batch, ROWS_AT_ONCE)
    return out.values_BK, out.indices_BK


def group_by_feature(indices_BK: t.Tensor, n_features: int) -> tuple[t.Tensor, t.Tensor, t.Tensor]:
    """See `row_kernels.group_by_feature`: the places, their rows, and where each feature's begin."""
    order_N, rows_N = t.empty(2, indices_BK.numel(), dtype=t.int64)
    starts_F = t.empty(n_features, dtype=t.int64)
    flat_N, k = indices_BK.flatten().numpy(), indices_BK.shape[1]
    _kernels().group_by_feature(flat_N, k, order_N.numpy(), rows_N.numpy(), starts_F.numpy())
    return order_N, rows_N, starts_F


@functools.cache
def _normal_values() -> np.ndarray:
    """The mean of N(0, 1) over each of 2^16 intervals that are equally likely: float32."""
    edges = t.special.ndtri(t.arange(2**16 + 1, dtype=t.float64) / 2**16)
    density = t.exp(-(edges**2) / 2) / (2 * t.pi) ** 0.5
    return (2**16 * (density[:-1] - density[1:])).float().numpy()


def map_row_blocks(
    function: Callable[[slice], Result], batch: int, rows_at_once: int
) -> list[Result]:
    """What `function(rows)` returns for each block of `rows_at_once` rows, in order.

    It runs without gradients, in as many threads as torch uses, each with torch's own threads turned
    off: torch's threads would all wait for the slowest after every operation, which takes long on a
    busy machine. Blocks have a fixed number of rows, so results do not depend on the number of
    threads.
    """
    blocks = [slice(i, min(i + rows_at_once, batch)) for i in range(0, batch, rows_at_once)]
    n_threads = t.get_num_threads()
    if n_threads == 1 or len(blocks) == 1:
        with t.no_grad():
            return list(map(function, blocks))
    return list(_pool(n_threads).map(function, blocks))


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one thread."""
    started = threading.Barrier(n_threads + 1)

    def initialise() -> None:
        t.get_num_threads()  # the first call sets torch up in this thread
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
    t.set_num_threads(n_threads)  # the workers' setting also became the default for new threads
    return pool


if hasattr(os, "register_at_fork"):  # a child process has the pool but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.cache
def _compiles(products: t.dtype) -> bool:
    """Compile the kernels for a dtype of products, which is logged, or load it from numba's cache.

    Where numba can't compile it, this returns False, and warns.
    """
    try:
        with logging_compilation("the selection of features"):
            products_BF = t.zeros(1, 4, dtype=products)
            noise, out = Noise("both", 1.0, 0), DrawnRows(1, 1, by_magnitude=False)
            out.draw(slice(0, 1), products_BF, t.zeros(4), t.ones(()), noise)
            group_by_feature(out.indices_BK, 4)
    except Exception as error:  # of many kinds, e.g. numba is missing
        plain = re.sub(r"\x1b\[\d+m", "", first_line(error))  # numba's are coloured
        logger.warning("numba can't compile the selection of features; torch does it: %s", plain)
        return False
    return True


@contextmanager
def logging_compilation(what: str) -> Iterator[None]:
    """Inside, say once if numba compiles. What it reads from its cache is no news."""
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
    """A module that numba compiles. Where numba has no folder for its cache, it gets one that lives as long as
    the process.

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
