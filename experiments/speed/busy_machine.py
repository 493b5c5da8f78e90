"""A step beside another process that spins: how much longer it takes than on a quiet machine.

    python -m experiments.speed.busy_machine bench     # about 3 minutes
    python -m experiments.speed.busy_machine tables    # write the page again

Start it on a quiet machine. Everything runs in one process, which imports torch and sets two threads
first. Upstream's trainer is measured once before a trainer of ours exists, and again beside ours,
because ours makes torch's threads sleep while they wait (`trainers/kernels/compiled.py`).
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch as t

from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    activations,
    header,
    medians,
    page_by_cpu,
    trainer_arguments,
    update,
    write_for_this_cpu,
)
from experiments.stages import Stages, in_child

BATCH, D, F, TURNS = 2048, 512, 2048, 3
OURS: dict[str, tuple[int, dict[str, Any]]] = {
    "noise on both, k=64, bf16": (64, {"dtype": "bfloat16"}),
    "noise on both, k=512, bf16": (512, {"dtype": "bfloat16"}),
    "noise on both, k=64, fp32": (64, {}),
    "noise on values, k=64, bf16": (64, {"dtype": "bfloat16", "noise_on": "values"}),
    "learned, k=64, bf16": (64, {"dtype": "bfloat16", "posterior": "learned"}),
}


@contextlib.contextmanager
def a_spinning_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def quiet_and_busy(functions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """The milliseconds of each on a quiet machine and on a busy one, in turns."""
    turns = []
    for _ in range(TURNS):
        quiet = medians(functions, rounds=4)
        with a_spinning_process():
            turns.append((quiet, medians(functions, rounds=4)))
    return {
        name: [
            statistics.median(times[name] for times in state) for state in zip(*turns, strict=True)
        ]
        for name in functions
    }


def print_times(_: str) -> str:
    """In this process: every row, as JSON."""
    t.set_num_threads(2)
    x_BD = activations(BATCH, D)

    from dictionary_learning.trainers.top_k import TopKTrainer

    upstream = update(TopKTrainer(**trainer_arguments(D, F, 64)), x_BD)
    rows = quiet_and_busy({"upstream TopK, before a trainer of ours exists": upstream})

    from dictionary_learning_ext import VariationalTopKTrainer

    functions = {"upstream TopK": upstream}
    for name, (k, options) in OURS.items():
        trainer = VariationalTopKTrainer(**trainer_arguments(D, F, k), **options)
        functions[name] = update(trainer, x_BD)
    return json.dumps(rows | quiet_and_busy(functions))


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    rows = json.loads(in_child(STAGES.name, "bench", "--only", "all"))
    setting = (
        f"B={BATCH} D={D} F={F}, seed {SEED}, medians of {TURNS} turns of 8 steps; "
        "busy: one process beside it that spins"
    )
    content = {"header": header(setting, "dictionary-learning", "numba"), "rows": rows}
    write_for_this_cpu(RESULTS / "benchmark_busy.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    return page_by_cpu(content, tables_of_cpu)


def tables_of_cpu(content: dict[str, Any]) -> list[str]:
    rows = {
        name: [f"{quiet:.0f}", f"{busy:.0f}", f"{busy / quiet:.2f}"]
        for name, (quiet, busy) in content["rows"].items()
    }
    columns = ["quiet, ms", "busy, ms", "busy / quiet"]
    return [content["header"], "", *table("one update", rows, columns)]


STAGES = Stages("speed.busy_machine", {"bench": measure}, tables, child=print_times)

if __name__ == "__main__":
    STAGES.run()
