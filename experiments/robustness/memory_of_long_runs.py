"""Does a run ten times longer need more memory? It must not.

    python -m experiments.robustness.memory_of_long_runs     # 5 minutes on 2 cores

Peak resident memory of `vsae train` on the embedded language model, as the operating system has it,
for runs of 300 and 3,000 steps, each in a process of its own.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

STEPS = (300, 3000)
FLAGS = (
    "--dict-size=512 --k=16 --batch-size=512 --n-ctxs=64 --eval-tokens=10000 --save-every=100 "
    "--text-passes=20"
)
RESULTS = Path(__file__).parents[1] / "results" / "memory_of_long_runs.md"


def peak_mb(steps: int) -> float:
    """Peak resident memory of a run, in MB."""
    folder = tempfile.mkdtemp()
    code = "import sys; from dictionary_learning_ext.cli import main; sys.exit(main())"
    arguments = ["train", *FLAGS.split(), f"--steps={steps}", f"--save-dir={folder}/run"]
    child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(child, 0)
    shutil.rmtree(folder)
    if status:
        raise SystemExit(f"the run of {steps} steps failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    lines = [
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, `vsae train {FLAGS}`, seed 0",
        "",
        "| steps | peak memory, MB |",
        "|---|---|",
        *(f"| {steps:,} | {peak_mb(steps):.0f} |" for steps in STEPS),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
