"""Does a run ten times longer need more memory? It must not.

    python -m experiments.robustness.memory_of_long_runs train     # 5 minutes on 2 cores
    python -m experiments.robustness.memory_of_long_runs tables    # write the page again

Peak resident memory of `vsae train` on the embedded language model, as the operating system reports
it, for runs of 300 and 3,000 steps, each in a process of its own.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from typing import Any

import torch

from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Stages

STEPS = (300, 3000)
FLAGS = (
    "--dict-size=512 --k=16 --batch-size=512 --n-ctxs=64 --eval-tokens=10000 --save-every=100 "
    "--text-passes=20 --sigma=1 --noise-on=both --noise-anneal-steps=None --kl-scope=all --beta=1 "
    "--lr=None --decay-start=None --max-norm-multiple=None"
)


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


def measure(_: argparse.Namespace) -> None:
    content = {
        "settings": {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__},
        "peaks": {steps: peak_mb(steps) for steps in STEPS},
    }
    raw_results.write(RESULTS / "memory_of_long_runs.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    rows = {f"{int(steps):,}": [f"{peak:.0f}"] for steps, peak in content["peaks"].items()}
    return [
        f"{about_line(content['settings'])}, `vsae train {FLAGS}`, seed 0",
        "",
        *table("steps", rows, ["peak memory, MB"]),
    ]


STAGES = Stages("robustness.memory_of_long_runs", {"train": measure}, tables)

if __name__ == "__main__":
    STAGES.run()
