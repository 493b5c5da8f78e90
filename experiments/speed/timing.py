"""Times of functions that take turns in one process, and what was measured on."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable

import torch as t

from experiments.pages import commit


def medians(
    functions: dict[str, Callable[[], object]], rounds: int = 10, counted: int = 2
) -> dict[str, float]:
    """The median milliseconds of each function, over `rounds * counted` calls.

    They take turns. A turn begins with a call that is not counted: it pays for the pages and the
    caches that the one before it took. The first round is not counted either.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            for call in range(counted + 1):
                started = time.perf_counter()
                function()
                if round_ and call:
                    times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def header(setting: str, *packages: str) -> str:
    """The date, the machine, the versions, and `setting`."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    capability = t.backends.cpu.get_cpu_capability()
    bf16 = "AMX" if t.cpu._is_amx_tile_supported() else "no AMX"
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()} ({capability}, {bf16}), "
        f"{t.get_num_threads()} threads, torch {t.__version__}, {versions}; {setting}"
    )
