"""Runs a function on a batch's blocks of rows, on several threads.

On a CPU the batch is cut into blocks of a fixed number of rows. As many threads as torch uses work
through them, each with torch's own threads turned off: torch's threads would all wait for the slowest
after every operation, which takes long on a busy machine. Results do not depend on the number of
threads.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch as t

Result = TypeVar("Result")


def map_row_blocks(
    function: Callable[[slice], Result], batch: int, rows_at_once: int
) -> list[Result]:
    """What `function(rows)` returns for each block of `rows_at_once` rows, in order.

    The function runs without gradients.
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

    _let_torchs_threads_sleep(n_threads)
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


def _let_torchs_threads_sleep(n_threads: int) -> None:
    """Make torch's own threads sleep while they wait for work, instead of spinning for milliseconds.

    A spinning thread keeps ours, and other processes, from its core. GNU's OpenMP, which torch uses on
    Linux, spins only as long as it has no more threads than there are cores (libgomp's
    `gomp_throttled_spin_count_var`). So give it more: those of one operation in a thread that never
    ends. That suffices if torch uses at least half of the cores. With another OpenMP it changes nothing.
    """
    has_run = threading.Event()

    def run_once_and_wait() -> None:
        t.set_num_threads(n_threads)
        t.zeros(2**16 * n_threads).add_(1)  # large enough for all threads
        has_run.set()
        threading.Event().wait()

    threading.Thread(target=run_once_and_wait, name="more-threads-than-cores", daemon=True).start()
    has_run.wait()


if hasattr(os, "register_at_fork"):  # a child process has the pool but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
