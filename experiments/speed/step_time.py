"""A training step on a CPU: its time beside other libraries' and beside a busy process, its memory, how
both grow, and whether the fast step learns as much.

    python -m experiments.speed.step_time bench      # ours, upstream's, SAELens's, sparsify's: 10 minutes
    python -m experiments.speed.step_time busy       # beside another process that spins: 3 minutes
    python -m experiments.speed.step_time memory     # peak memory in a wide dictionary: 2 minutes
    python -m experiments.speed.step_time scaling    # time against F and against k: 5 minutes
    python -m experiments.speed.step_time quality    # FVE after the same tokens: 3 minutes
    python -m experiments.speed.step_time tables     # write the pages' tables again

SAELens and sparsify are measured where they are installed: `pip install sae-lens`, and
`pip install --no-deps eai-sparsify` with `natsort simple-parsing schedulefree`. A step is forward,
backward, the library's own constraints, clipping and optimiser. sparsify's fast kernels are for GPUs.
Start `busy` on a quiet machine.
"""

import argparse
import contextlib
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import RunConfig, SAEConfig, VariationalTopKTrainer
from experiments import raw_results
from experiments.pages import each, save_plot, table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    Step,
    activations,
    header,
    medians,
    page_by_cpu,
    trainer_arguments,
    update,
    write_for_this_cpu,
)
from experiments.stages import Page, Stages, in_child
from experiments.trained_saes import FIRST_HOOK, metrics_of, train_missing

Content = dict[str, Any]
NAME = "speed.step_time"
BATCH, D, F, KS = 2048, 512, 2048, (64, 512)


# Against other libraries: each k in a process of its own.

OURS: dict[str, dict[str, Any]] = {
    "fixed, noise on both": {},
    "fixed, noise on values": {"noise_on": "values"},
    "fixed, noise on selection": {"noise_on": "selection"},
    "point": {"posterior": "point"},
    "learned, noise on both": {"posterior": "learned"},
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


# Beside a busy process.

TURNS = 3
BESIDE: dict[str, tuple[int, dict[str, Any]]] = {
    "noise on both, k=64, bf16": (64, {"dtype": "bfloat16"}),
    "noise on both, k=512, bf16": (512, {"dtype": "bfloat16"}),
    "noise on both, k=64, fp32": (64, {}),
    "noise on values, k=64, bf16": (64, {"dtype": "bfloat16", "noise_on": "values"}),
    "learned, k=64, bf16": (64, {"dtype": "bfloat16", "posterior": "learned"}),
}


@contextlib.contextmanager
def a_spinning_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def quiet_and_busy(functions: dict[str, Step]) -> dict[str, list[float]]:
    """The milliseconds of each on a quiet machine and on a busy one, in turns."""
    turns = []
    for _ in range(TURNS):
        quiet = medians(functions, rounds=4)
        with a_spinning_process():
            turns.append((quiet, medians(functions, rounds=4)))
    return {
        name: [
            statistics.median(times[name] for times in state) for state in zip(*turns, strict=True)
        ]
        for name in functions
    }


def busy_times(_: str) -> str:
    """In this process: every row, as JSON."""
    t.set_num_threads(2)
    x_BD = activations(BATCH, D)
    functions = {"upstream TopK": update(TopKTrainer(**trainer_arguments(D, F, 64)), x_BD)}
    for name, (k, options) in BESIDE.items():
        trainer = VariationalTopKTrainer(**trainer_arguments(D, F, k), **options)
        functions[name] = update(trainer, x_BD)
    return json.dumps(quiet_and_busy(functions))


def measure_busy(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    rows = json.loads(in_child(NAME, "busy", "--only", "all"))
    setting = (
        f"B={BATCH} D={D} F={F}, seed {SEED}, medians of {TURNS} turns of 8 steps; "
        "busy: one process beside it that spins"
    )
    content = {"header": header(setting, "dictionary-learning", "numba"), "rows": rows}
    write_for_this_cpu(RESULTS / "benchmark_busy.json", content)


def tables_of_busy(content: Content) -> list[str]:
    rows = {
        name: [f"{quiet:.0f}", f"{busy:.0f}", f"{busy / quiet:.2f}"]
        for name, (quiet, busy) in content["rows"].items()
    }
    columns = ["quiet, ms", "busy, ms", "busy / quiet"]
    return [content["header"], "", *table("one update", rows, columns)]


# Memory in a wide dictionary: the peak over some steps less what there was before the trainer was made
# (libraries and the batch), each trainer in a process of its own.

WIDE = {"batch": 4096, "dict_size": 32_768, "k": 64, "steps": 5}
WIDE_TRAINERS: dict[str, dict[str, Any]] = {
    "upstream TopK": {},
    "fixed, noise on both, float32": {},
    "fixed, noise on both, bfloat16": {"dtype": "bfloat16"},
    "fixed, noise on values, float32": {"noise_on": "values"},
    "point, float32": {"posterior": "point"},
    "point, rectified, float32": {"posterior": "point", "rectify": True},
    "learned, float32": {"posterior": "learned"},
}


def peak_mib(name: str) -> float:
    """In this process: MiB above what there was before the trainer was made."""
    import psutil

    t.set_num_threads(2)
    common: dict[str, Any] = trainer_arguments(D, WIDE["dict_size"], WIDE["k"])
    common |= {"threshold_start_step": 0}
    x_BD = activations(WIDE["batch"], D)
    idle = psutil.Process().memory_info().rss / 2**20
    if name == "upstream TopK":
        trainer = TopKTrainer(**common)
    else:
        trainer = VariationalTopKTrainer(**common, **WIDE_TRAINERS[name])
    for step in range(WIDE["steps"]):
        trainer.update(step, x_BD)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - idle


def measure_memory(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    setting = f"B={WIDE['batch']} D={D} F={WIDE['dict_size']:,} k={WIDE['k']}, seed {SEED}"
    peaks = {name: float(in_child(NAME, "memory", "--only", name)) for name in WIDE_TRAINERS}
    content = {"header": header(setting, "dictionary-learning"), "peaks": peaks}
    raw_results.write(RESULTS / "benchmark_memory.json", content)


def tables_of_memory(content: Content) -> list[str]:
    peaks = content["peaks"]
    rows = {
        name: [f"{peak:,.0f}", f"{peak / peaks['upstream TopK']:.2f}"]
        for name, peak in peaks.items()
    }
    return [
        content["header"],
        "",
        *table("peak above the idle process", rows, ["MiB", "/ upstream"]),
    ]


# Scaling: time = b x^p, fitted to the logarithms. p at most 1 is no worse than linear. In k one power law
# is only a summary, since from k/F = 1/16 on our products are dense; hence the local slopes.

SCALING_BATCH, UPSTREAM_UP_TO = 1024, 32_768
SIZES = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]  # at k = 64
SCALING_KS = [32, 64, 128, 256, 512, 1024]  # at F = 8192


def milliseconds_at(dict_size: int, k: int) -> dict[str, float]:
    arguments, x_BD = trainer_arguments(D, dict_size, k), activations(SCALING_BATCH, D)
    functions = {"vSAE": update(VariationalTopKTrainer(dtype="bfloat16", **arguments), x_BD)}
    if dict_size <= UPSTREAM_UP_TO:
        functions["upstream"] = update(TopKTrainer(**arguments), x_BD)
    return medians(functions, rounds=4)


def measure_scaling(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    setting = f"B={SCALING_BATCH} D={D}, ours bf16, seed {SEED}, medians of 8"
    content = {
        "header": header(setting, "dictionary-learning", "numpy"),
        "F, at k = 64": {size: milliseconds_at(size, 64) for size in SIZES},
        "k, at F = 8,192": {k: milliseconds_at(8192, k) for k in SCALING_KS},
    }
    raw_results.write(RESULTS / "benchmark_scaling.json", content)


def curves(content: Content) -> dict[str, dict[str, dict[int, float]]]:
    """By what grows and whose step: milliseconds by size."""
    return {
        title: {
            name: {int(x): times[name] for x, times in results.items() if name in times}
            for name in ("vSAE", "upstream")
        }
        for title, results in content.items()
        if title != "header"
    }


def exponent(points: dict[int, float]) -> float:
    """p of y = b x^p, fitted to the logarithms."""
    return float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0])


def tables_of_scaling(content: Content) -> list[str]:
    lines = [content["header"]]
    for title, of_both in curves(content).items():
        ours = of_both["vSAE"]
        rows = {
            name: [f"{points[x]:.0f}" if x in points else "" for x in ours]
            for name, points in of_both.items()
        }
        fitted = ", ".join(f"{name} {exponent(points):.2f}" for name, points in of_both.items())
        slopes = np.diff(np.log(list(ours.values()))) / np.diff(np.log(list(ours)))
        local = ", ".join(f"{slope:.2f}" for slope in slopes)
        lines += ["", *table(f"ms, by {title}", rows, [f"{x:,}" for x in ours]), ""]
        lines.append(f"Fitted exponents: {fitted}. Ours, local slopes: {local}.")
    return lines


def draw_scaling(content: Content, page: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, (title, of_both) in zip(axes, curves(content).items(), strict=True):
        for name, points in of_both.items():
            label = f"{name}: exponent {exponent(points):.2f}"
            axis.loglog(points.keys(), points.values(), "o-", label=label)
        axis.set(xlabel=title, ylabel="ms a step")
        axis.legend()
    save_plot(figure, page.with_suffix(".png"), dpi=110)


# Quality: all from one buffer of each dtype. With bfloat16 the language model, the buffer and the matmuls
# are in bf16, so the last columns show all that the setting changes.

QUALITY_STEPS, SEEDS = 600, (0, 1, 2)
SAES = {
    "upstream TopK": SAEConfig(architecture="top_k"),
    "point, rectified, beta 0": SAEConfig(posterior="point", rectify=True, beta=0.0),
    "the paper's equations": SAEConfig(beta=0.01),
    "noise on values, KL on selected": SAEConfig(
        noise_on="values", kl_scope="selected", beta=0.1, sigma=0.3
    ),
    "selection, annealed": SAEConfig(noise_on="selection", noise_anneal=0.5, beta=0.0, sigma=0.3),
}
SHARED: dict[str, Any] = {"k": 16, "dict_size": 512, "lr": 2e-3, "decay_start": 0.5}


def measure_quality(_: argparse.Namespace) -> None:
    fve: dict[str, dict[str, list[float]]] = {name: {} for name in SAES}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            saes = {
                f"{i}_{seed}": replace(sae, seed=seed, **SHARED)
                for i, sae in enumerate(SAES.values())
                for seed in SEEDS
            }
            folders = train_missing(
                RunConfig(hook=FIRST_HOOK, steps=QUALITY_STEPS, dtype=dtype), Path(folder), saes
            )
            for i, name in enumerate(SAES):
                fve[name][dtype] = [
                    metrics_of(folders[f"{i}_{seed}"], ["fve"])["fve"] for seed in SEEDS
                ]
    setting = (
        f"embedded model, layer 0, D=128 F=512 k=16, {QUALITY_STEPS} steps of 1,024; seeds 0, 1, 2"
    )
    content = {"header": header(setting, "dictionary-learning"), "fve": fve}
    raw_results.write(RESULTS / "benchmark_quality.json", content)


def tables_of_quality(content: Content) -> list[str]:
    fve = content["fve"]
    upstream = statistics.mean(fve["upstream TopK"]["float32"])
    rows = {}
    for name, by_dtype in fve.items():
        means = {dtype: statistics.mean(values) for dtype, values in by_dtype.items()}
        rows[name] = [
            *(each(by_dtype[dtype], 4) for dtype in ("float32", "bfloat16")),
            f"{means['bfloat16'] - means['float32']:+.4f}",
            f"{means['bfloat16'] - upstream:+.4f}",
        ]
    columns = ["float32", "bfloat16", "bf16 - fp32", "bf16 - upstream in fp32"]
    return [content["header"], "", *table("FVE", rows, columns)]


STAGES = Stages(
    NAME,
    {
        "bench": measure_times,
        "busy": measure_busy,
        "memory": measure_memory,
        "scaling": measure_scaling,
        "quality": measure_quality,
    },
    {
        "benchmark_step": Page(page_by_cpu(tables_of_times)),
        "benchmark_busy": Page(page_by_cpu(tables_of_busy)),
        "benchmark_memory": Page(tables_of_memory),
        "benchmark_scaling": Page(tables_of_scaling, draw_scaling),
        "benchmark_quality": Page(tables_of_quality),
    },
    child={"bench": times_at, "busy": busy_times, "memory": peak_mib},
)

if __name__ == "__main__":
    STAGES.run()
