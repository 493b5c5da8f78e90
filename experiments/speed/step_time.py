"""How long one training step takes: ours, upstream's, SAELens's and sparsify's, in one process.

    python -m experiments.speed.step_time bench     # about 10 minutes
    python -m experiments.speed.step_time tables    # write the page again

SAELens and sparsify are measured where they are installed: `pip install sae-lens`, and
`pip install --no-deps eai-sparsify` with `natsort simple-parsing schedulefree`. A step is forward,
backward, the library's own constraints, clipping and optimiser. sparsify's fast kernels are for GPUs.
Each k is measured in a process of its own.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    activations,
    header,
    medians,
    page_by_cpu,
    trainer_arguments,
    update,
    write_for_this_cpu,
)
from experiments.stages import Stages, in_child

BATCH, D, F, KS = 2048, 512, 2048, (64, 512)
OURS: dict[str, dict[str, Any]] = {
    "fixed, noise on both": {},
    "fixed, noise on values": {"noise_on": "values"},
    "fixed, noise on selection": {"noise_on": "selection"},
    "point": {"posterior": "point"},
    "learned, noise on both": {"posterior": "learned"},
}


def saelens_step(
    k: int, x_BD: t.Tensor, dict_size: int, *, autocast: bool = False
) -> Callable[[], object]:
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


def sparsify_step(k: int, x_BD: t.Tensor, dict_size: int) -> Callable[[], object]:
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


def other_libraries(
    k: int, x_BD: t.Tensor, dict_size: int
) -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes the step of each other library that is installed, on the device of `x_BD`."""
    makers: dict[str, Callable[[], Callable[[], object]]] = {}
    if importlib.util.find_spec("sae_lens"):
        makers["SAELens TopK"] = lambda: saelens_step(k, x_BD, dict_size)
        makers["SAELens TopK, autocast to bfloat16"] = lambda: saelens_step(
            k, x_BD, dict_size, autocast=True
        )
    if importlib.util.find_spec("sparsify"):
        makers["sparsify"] = lambda: sparsify_step(k, x_BD, dict_size)
    return makers


def baselines(k: int, x_BD: t.Tensor) -> dict[str, Callable[[], object]]:
    """One step of upstream's trainer and of each other library that is installed."""
    steps = {"upstream TopK": update(TopKTrainer(**common(k)), x_BD)}
    return steps | {name: make() for name, make in other_libraries(k, x_BD, F).items()}


def common(k: int) -> dict[str, Any]:
    return trainer_arguments(D, F, k) | {"threshold_start_step": 0}


def times(k: int) -> dict[str, list[float]]:
    """Each row's milliseconds, and over upstream's and SAELens's, measured in turns with it."""
    x_BD = activations(BATCH, D)
    others = baselines(k, x_BD)
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
            trainer = VariationalTopKTrainer(dtype=dtype, **common(k), **arguments)
            milliseconds = medians({**reference, "ours": update(trainer, x_BD)})
            rows[f"{name}, {dtype}"] = cells("ours", milliseconds)
    beside = medians(others)
    for name in others:
        rows[name] = cells(name, beside)
    return rows


def print_times(k: str) -> str:
    """In this process: one k's rows, as JSON."""
    t.set_num_threads(2)
    t.manual_seed(SEED)
    return json.dumps(times(int(k)))


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    by_k = {str(k): json.loads(in_child(STAGES.name, "bench", "--only", str(k))) for k in KS}
    packages = [
        name
        for name, module in (
            ("dictionary-learning", "dictionary_learning"),
            ("sae-lens", "sae_lens"),
            ("eai-sparsify", "sparsify"),
            ("numpy", "numpy"),
        )
        if importlib.util.find_spec(module)
    ]
    setting = (
        f"B={BATCH} D={D} F={F}, seed {SEED}, medians of 20, each row in turns with the baselines"
    )
    content = {"header": header(setting, *packages), "by_k": by_k}
    write_for_this_cpu(RESULTS / "benchmark_step.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    return [
        *page_by_cpu(content, tables_of_cpu),
        "",
        "A trainer of ours has glibc keep freed memory (`trainers/kernels/products.py`) and torch's threads "
        "sleep while they wait (`trainers/kernels/compiled.py`), which changes what else runs in the "
        "process too: hence the first rows.",
    ]


def tables_of_cpu(content: dict[str, Any]) -> list[str]:
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


STAGES = Stages("speed.step_time", {"bench": measure}, tables, child=print_times)

if __name__ == "__main__":
    STAGES.run()
