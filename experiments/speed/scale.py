"""Larger runs: what activations from disk save.

python -m experiments.speed.scale bench        # a cache of activations: 8 minutes
python -m experiments.speed.scale tables       # write the page's tables again
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch as t

from dictionary_learning_ext import RunConfig, VariationalTopKTrainer, train
from dictionary_learning_ext.activations.cache_writer import write_cache
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.activations.stored_rows import StoredRows
from dictionary_learning_ext.run_folder.cache_manifest import CacheDtype
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    equations,
    header,
    page_by_cpu,
    trainer_arguments,
    write_for_this_cpu,
)
from experiments.speed.whole_runs import make_language_model
from experiments.stages import Page, Stages
from experiments.trained_saes import run_settings, sae_settings

BATCH, D, F, K = 2048, 512, 2048, 64


# A cache of activations: how fast it is written and read, how much space it takes, and what it saves. The
# language model has Pythia-70M's shape (random weights), the text is the shipped books. The cache was just
# written, so it is in the operating system's memory: a warm disk.

HOOK, N_CTXS, CACHE_STEPS, TURNS = "blocks.2.hook_resid_post", 256, 64, 6
TOKENS = BATCH * CACHE_STEPS
TRAININGS = (1, 4, 12)


def timed(function: Callable[..., object], *arguments: Any, **options: Any) -> float:
    started = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - started


def take(source: StoredRows, batches: int) -> list[t.Tensor]:
    return [next(source) for _ in range(batches)]


def source_of(folder: Path, seed: int | None) -> StoredRows:
    stored, rows = open_stored(folder), N_CTXS * 128
    sizes: Any = {"size": rows, "out_batch_size": BATCH}
    return StoredRows(stored, HOOK, PositionRule(), passes=100, seed=seed, **sizes)


def reading(folder: Path) -> dict[str, float]:
    """Rows per second, over two passes after a first one."""
    found = {}
    for name, seed in (("sequential", None), ("shuffled", SEED)):
        source = source_of(folder, seed)
        seconds = [timed(take, source, CACHE_STEPS) for _ in range(3)]
        found[name] = 2 * TOKENS / sum(seconds[1:])
    return found


def step_times(folder: Path) -> dict[str, float]:
    """Milliseconds of a step with its batch in memory, and of a step with its batch from the cache.

    Two trainers of one seed, on the same batches, in turns of a whole fill of the buffer: the time of a
    step depends on its activations.
    """
    fill = N_CTXS * 128 // BATCH
    before, cached = source_of(folder, SEED), source_of(folder, SEED)
    times = {"alone": 0.0, "cached": 0.0}
    trainers = {
        name: VariationalTopKTrainer(**trainer_arguments(D, F, K), **equations()) for name in times
    }

    def steps(name: str, first: int, batches: Any) -> None:
        for step in range(first, first + fill):
            trainers[name].update(step, next(batches).to("cpu", t.float32).div_(2.0))

    for turn in range(TURNS + 1):
        for name, batches in (("alone", iter(take(before, fill))), ("cached", cached)):
            taken = timed(steps, name, turn * fill, batches)
            times[name] += taken if turn else 0
    return {name: 1000 * seconds / (TURNS * fill) for name, seconds in times.items()}


def whole_runs(run: RunConfig, cache: Path, base: Path) -> dict[str, list[float]]:
    """The seconds of runs of several SAEs from one buffer, from their start to their last file: with the
    language model, and from the cache."""
    found = {}
    for n in TRAININGS:
        saes = {f"seed{seed}": sae_settings(dict_size=F, k=K, seed=seed) for seed in range(n)}
        ways = {"language model": run, "cache": replace(run, activations=str(cache))}
        found[str(n)] = [
            timed(train, replace(settings, save_dir=str(base / f"{n} {way}")), saes)
            for way, settings in ways.items()
        ]
    return found


def measure_cache(_: argparse.Namespace) -> None:
    logging.getLogger("dictionary_learning_ext").setLevel(logging.WARNING)
    content: dict[str, Any] = {"caches": {}}
    with tempfile.TemporaryDirectory() as base_name:
        base = Path(base_name)
        run = run_settings(
            model=str(make_language_model(base / "lm")),
            hook=HOOK,
            steps=CACHE_STEPS,
            batch_size=BATCH,
            n_ctxs=N_CTXS,
            eval_tokens=0,
        )
        for dtype in get_args(CacheDtype):
            folder = base / dtype
            seconds = timed(write_cache, folder, run, [HOOK], TOKENS, dtype=dtype)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            rows = {"written": TOKENS / seconds, "bytes": size / TOKENS} | reading(folder)
            content["caches"][dtype] = rows
        content["steps"] = step_times(base / "float32")
        content["runs"] = whole_runs(run, base / "float32", base)
    setting = (
        f"B={BATCH} D={D} F={F} k={K}, {TOKENS:,} tokens, buffer of {N_CTXS} contexts of 128, "
        f"seed {SEED}; runs of {CACHE_STEPS} steps"
    )
    content["header"] = header(setting, "pyarrow", "numba")
    write_for_this_cpu(RESULTS / "benchmark_cache.json", content)


def tables_of_cache(content: dict[str, Any]) -> list[str]:
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


STAGES = Stages(
    "speed.scale",
    {"bench": measure_cache},
    {"benchmark_cache": Page(page_by_cpu(tables_of_cache))},
)

if __name__ == "__main__":
    STAGES.run()
