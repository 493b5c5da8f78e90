"""Larger runs: what two processes send and gain, and what activations from disk save.

    python -m experiments.speed.scale processes    # one training in one and in two: 3 minutes
    python -m experiments.speed.scale bench        # a cache of activations: 8 minutes
    python -m experiments.speed.scale tables       # write the pages' tables again

What 8 GPUs would take is computed, not measured: the bytes are measured, the speeds of the links are the
makers' numbers, halved.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch as t

from dictionary_learning_ext import RunConfig, SAEConfig, VariationalTopKTrainer, train
from dictionary_learning_ext.activations.buffer import ShuffledRows
from dictionary_learning_ext.activations.cache_manifest import CacheDtype
from dictionary_learning_ext.activations.cache_writer import write_cache
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.activations.stored_rows import StoredRows
from dictionary_learning_ext.training.processes import Processes, join
from dictionary_learning_ext.training.sae_run import SAERun
from experiments import raw_results
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
from experiments.speed.whole_runs import make_language_model
from experiments.stages import Page, Stages

BATCH, D, F, K = 2048, 512, 2048, 64


# Two processes, each with one thread. The batch is the same: two processes take half of it each. First the
# SAE's step alone, on random activations. Then a whole run on the embedded language model.

STEPS, RUN_STEPS = 12, 96
LINKS = {"NVLink 4 (450 GB/s a direction)": 225e9, "PCIe 5 x16 (64 GB/s)": 32e9}
"""Half of the maker's number, in bytes per second."""
GPUS = 8
GPU_STEPS = (5, 20, 80)  # milliseconds of a step on one GPU


@dataclass
class Traffic:
    """What one process gives to torch.distributed, by a step."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


def counted(traffic: Traffic) -> None:
    """Count and time all that is sent from now on."""
    import torch.distributed as dist

    for name in ("all_reduce", "all_gather"):
        original = getattr(dist, name)

        def send(*arguments: Any, original: Any = original, **options: Any) -> Any:
            started = time.perf_counter()
            result = original(*arguments, **options)
            traffic.seconds += time.perf_counter() - started
            traffic.calls += 1
            tensor = arguments[-1] if isinstance(arguments[0], list) else arguments[0]
            traffic.bytes += tensor.numel() * tensor.element_size()
            return result

        setattr(dist, name, send)


def step(processes: Processes) -> dict[str, float]:
    """An SAE's step on this process's share of random activations."""
    trainer = VariationalTopKTrainer(**trainer_arguments(D, F, K))
    x_BD = activations(BATCH, D)[processes.rank :: processes.count]
    traffic = Traffic()
    if processes.are_several:
        trainer.join(processes.ranks)
        counted(traffic)
    times, waits = [], []
    for number in range(STEPS):
        traffic.calls, traffic.bytes, traffic.seconds = 0, 0, 0.0
        started = time.perf_counter()
        trainer.update(number, x_BD.clone())
        times.append(1000 * (time.perf_counter() - started))
        waits.append(1000 * traffic.seconds)
    return {
        "step": statistics.median(times[2:]),
        "sending": statistics.median(waits[2:]),
        "messages": traffic.calls,
        "bytes": traffic.bytes,
    }


def whole_run(processes: Processes) -> dict[str, float]:
    """Tokens per second of a run: language model, buffer, one SAE. From the second step to the last."""
    ends = []
    original = SAERun.update

    def update(self: SAERun, step: int, x_BD: t.Tensor) -> None:
        original(self, step, x_BD)
        ends.append(time.perf_counter())

    SAERun.update = update
    run = RunConfig(
        hook="blocks.0.hook_resid_post",
        steps=RUN_STEPS,
        batch_size=BATCH,
        n_ctxs=256,
        eval_tokens=0,
        save_every="none",
        save_dir=os.environ["VSAE_FOLDER"],
    )
    train(run, {"sae": SAEConfig(dict_size=F, k=K)})
    return {"tokens": (len(ends) - 1) * BATCH / (ends[-1] - ends[0])}


def in_this_process(part: str) -> str:
    """What one process measures. Rank 0's is the result."""
    t.set_num_threads(1)
    processes = join()
    measured = {"step": step, "run": whole_run}[part](processes)
    return json.dumps(measured) if processes.is_first else ""


def in_processes(count: int, part: str) -> dict[str, float]:
    words = ["-m", "experiments.speed.scale", "processes", "--only", part]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.run(
            [sys.executable, *(launcher if count > 1 else []), *words],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "VSAE_FOLDER": f"{folder}/run"},
        ).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


def measure_processes(_: argparse.Namespace) -> None:
    t.set_num_threads(1)
    measured = {
        str(count): in_processes(count, "step") | in_processes(count, "run") for count in (1, 2)
    }
    setting = f"one thread a process, B={BATCH} D={D} F={F} k={K}, fp32, seed {SEED}"
    content = {"header": header(setting, "dictionary-learning"), "processes": measured}
    raw_results.write(RESULTS / "benchmark_processes.json", content)


def tables_of_processes(content: dict[str, Any]) -> list[str]:
    """What was measured; and on paper, what GPUs would take: a ring sends (N - 1) / N of the bytes twice."""
    one, two = content["processes"]["1"], content["processes"]["2"]

    def row(name: str, digits: int = 0) -> list[str]:
        return [f"{each[name]:,.{digits}f}" for each in (one, two)]

    rows = {
        "ms a step of the SAE alone": row("step"),
        "of these, sending and waiting for the other": row("sending", 1),
        "messages a step": row("messages"),
        "bytes a step, of each process": row("bytes"),
        "tokens/s of a whole run": row("tokens"),
    }
    sent = two["bytes"] * 2 * (GPUS - 1) / GPUS
    links = {name: 1000 * sent / speed for name, speed in LINKS.items()}
    paper = {
        name: [f"{wait:.2f}", *(f"{ms / (ms / GPUS + wait):.1f}" for ms in GPU_STEPS)]
        for name, wait in links.items()
    }
    return [
        content["header"],
        "",
        *table("", rows, ["1 process", "2 processes"]),
        "",
        f"Two processes take {one['step'] / two['step']:.2f} times fewer milliseconds for an SAE's step, "
        f"and give {two['tokens'] / one['tokens']:.2f} times the tokens/s of a whole run.",
        "",
        f"## {GPUS} GPUs, on paper",
        "",
        *table("link", paper, ["ms of messages", *(f"{ms} ms" for ms in GPU_STEPS)]),
    ]


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


def take(source: ShuffledRows, batches: int) -> list[t.Tensor]:
    return [next(source) for _ in range(batches)]


def source_of(folder: Path, seed: int | None) -> ShuffledRows:
    stored, rows = open_stored(folder), N_CTXS * 128
    return ShuffledRows(
        StoredRows(stored, HOOK, PositionRule(), passes=100, seed=seed), rows, BATCH
    )


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
    trainers = {name: VariationalTopKTrainer(**trainer_arguments(D, F, K)) for name in times}

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
        saes = {f"seed{seed}": SAEConfig(dict_size=F, k=K, seed=seed) for seed in range(n)}
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
        run = RunConfig(
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
    {"processes": measure_processes, "bench": measure_cache},
    {
        "benchmark_processes": Page(tables_of_processes),
        "benchmark_cache": Page(page_by_cpu(tables_of_cache)),
    },
    child={"processes": in_this_process},
)

if __name__ == "__main__":
    STAGES.run()
