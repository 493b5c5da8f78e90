"""How long does `vsae train` take alone and beside another, by how long torch's waiting threads spin?

    python -m experiments.speed.beside bench     # on a quiet machine: about ten minutes
    python -m experiments.speed.beside tables

Each run trains the same SAE from the same cache, without an evaluation. The environments take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import header, page_by_cpu, write_for_this_cpu
from experiments.stages import Page, Stages

RAW = RESULTS / "benchmark_beside.json"
STEPS = 1500
ENVIRONMENTS = {
    "the command's own, GOMP_SPINCOUNT=7000": {},
    "libgomp's own, GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
VSAE = [sys.executable, "-m", "dictionary_learning_ext"]


def seconds(cache: Path, folder: Path, environment: dict[str, str], count: int) -> float:
    """The wall time of `count` trainings at once."""
    words = [*VSAE, "train", "--activations", str(cache), "--steps", str(STEPS), "--eval-tokens=0"]
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    surroundings = {name: value for name, value in os.environ.items() if name not in own}
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [*words, "--overwrite", f"--save-dir={folder / str(i)}"],
            env=surroundings | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(count)
    ]
    if any(process.wait() for process in running):
        raise SystemExit("a training failed; run its command by hand to see why")
    return time.perf_counter() - began


def bench(arguments: argparse.Namespace) -> None:
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        subprocess.run([*VSAE, "cache", str(cache), "--tokens", "400000"], check=True)
        for _ in range(arguments.turns):
            for name, environment in ENVIRONMENTS.items():
                for count in (1, 2):
                    taken = seconds(cache, Path(folder), environment, count)
                    times.setdefault(name, {}).setdefault(str(count), []).append(taken)
                    print(f"{name}, {count} at once: {taken:.1f} s", flush=True)
    setting = f"{STEPS:,} steps of the preset recommended from a cache, {arguments.turns} turns"
    write_for_this_cpu(RAW, {"header": header(setting), "seconds": times})


def tables(content: dict[str, Any]) -> list[str]:
    rows = {}
    for name, times in content["seconds"].items():
        alone, two = (statistics.median(times[count]) for count in ("1", "2"))
        rows[name] = [f"{alone:.1f}", f"{two:.1f}", f"{two / alone:.2f}"]
    columns = ["alone, s", "two at once, s", "two / alone"]
    return [content["header"], "", *table("environment", rows, columns)]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=3)


STAGES = Stages(
    "speed.beside", {"bench": bench}, {"benchmark_beside": Page(page_by_cpu(tables))}, options
)

if __name__ == "__main__":
    STAGES.run()
