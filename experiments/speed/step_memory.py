"""Peak memory of training steps in a wide dictionary, above the idle process.

    python -m experiments.speed.step_memory bench     # about 2 minutes
    python -m experiments.speed.step_memory tables    # write the page again

Each trainer runs in a process of its own (`bench --only NAME`). What is reported is the peak of its
resident memory over five steps, minus its memory before the trainer was made: libraries and the batch.
"""

import argparse
import resource
from typing import Any

import torch as t

from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import SEED, activations, header, trainer_arguments
from experiments.stages import Stages, in_child

BATCH, D, F, K, STEPS = 4096, 512, 32_768, 64, 5
TRAINERS: dict[str, dict[str, Any]] = {
    "upstream TopK": {},
    "fixed, noise on both, float32": {},
    "fixed, noise on both, bfloat16": {"dtype": "bfloat16"},
    "fixed, noise on values, float32": {"noise_on": "values"},
    "point, float32": {"posterior": "point"},
    "point, rectified, float32": {"posterior": "point", "rectify": True},
    "learned, float32": {"posterior": "learned"},
}


def peak_mib(name: str) -> float:
    """In this process: MiB above what there was before the trainer was made."""
    import psutil
    from dictionary_learning.trainers.top_k import TopKTrainer

    from dictionary_learning_ext import VariationalTopKTrainer

    t.set_num_threads(2)
    common: dict[str, Any] = trainer_arguments(D, F, K) | {"threshold_start_step": 0}
    x_BD = activations(BATCH, D)
    idle = psutil.Process().memory_info().rss / 2**20
    if name == "upstream TopK":
        trainer = TopKTrainer(**common)
    else:
        trainer = VariationalTopKTrainer(**common, **TRAINERS[name])
    for step in range(STEPS):
        trainer.update(step, x_BD)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - idle


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    setting = f"B={BATCH} D={D} F={F:,} k={K}, seed {SEED}"
    peaks = {name: float(in_child(STAGES.name, "bench", "--only", name)) for name in TRAINERS}
    content = {"header": header(setting, "dictionary-learning"), "peaks": peaks}
    raw_results.write(RESULTS / "benchmark_memory.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    peaks = content["peaks"]
    rows = {
        name: [f"{peak:,.0f}", f"{peak / peaks['upstream TopK']:.2f}"]
        for name, peak in peaks.items()
    }
    kept = 4 * 2 * D * F * 4 / 2**20
    return [
        content["header"],
        "",
        *table("peak above the idle process", rows, ["MiB", "/ upstream"]),
        "",
        f"Of it, {kept:,.0f} MiB are weights, their gradients and Adam's averages in fp32 "
        "(half as much again for the learned posterior). A ReLU and a learned log-variance hold "
        "B x F numbers, the others do not.",
    ]


STAGES = Stages("speed.step_memory", {"bench": measure}, tables, child=peak_mib)

if __name__ == "__main__":
    STAGES.run()
