"""Peak memory of training steps in a wide dictionary, above the idle process.

    python -m experiments.speed.step_memory     # about 2 minutes

Each trainer in a process of its own: the peak of its resident memory over five steps, less what it
was before the trainer was made (libraries loaded, the batch there).
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.pages import table, write
from experiments.speed.timing import header

BATCH, D, F, K, STEPS, SEED = 4096, 512, 32_768, 64, 5, 0
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
    """In this process: MiB above what there was before the trainer."""
    import psutil
    import torch as t
    from dictionary_learning.trainers.top_k import TopKTrainer

    from dictionary_learning_ext import VariationalTopKTrainer

    t.set_num_threads(2)
    common = {
        "steps": 1000,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 0,
        "lm_name": "none",
        "warmup_steps": 10,
        "threshold_start_step": 0,
        "seed": SEED,
        "device": "cpu",
    }
    x_BD = t.randn(BATCH, D, generator=t.Generator().manual_seed(SEED))
    idle = psutil.Process().memory_info().rss / 2**20
    if name == "upstream TopK":
        trainer = TopKTrainer(**common)
    else:
        trainer = VariationalTopKTrainer(**common, **TRAINERS[name])
    for step in range(STEPS):
        trainer.update(step, x_BD)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - idle


def main() -> None:
    if len(sys.argv) == 2:
        print(peak_mib(sys.argv[1]))
        return
    peaks = {}
    for name in TRAINERS:
        command = [sys.executable, str(Path(__file__)), name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[name] = float(output.split()[-1])
    rows = {
        name: [f"{peak:,.0f}", f"{peak / peaks['upstream TopK']:.2f}"]
        for name, peak in peaks.items()
    }
    kept = 4 * 2 * D * F * 4 / 2**20
    lines = [
        "`python -m experiments.speed.step_memory`",
        "",
        header(f"B={BATCH} D={D} F={F:,} k={K}, seed {SEED}", "dictionary-learning"),
        "",
        *table("peak above the idle process", rows, ["MiB", "/ upstream"]),
        "",
        f"Of it, {kept:,.0f} MiB are weights, their gradients and Adam's averages in fp32 "
        "(half as much again for the learned posterior). A ReLU and a learned log-variance hold "
        "B x F numbers, the others do not.",
    ]
    write("benchmark_memory.md", lines)


if __name__ == "__main__":
    main()
