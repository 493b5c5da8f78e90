"""How much memory do long runs and large reports take?

    python -m experiments.robustness.memory runs      # `vsae train`, 300 and 3,000 steps: 5 minutes
    python -m experiments.robustness.memory bench     # collecting the features of a report: 22 minutes
    python -m experiments.robustness.memory tables    # write the pages' tables again

Each row is measured in a process of its own, as the operating system reports it.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from typing import Any

import torch as t

from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Page, Stages, in_child

NAME = "robustness.memory"


# Runs: peak resident memory of `vsae train` on the embedded language model. Ten times as many steps must not
# need more.

STEPS = (300, 3000)
FLAGS = (
    "--dict-size=512 --k=16 --batch-size=512 --n-ctxs=64 --eval-tokens=10000 --save-every=100 "
    "--text-passes=20 --sigma=1 --noise-on=both --noise-anneal-steps=None --kl-scope=all --beta=1 "
    "--lr=None --decay-start=None --max-norm-multiple=None"
)


def peak_of_run(steps: int) -> float:
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


def measure_runs(_: argparse.Namespace) -> None:
    content = {
        "settings": {"date": time.strftime("%Y-%m-%d"), "torch": t.__version__},
        "peaks": {steps: peak_of_run(steps) for steps in STEPS},
    }
    raw_results.write(RESULTS / "memory_of_long_runs.json", content)


def tables_of_runs(content: dict[str, Any]) -> list[str]:
    rows = {f"{int(steps):,}": [f"{peak:.0f}"] for steps, peak in content["peaks"].items()}
    return [
        f"{about_line(content['settings'])}, `vsae train {FLAGS}`, seed 0",
        "",
        *table("steps", rows, ["peak memory, MB"]),
    ]


# Report: random activations go through TopK SAEs with random weights. The language model is left out: it takes
# the same memory whatever the dictionary. Peak resident memory is read before and after collecting.

ROWS = ((2304, 100_000), (2304, 1_000_000), (16_384, 100_000), (16_384, 1_000_000))
K, WIDTH, CTX_LEN, CONTEXTS, SEED = 64, 128, 128, 32, 0


def peak_mb() -> float:
    """The most memory this process has had, MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def collect(part: str) -> str:
    """Collect in this process; a row as JSON.

    Args:
        part: dict_size and the number of tokens, e.g. "2304 100000".
    """
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    from dictionary_learning_ext.activations.rows import ContextBatch
    from dictionary_learning_ext.features.collector import FeatureCollector

    dict_size, tokens = map(int, part.split())
    t.manual_seed(SEED)
    t.set_num_threads(1)
    sae = AutoEncoderTopK(WIDTH, dict_size, K).requires_grad_(False)
    before = peak_mb()
    start = time.monotonic()
    collector = FeatureCollector(sae, tokens, seed=SEED)
    wanted_BL = t.ones(CONTEXTS, CTX_LEN, dtype=t.bool)
    for _ in range(tokens // (CONTEXTS * CTX_LEN)):
        ids_BL = t.randint(50_000, (CONTEXTS, CTX_LEN))
        collector.add(ContextBatch(ids_BL, wanted_BL, t.randn(CONTEXTS, CTX_LEN, WIDTH)))
    statistics = collector.statistics()
    seconds = time.monotonic() - start
    row = {
        "dict_size": dict_size,
        "tokens": statistics.tokens,
        "before": before,
        "peak": peak_mb(),
        "dense": statistics.tokens * dict_size * 4 / 2**20,
        "seconds": seconds,
    }
    return json.dumps(row)


def measure_report(_: argparse.Namespace) -> None:
    rows = [
        json.loads(in_child(NAME, "bench", "--only", f"{dict_size} {tokens}"))
        for dict_size, tokens in ROWS
    ]
    content = {"settings": {"date": time.strftime("%Y-%m-%d")}, "rows": rows}
    raw_results.write(RESULTS / "report_memory.json", content)


def tables_of_report(content: dict[str, Any]) -> list[str]:
    rows = {
        f"{row['dict_size']:,} features, {row['tokens']:,} tokens": [
            f"{row['before']:,.0f}",
            f"{row['peak']:,.0f}",
            f"{row['peak'] - row['before']:,.0f}",
            f"{row['dense']:,.0f}",
            f"{row['seconds']:.0f}",
        ]
        for row in content["rows"]
    }
    columns = ["before", "peak", "added", "tokens x F in fp32", "seconds"]
    return [
        f"{about_line(content['settings'])}, seed {SEED}.",
        "",
        *table("", rows, columns),
    ]


STAGES = Stages(
    NAME,
    {"bench": measure_report, "runs": measure_runs},
    {"memory_of_long_runs": Page(tables_of_runs), "report_memory": Page(tables_of_report)},
    child={"bench": collect},
)

if __name__ == "__main__":
    STAGES.run()
