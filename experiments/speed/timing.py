"""What the benchmarks share: a trainer's arguments, timing in turns, the machine's line, and results by
kind of CPU."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.config.architectures import upstream_lr
from dictionary_learning_ext.config.sae import DEAD_FEATURE_THRESHOLD, UNUSED_BY
from experiments import raw_results

SEED = 0
Step = Callable[[], object]
Tables = Callable[[dict[str, Any]], list[str]]


def trainer_arguments(activation_dim: int, dict_size: int, k: int) -> dict[str, Any]:
    """Arguments that upstream's TopKTrainer and VariationalTopKTrainer share."""
    return {
        "steps": 10**6,
        "activation_dim": activation_dim,
        "dict_size": dict_size,
        "k": k,
        "layer": 0,
        "lm_name": "none",
        "lr": upstream_lr(dict_size),
        "warmup_steps": 10,
        "decay_start": None,
        "seed": SEED,
        "device": "cpu",
    }


def equations(**options: Any) -> dict[str, Any]:
    """Options of a VariationalTopKTrainer, as these were by default when it was first timed: the paper's equations, with
    upstream's AuxK."""
    plain: dict[str, Any] = {
        **{"sigma": 1.0, "noise_on": "both", "noise_anneal_steps": None},
        **{"beta": 1.0, "kl_scope": "all", "prior_std": 1.0, "log_var_init": -2.0},
        "dead_feature_threshold": DEAD_FEATURE_THRESHOLD,
    }
    unused = UNUSED_BY[options.get("posterior", "fixed")]
    return {name: value for name, value in plain.items() if name not in unused} | options


def activations(batch: int, activation_dim: int) -> t.Tensor:
    return t.randn(batch, activation_dim, generator=t.Generator().manual_seed(SEED))


def update(trainer: Any, x_BD: t.Tensor) -> Step:
    """A function that takes the trainer's next step."""
    steps = iter(range(10**6))
    return lambda: trainer.update(next(steps), x_BD)


def medians(functions: dict[str, Step], rounds: int = 10, counted: int = 2) -> dict[str, float]:
    """The median milliseconds of each function, over `rounds * counted` calls.

    They take turns. Each turn begins with a call that is not counted: it pays for the pages and the
    caches that the previous function took. The first round is not counted either.
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


def cpu() -> str:
    """The kind of this CPU: what it multiplies fast decides which numbers compare."""
    capability = t.backends.cpu.get_cpu_capability()
    return f"{capability}, {'AMX' if t.cpu._is_amx_tile_supported() else 'no AMX'}"


def write_for_this_cpu(path: Path, content: dict[str, Any]) -> None:
    """Replace what this kind of CPU measured before, and keep what other kinds did."""
    raw_results.write(path, raw_results.read_or(path, {}) | {cpu(): content})


def page_by_cpu(tables: Tables) -> Tables:
    """A section for each kind of CPU, the last measured first. Its header says when."""

    def page(by_cpu: dict[str, Any]) -> list[str]:
        newest_first = sorted(by_cpu.items(), key=lambda item: item[1]["header"], reverse=True)
        lines = []
        for name, content in newest_first:
            lines += ["", f"## {name}", "", *tables(content)]
        return lines[1:]

    return page


def header(setting: str, *packages: str) -> str:
    """The date, the machine, the versions, and `setting`."""
    versions = "".join(f", {name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {raw_results.commit()}, {platform.machine()} ({cpu()}), "
        f"{t.get_num_threads()} threads, torch {t.__version__}{versions}; {setting}"
    )
