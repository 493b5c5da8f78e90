"""One training in one and in two processes: step time, tokens/s, and what is sent.

    python -m experiments.speed.processes bench     # about 3 minutes
    python -m experiments.speed.processes tables    # write the page again

Each process has one thread. The batch is the same: two processes take half of it each. First the SAE's
step alone, on random activations, with what it sends and how long sending takes. Then a whole run on the
embedded language model. What 8 GPUs would take is computed, not measured: the bytes are measured, the
speeds of the links are the makers' numbers, halved.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.training.loop import train
from dictionary_learning_ext.training.processes import Processes, joined
from dictionary_learning_ext.training.sae_run import SAERun
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import SEED, activations, header, trainer_arguments
from experiments.stages import Stages

BATCH, D, F, K = 2048, 512, 2048, 64
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
    folder = os.environ["VSAE_FOLDER"]
    run = RunConfig(
        steps=RUN_STEPS,
        batch_size=BATCH,
        n_ctxs=256,
        eval_tokens=0,
        save_every="none",
        save_dir=folder,
    )
    train(run, {"sae": SAEConfig(dict_size=F, k=K)})
    return {"tokens": (len(ends) - 1) * BATCH / (ends[-1] - ends[0])}


def child(part: str) -> str:
    """What one process measures. Rank 0's is the result."""
    t.set_num_threads(1)
    with joined() as processes:
        measured = {"step": step, "run": whole_run}[part](processes)
    return json.dumps(measured) if processes.is_first else ""


def in_processes(count: int, part: str) -> dict[str, float]:
    words = ["-m", "experiments.speed.processes", "bench", "--only", part]
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


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(1)
    measured = {
        str(count): in_processes(count, "step") | in_processes(count, "run") for count in (1, 2)
    }
    setting = f"one thread a process, B={BATCH} D={D} F={F} k={K}, fp32, seed {SEED}"
    content = {"header": header(setting, "dictionary-learning"), "processes": measured}
    raw_results.write(RESULTS / "benchmark_processes.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
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
    # A ring sends (N - 1) / N of the bytes twice.
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
        f"Two processes take {one['step'] / two['step']:.2f} times fewer milliseconds for an SAE's step, and "
        f"give {two['tokens'] / one['tokens']:.2f} times the tokens/s of a whole run, in which the language "
        "model's part needs no messages. On a CPU the time in messages is mostly waiting for the other.",
        "",
        f"## {GPUS} GPUs, on paper",
        "",
        "Nothing here was measured on GPUs. The bytes are those above; a ring sends 7/4 of them over a link "
        "at half of its maker's speed. The columns are the speed-up over one GPU if a step, language model "
        "and all, takes one GPU so many milliseconds, divides evenly, and no message overlaps with work.",
        "",
        *table("link", paper, ["ms of messages", *(f"{ms} ms" for ms in GPU_STEPS)]),
    ]


STAGES = Stages("speed.processes", {"bench": measure}, tables, child=child)

if __name__ == "__main__":
    STAGES.run()
