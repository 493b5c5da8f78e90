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
from .memory import scratch

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
        rows_BK: the row of each, ascending, where a batch shares its B K features; otherwise None.
        smallest: each row's smallest positive selected mean, (B,), inf if it has none; over a batch the only one, (1,).
        fired_F: whether the mean selects the feature in any row (bool). If noise decides the selection, ties with the K-th
            largest mean count as selected. A mean of 0 only counts in a step without noise, as a ReLU's zeros do upstream.
    """

    fired_F: t.Tensor
    rows_BK: t.Tensor | None = None

    def __init__(self, batch: int, k: int):
        self.k = k
        with t.inference_mode(False):  # other threads write to them
            self.indices_BK = t.empty(batch, k, dtype=t.int64)
            self.values_BK, self.mu_BK = t.empty(2, batch, k)
            self.smallest = t.empty(batch)
        outputs = (self.indices_BK, self.values_BK, self.mu_BK, self.smallest)
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
        fired_F = t.zeros(len(bias_F), dtype=t.bool)
        kernels.draw_rows(
            _readable(products_BF),
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
        self.smallest[rows] = values_BK.masked_fill(values_BK <= 0, t.inf).amin(-1)
        fired_F = t.zeros(mu_BF.shape[1], dtype=t.bool)
        fired_F[indices_BK.flatten()] = True
        return fired_F


class SharedCode:
    """Finds the B k largest means of a batch, or means with noise.

    The numbers are counted by the upper half of their bits. The half of the B k-th largest follows from the counts, and the
    largest themselves from the few numbers that share it.

    Arguments:
        std: the noise's standard deviation. 0: no noise.
        key: 64 bits that seed the noise.
    """

    def __init__(self, batch: int, n_features: int, k: int, std: float, key: int):
        self.batch, self.k, self._std, self._key = batch, k, std, key
        self._mu_BF = scratch("means", (batch, n_features), t.float32).numpy()
        self._keys_BF = self._mu_BF
        if std:
            self._keys_BF = scratch("noisy means", (batch, n_features), t.float32).numpy()
        # Of the keys and of the means, by block of rows and by the upper half of their bits.
        self._counts = np.zeros((2, -(-batch // BLOCK_ROWS), 1 << 16), np.uint32)

    def draw(self, products_of: Callable[[slice], tuple[t.Tensor, t.Tensor]]) -> DrawnCode:
        """The code, with the keys as its values.

        Arguments:
            products_of: the means of some rows as two terms to add, see `encode.BatchMeans.unfinished`.
        """
        kernels, code = _kernels(), DrawnCode(self.batch, self.k)
        map_row_blocks(lambda rows: self._count(rows, *products_of(rows)), self.batch, BLOCK_ROWS)
        threshold, n_above, n_equal = self._largest(self._keys_BF, self._counts[0])
        mean_threshold = self._largest(self._mu_BF, self._counts[1])[0] if self._std else threshold
        left = self.batch * self.k - n_above.sum()  # among equal numbers, the first are taken
        n_equal = np.diff(np.minimum(n_equal.cumsum(), left), prepend=0)
        ends = (n_above + n_equal).cumsum()
        code.rows_BK = t.empty_like(code.indices_BK)
        outputs = (code.indices_BK, code.rows_BK, code.values_BK, code.mu_BK)
        arrays = [output.view(-1).numpy() for output in outputs]

        def take(rows: slice) -> t.Tensor:
            i = rows.start // BLOCK_ROWS
            own = slice(ends[i] - n_above[i] - n_equal[i], ends[i])
            keys = self._keys_BF[rows], self._mu_BF[rows], threshold, n_equal[i]
            kernels.take_above(*keys, rows.start, *(array[own] for array in arrays))
            fired_F = np.zeros(self._mu_BF.shape[1], bool)
            kernels.fire_from(self._mu_BF[rows], mean_threshold, fired_F)
            return t.from_numpy(fired_F)

        code.fired_F = t.stack(map_row_blocks(take, self.batch, BLOCK_ROWS)).any(0)
        if mean_threshold <= 0:
            mean_threshold = self._mu_BF[self._mu_BF > 0].min(initial=np.inf)
        code.smallest = t.tensor([float(mean_threshold)])
        return code

    def _count(self, rows: slice, products_BF: t.Tensor, bias_F: t.Tensor) -> None:
        """Write the means and the keys of some rows, and count them."""
        _kernels().count_by_rank(
            _readable(products_BF),
            bias_F.detach().numpy(),
            np.float32(self._std),
            _normal_values(),
            np.uint64(self._key),
            rows.start,
            self._mu_BF[rows],
            self._keys_BF[rows],
            *self._counts[:, rows.start // BLOCK_ROWS],
        )

    def _largest(self, x_BF: np.ndarray, counts: np.ndarray) -> tuple[Any, Any, Any]:
        """The B k-th largest, and how many numbers of each block of rows exceed it and equal it."""
        kernels, n_above = _kernels(), np.zeros(len(counts), np.int64)
        rank, missing = kernels.rank_of_largest(counts, self.batch * self.k, n_above)

        def collect(rows: slice) -> np.ndarray:
            found = np.empty(counts[rows.start // BLOCK_ROWS, rank], np.float32)
            kernels.collect_rank(x_BF[rows], rank, found)
            return found

        of_rank = map_row_blocks(collect, self.batch, BLOCK_ROWS)
        threshold = np.partition(np.concatenate(of_rank), -missing)[-missing]
        n_above = n_above + np.array([np.count_nonzero(found > threshold) for found in of_rank])
        n_equal = np.array([np.count_nonzero(found == threshold) for found in of_rank])
        return threshold, n_above, n_equal


def _readable(products_BF: t.Tensor) -> np.ndarray:
    """An array that the kernels read: float32, or bfloat16 as uint16."""
    is_bf16 = products_BF.dtype == t.bfloat16
    return (products_BF.view(t.uint16) if is_bf16 else products_BF).detach().numpy()


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
            SharedCode(1, 4, 1, 1.0, 0).draw(lambda _: (products_BF, t.zeros(4)))
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
