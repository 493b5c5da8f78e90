"""Activations from disk: how fast they are read, how much space they take, and what they save.

    python -m experiments.speed.cache bench     # about 8 minutes
    python -m experiments.speed.cache tables    # write the page again

The language model has Pythia-70M's shape (random weights), the text is the shipped books, activations
are read after layer 2. The cache was just written, so it is in the operating system's memory: a warm
disk. Steps with batches from the cache are timed in turns with steps on batches that were read before,
a whole fill of the buffer at a time: the time of a step depends on its activations. The runs of 1, 4 and 12 SAEs share one process and one buffer, and are timed
from their start to their last file.
"""

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.activations.buffer import ShuffledRows
from dictionary_learning_ext.activations.cache_manifest import CacheDtype
from dictionary_learning_ext.activations.cache_writer import write_cache
from dictionary_learning_ext.activations.stored_activations import open_stored
from dictionary_learning_ext.activations.stored_rows import StoredRows
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.training.loop import train
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    header,
    page_by_cpu,
    trainer_arguments,
    write_for_this_cpu,
)
from experiments.speed.whole_runs import make_language_model
from experiments.stages import Stages

HOOK, D, F, K = "blocks.2.hook_resid_post", 512, 2048, 64
BATCH, N_CTXS, STEPS, TURNS = 2048, 256, 64, 6
TOKENS = BATCH * STEPS
TRAININGS = (1, 4, 12)


def timed(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def source_of(folder: Path, seed: int | None) -> ShuffledRows:
    stored, rows = open_stored(folder), N_CTXS * 128
    return ShuffledRows(StoredRows(stored, HOOK, passes=100, seed=seed), rows, BATCH)


def reading(folder: Path) -> dict[str, float]:
    """Rows per second, over two passes after a first one."""
    found = {}
    for name, seed in (("sequential", None), ("shuffled", SEED)):
        source = source_of(folder, seed)
        seconds = 0.0
        for number in range(3):
            taken = timed(lambda source=source: [next(source) for _ in range(STEPS)])
            seconds += taken if number else 0
        found[name] = 2 * TOKENS / seconds
    return found


def step_times(folder: Path) -> dict[str, float]:
    """Milliseconds of a step with its batch in memory, and of a step with its batch from the cache.

    Two trainers of one seed, on the same batches.
    """
    fill = N_CTXS * 128 // BATCH
    before = source_of(folder, SEED)
    cached = source_of(folder, SEED)
    times = {"alone": 0.0, "cached": 0.0}
    trainers = {name: VariationalTopKTrainer(**trainer_arguments(D, F, K)) for name in times}

    def steps(name: str, first: int, batches: Any) -> None:
        for step in range(first, first + fill):
            trainers[name].update(step, next(batches).to("cpu", t.float32).div_(2.0))

    for turn in range(TURNS + 1):
        in_memory = iter([next(before) for _ in range(fill)])
        for name, batches in (("alone", in_memory), ("cached", cached)):
            first = turn * fill
            taken = timed(lambda n=name, b=batches, first=first: steps(n, first, b))
            times[name] += taken if turn else 0
    return {name: 1000 * seconds / (TURNS * fill) for name, seconds in times.items()}


def whole_runs(run: RunConfig, cache: Path, base: Path) -> dict[str, list[float]]:
    """The seconds of runs of several SAEs: with the language model, and from the cache."""
    found = {}
    for n in TRAININGS:
        saes = {f"seed{seed}": SAEConfig(dict_size=F, k=K, seed=seed) for seed in range(n)}
        ways = {"language model": run, "cache": replace(run, activations=str(cache))}
        found[str(n)] = [
            timed(
                lambda way=way, settings=settings, saes=saes, n=n: train(
                    replace(settings, save_dir=str(base / f"{n} {way}")), saes
                )
            )
            for way, settings in ways.items()
        ]
    return found


def measure(_: argparse.Namespace) -> None:
    logging.getLogger("dictionary_learning_ext").setLevel(logging.WARNING)
    content: dict[str, Any] = {"caches": {}}
    with tempfile.TemporaryDirectory() as base_name:
        base = Path(base_name)
        run = RunConfig(
            model=str(make_language_model(base / "lm")),
            hook=HOOK,
            steps=STEPS,
            batch_size=BATCH,
            n_ctxs=N_CTXS,
            eval_tokens=0,
        )
        for dtype in get_args(CacheDtype):
            folder = base / dtype
            seconds = timed(
                lambda folder=folder, dtype=dtype: write_cache(
                    folder, run, [HOOK], TOKENS, dtype=dtype
                )
            )
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            rows = {"written": TOKENS / seconds, "bytes": size / TOKENS} | reading(folder)
            content["caches"][dtype] = rows
        content["steps"] = step_times(base / "float32")
        content["runs"] = whole_runs(run, base / "float32", base)
    setting = (
        f"B={BATCH} D={D} F={F} k={K}, {TOKENS:,} tokens, buffer of {N_CTXS} contexts of 128, "
        f"seed {SEED}; runs of {STEPS} steps"
    )
    content["header"] = header(setting, "pyarrow", "numba")
    write_for_this_cpu(RESULTS / "benchmark_cache.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    return page_by_cpu(content, tables_of_cpu)


def tables_of_cpu(content: dict[str, Any]) -> list[str]:
    caches = {
        dtype: [
            f"{row['bytes']:,.0f}",
            *(f"{row[name]:,.0f}" for name in ("written", "sequential", "shuffled")),
        ]
        for dtype, row in content["caches"].items()
    }
    columns = ["bytes per token", "tokens/s written", "rows/s in order", "rows/s shuffled"]
    alone, cached = content["steps"]["alone"], content["steps"]["cached"]
    steps = {"one step": [f"{alone:.1f}", f"{cached:.1f}", f"{cached / alone:.3f}"]}
    runs = {
        n: [f"{live:.1f}", f"{stored:.1f}", f"{stored / live:.2f}"]
        for n, (live, stored) in content["runs"].items()
    }
    return [
        content["header"],
        "",
        *table("cache", caches, columns),
        "",
        *table("", steps, ["batch in memory, ms", "from the cache, ms", "cache / memory"]),
        "",
        *table("SAEs trained", runs, ["language model, s", "cache, s", "cache / language model"]),
    ]


STAGES = Stages("speed.cache", {"bench": measure}, tables)

if __name__ == "__main__":
    STAGES.run()
