"""A training step on a CPU: its time beside other libraries'.

    python -m experiments.speed.step_time bench      # ours, upstream's, SAELens's, sparsify's: 10 minutes
    python -m experiments.speed.step_time beside     # ours beside upstream's, here and as with AVX2 alone; commands: 8 minutes
    python -m experiments.speed.step_time tables     # write the page's tables again

SAELens and sparsify are measured where they are installed: `pip install sae-lens`, and
`pip install --no-deps eai-sparsify` with `natsort simple-parsing schedulefree`. A step is forward,
backward, the library's own constraints, clipping and optimiser. sparsify's fast kernels are for GPUs.

`beside` takes AVX-512 from torch, oneDNN, MKL and numba by their environment variables. fbgemm, which sums rows of weights, keeps it.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalBatchTopKTrainer, VariationalTopKTrainer
from dictionary_learning_ext.devices import bf16_instructions
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    Step,
    activations,
    cpu,
    equations,
    header,
    medians,
    page_by_cpu,
    trainer_arguments,
    update,
    write_for_this_cpu,
)
from experiments.stages import Page, Stages, in_child

Content = dict[str, Any]
NAME = "speed.step_time"
BATCH, D, F, KS = 2048, 512, 2048, (64, 512)


# Against other libraries: each k in a process of its own.

OURS: dict[str, dict[str, Any]] = {
    "fixed, noise on both": equations(),
    "fixed, noise on values": equations(noise_on="values"),
    "fixed, noise on selection": equations(noise_on="selection"),
    "point": equations(posterior="point"),
    "learned, noise on both": equations(posterior="learned"),
}


def saelens_step(k: int, x_BD: t.Tensor, dict_size: int, *, autocast: bool = False) -> Step:
    """SAELens's trainer on its TopK SAE; in bf16 if `autocast`."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    device = str(x_BD.device)
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=len(x_BD),
        lr_end=3e-5,
        autocast=autocast,
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae: Any = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=x_BD.shape[1], d_sae=dict_size, k=k, device=device)
    )
    trainer = SAETrainer(config, sae, iter(()))
    return lambda: trainer._train_step(sae, x_BD)


def sparsify_step(k: int, x_BD: t.Tensor, dict_size: int) -> Step:
    """The step of sparsify's trainer, whose loop takes no single batch: its lines around its SAE."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    config = SparseCoderConfig(num_latents=dict_size, k=k)
    sae = SparseCoder(x_BD.shape[1], config, device=x_BD.device)
    optimizer = t.optim.Adam(sae.parameters(), lr=1e-4)

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(x_BD).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def other_libraries(k: int, x_BD: t.Tensor, dict_size: int) -> dict[str, Callable[[], Step]]:
    """What makes the step of each other library that is installed, on the device of `x_BD`."""
    makers: dict[str, Callable[[], Step]] = {}
    if importlib.util.find_spec("sae_lens"):
        makers["SAELens TopK"] = lambda: saelens_step(k, x_BD, dict_size)
        makers["SAELens TopK, autocast to bfloat16"] = lambda: saelens_step(
            k, x_BD, dict_size, autocast=True
        )
    if importlib.util.find_spec("sparsify"):
        makers["sparsify"] = lambda: sparsify_step(k, x_BD, dict_size)
    return makers


def times_at(k: str) -> str:
    """In this process, of each row: the milliseconds, and these over upstream's and over SAELens's, which
    are measured in turns with it; as JSON."""
    t.set_num_threads(2)
    t.manual_seed(SEED)
    x_BD = activations(BATCH, D)
    common: dict[str, Any] = trainer_arguments(D, F, int(k)) | {"threshold_start_step": 0}
    others = {"upstream TopK": update(TopKTrainer(**common), x_BD)}
    others |= {name: make() for name, make in other_libraries(int(k), x_BD, F).items()}
    reference = {name: others[name] for name in list(others)[:2]}

    def cells(name: str, milliseconds: dict[str, float]) -> list[float]:
        value = milliseconds[name]
        return [value, *(value / milliseconds[other] for other in reference)]

    rows = {}
    alone = medians(others)
    for name in others:
        rows[f"{name}, before a trainer of ours exists"] = cells(name, alone)
    for dtype in ("float32", "bfloat16"):
        for name, arguments in OURS.items():
            trainer = VariationalTopKTrainer(dtype=dtype, **common, **arguments)
            milliseconds = medians({**reference, "ours": update(trainer, x_BD)})
            rows[f"{name}, {dtype}"] = cells("ours", milliseconds)
    beside = medians(others)
    for name in others:
        rows[name] = cells(name, beside)
    return json.dumps(rows)


def measure_times(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    by_k = {str(k): json.loads(in_child(NAME, "bench", "--only", str(k))) for k in KS}
    modules = {"dictionary-learning": "dictionary_learning", "sae-lens": "sae_lens"}
    modules |= {"eai-sparsify": "sparsify", "numpy": "numpy"}
    packages = [name for name, module in modules.items() if importlib.util.find_spec(module)]
    setting = (
        f"B={BATCH} D={D} F={F}, seed {SEED}, medians of 20, each row in turns with the baselines"
    )
    content = {"header": header(setting, *packages), "by_k": by_k}
    write_for_this_cpu(RESULTS / "benchmark_step.json", content)


def tables_of_times(content: Content) -> list[str]:
    by_k: dict[str, dict[str, list[float]]] = content["by_k"]

    def cells(name: str) -> list[str]:
        return [
            text
            for rows in by_k.values()
            for text in (f"{rows[name][0]:.0f}", *(f"{ratio:.2f}" for ratio in rows[name][1:]))
        ]

    columns = [
        column
        for k, rows in by_k.items()
        for column in (f"k={k}, ms", "/ upstream", "/ SAELens")[: len(rows["upstream TopK"])]
    ]
    names = next(iter(by_k.values()))
    return [
        content["header"] + "; the other libraries in fp32 unless said",
        "",
        *table("one update", {name: cells(name) for name in names}, columns),
    ]


# Beside upstream's alone, with this CPU's instructions and with AVX2's.

PAIRS: dict[str, tuple[Any, Any]] = {
    "vsae_top_k": (VariationalTopKTrainer, TopKTrainer),
    "vsae_batch_top_k": (VariationalBatchTopKTrainer, BatchTopKTrainer),
}


def as_with_avx2(folder: str) -> dict[str, str]:
    """An environment in which numerical libraries use AVX2 alone. numba compiles into this folder."""
    from llvmlite import binding

    features: dict[str, bool] = binding.get_host_cpu_features()  # pyright: ignore
    kept = (("+" if has and "avx512" not in name else "-") + name for name, has in features.items())
    return {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "znver3",
        "NUMBA_CPU_FEATURES": ",".join(kept),
        "NUMBA_CACHE_DIR": folder,
    }


def ratios_with(threads: str) -> str:
    """In this process, of each row: our milliseconds, upstream's, which take turns, and their ratio; as JSON."""
    t.set_num_threads(int(threads))
    x_BD, rows = activations(BATCH, D), {}
    for name, (ours, upstreams) in PAIRS.items():
        for k in KS:
            common = trainer_arguments(D, F, k) | {"threshold_start_step": 0}
            reference = update(upstreams(**common), x_BD)
            options = equations() | {"mean_squared_norm": float(D)}
            for dtype in ("float32", "bfloat16"):
                trainer = ours(dtype=dtype, **common, **options)
                both = medians({"ours": update(trainer, x_BD), "upstream": reference}, 5)
                cells = [both["ours"], both["upstream"], both["ours"] / both["upstream"]]
                rows[f"{name}, k={k}, {dtype}"] = cells
    title = f"{cpu()}, bf16 by {bf16_instructions()}, {threads} threads"
    return json.dumps({"title": title, "rows": rows})


def cpu_seconds(*words: str) -> float:
    """The CPU seconds of a vsae command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "dictionary_learning_ext", *words]
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=True, stdout=quiet, stderr=quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def seconds_of_commands() -> dict[str, float]:
    """The CPU seconds of commands that need no language model, the least of three. Training takes one step."""
    with tempfile.TemporaryDirectory() as folder:
        cache, seeds = str(Path(folder, "cache")), str(Path(folder, "seeds"))
        cpu_seconds("cache", cache, "--tokens=100000")
        train = ["train", f"--activations={cache}", "--steps=1"]
        cpu_seconds(*train, "--eval-tokens=2000", "--seeds=2", f"--save-dir={seeds}")
        reproduce = ["reproduce", seeds, "--tokens=2000"]
        cpu_seconds(*reproduce)  # keeps the codes
        commands = {
            "compare": ["compare", seeds],
            "reproduce, from kept codes": reproduce,
            "train --activations, one step": [
                *train,
                "--eval-tokens=0",
                "--overwrite",
                f"--save-dir={folder}/one",
            ],
        }
        return {
            name: min(cpu_seconds(*words) for _ in range(3)) for name, words in commands.items()
        }


def print_beside(_: argparse.Namespace) -> None:
    seconds = {name: [f"{value:.1f}"] for name, value in seconds_of_commands().items()}
    print(*table("vsae", seconds, ["CPU seconds"]), sep="\n", flush=True)
    columns = ["ours, ms", "upstream's, ms", "ratio"]
    with tempfile.TemporaryDirectory() as folder:
        for environment in ({}, as_with_avx2(folder)):
            os.environ |= environment
            for threads in ("1", "2"):
                found = json.loads(in_child(NAME, "beside", "--only", threads))
                cells = {
                    n: [f"{a:.0f}", f"{b:.0f}", f"{c:.2f}"]
                    for n, (a, b, c) in found["rows"].items()
                }
                print("", *table(found["title"], cells, columns), sep="\n", flush=True)


STAGES = Stages(
    NAME,
    {"bench": measure_times, "beside": print_beside},
    {"benchmark_step": Page(page_by_cpu(tables_of_times))},
    child={"bench": times_at, "beside": ratios_with},
)

if __name__ == "__main__":
    STAGES.run()
