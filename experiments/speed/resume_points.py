"""How long a resume point takes to write, and how large it is.

    python -m experiments.speed.resume_points bench     # about 2 minutes, 3 GB of disk
    python -m experiments.speed.resume_points tables    # write the page's tables again

A trainer on the CPU takes one step, so that Adam has its averages; then its point is written several times,
as a run writes it. A run on a GPU copies to the CPU first, over PCIe, which takes less than the rest.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.run_folder import resume_points
from dictionary_learning_ext.trainers.state import trainer_state
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    activations,
    header,
    page_by_cpu,
    trainer_arguments,
    write_for_this_cpu,
)
from experiments.stages import Page, Stages

BATCH, D, K, TURNS = 64, 512, 32, 5
SIZES = (4096, 16_384, 65_536)  # F
PARTS = {"save_tensors": "the file", "sync": "to the disk"}
"""Functions of resume_points, and what they do. Points of before had a hash of the file, too."""
ON_PAPER = ((2304, 65_536), (2304, 262_144), (2304, 2**20), (4096, 2**20))  # D, F
WIDTHS = (768, 2304, 4096)  # D
GRACE = 30  # seconds from SIGTERM to SIGKILL: SLURM's KillWait, Kubernetes' terminationGracePeriodSeconds


def timed(seconds: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose seconds are added to those of `name`, and this process's on a CPU, too."""

    def call(*arguments: Any, **options: Any) -> Any:
        began, worked = time.perf_counter(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] += time.perf_counter() - began
            seconds[f"{name}, CPU"] += time.process_time() - worked

    return call


def write(trainer: Any, folder: Path, step: int) -> dict[str, float]:
    """Write a point. Returns the seconds of its parts and of all."""
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for function, name in PARTS.items():
            original = getattr(resume_points, function)
            stack.enter_context(
                mock.patch.object(resume_points, function, timed(seconds, name, original))
            )
        save = timed(seconds, "all", resume_points.save_point)
        save(folder, step, trainer_state(trainer), {})
    return dict(seconds)


def point(dict_size: int) -> dict[str, Any]:
    """The bytes of a point, and the medians of its seconds."""
    trainer = VariationalTopKTrainer(**trainer_arguments(D, dict_size, K))
    trainer.update(1, activations(BATCH, D))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns = [write(trainer, folder, step) for step in range(TURNS)]
        last = resume_points.resume_point(folder, TURNS - 1)
        n_bytes = last.stat().st_size
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    return {"bytes": n_bytes, "seconds": medians}


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    points = {str(dict_size): point(dict_size) for dict_size in SIZES}
    setting = f"D={D}, fp32, seed {SEED}, medians of {TURNS}, local disk, beside other work"
    content = {"header": header(setting, "numpy"), "points": points}
    write_for_this_cpu(RESULTS / "benchmark_resume.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    points = content["points"]
    names = [name for name in points[str(SIZES[0])]["seconds"] if not name.endswith("CPU")]
    rows = {
        f"{int(dict_size):,}": [
            f"{found['bytes'] / 1e9:.2f}",
            f"{found['bytes'] / (int(dict_size) * D):.1f}",
            *(f"{found['seconds'][name]:.2f}" for name in (*names, "all, CPU")),
            f"{found['bytes'] / 1e9 / found['seconds']['all']:.2f}",
        ]
        for dict_size, found in points.items()
    }
    columns = ["GB", "bytes / FD", *(f"{name}, s" for name in names), "of these on a CPU", "GB/s"]
    largest = points[str(SIZES[-1])]
    weights = SIZES[-1] * D
    measured = {"as measured": "all", "the CPU's part alone": "all, CPU"}
    per_weight = {title: largest["seconds"][name] / weights for title, name in measured.items()}
    bytes_per_weight = largest["bytes"] / weights
    paper = {
        f"{width:,} x {dict_size:,}": [
            f"{width * dict_size * bytes_per_weight / 1e9:.1f}",
            *(f"{width * dict_size * seconds:,.0f}" for seconds in per_weight.values()),
            f"{3 * width * dict_size * bytes_per_weight / 1e9:.0f}",
        ]
        for width, dict_size in ON_PAPER
    }
    reach = {
        f"{width:,}": [f"{GRACE / seconds / width:,.0f}" for seconds in per_weight.values()]
        for width in WIDTHS
    }
    seconds_columns = [f"s, {title}" for title in measured]
    return [
        content["header"],
        "",
        *table("F", rows, columns),
        "",
        "Larger ones, at the speed of the last row:",
        "",
        *table("D x F", paper, ["GB", *seconds_columns, "GB of disk for three"]),
        "",
        *table(f"D, and the F written in {GRACE} s", reach, list(measured)),
    ]


STAGES = Stages(
    "speed.resume_points", {"bench": measure}, {"benchmark_resume": Page(page_by_cpu(tables))}
)

if __name__ == "__main__":
    STAGES.run()
