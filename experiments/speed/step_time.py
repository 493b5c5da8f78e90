"""How long one training step takes: ours, upstream's, SAELens's and sparsify's, in one process.

    python -m experiments.speed.step_time     # about 4 minutes

SAELens and sparsify are measured where they are installed: `pip install sae-lens`, and
`pip install --no-deps eai-sparsify` with `natsort simple-parsing schedulefree`. A step is forward,
backward, the library's own constraints, clipping and optimiser. sparsify's fast kernels are for GPUs.
Each k is measured in a process of its own.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from experiments.pages import table, write
from experiments.speed.timing import header, medians

BATCH, D, F, SEED = 2048, 512, 2048, 0
OURS: dict[str, dict[str, Any]] = {
    "fixed, noise on both": {},
    "fixed, noise on values": {"noise_on": "values"},
    "fixed, noise on selection": {"noise_on": "selection"},
    "point": {"posterior": "point"},
    "learned, noise on both": {"posterior": "learned"},
}


def saelens_step(k: int, x_BD: t.Tensor, autocast: bool = False) -> Callable[[], object]:
    """SAELens's trainer on its TopK SAE; in bf16 if `autocast`."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=BATCH,
        lr_end=3e-5,
        autocast=autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae: Any = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=F, k=k))
    trainer = SAETrainer(config, sae, iter(()))
    return lambda: trainer._train_step(sae, x_BD)


def sparsify_step(k: int, x_BD: t.Tensor) -> Callable[[], object]:
    """The step of sparsify's trainer, whose loop takes no single batch: its lines around its SAE."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    sae = SparseCoder(D, SparseCoderConfig(num_latents=F, k=k))
    optimizer = t.optim.Adam(sae.parameters(), lr=1e-4)

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(x_BD).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def baselines(k: int, x_BD: t.Tensor) -> dict[str, Callable[[], object]]:
    """One step of each other library that is installed."""
    functions = {"upstream TopK": update(TopKTrainer(**common(k)), x_BD)}
    if importlib.util.find_spec("sae_lens"):
        functions["SAELens TopK"] = saelens_step(k, x_BD)
        functions["SAELens TopK, autocast to bfloat16"] = saelens_step(k, x_BD, autocast=True)
    if importlib.util.find_spec("sparsify"):
        functions["sparsify"] = sparsify_step(k, x_BD)
    return functions


def common(k: int) -> dict[str, Any]:
    return {
        "steps": 10**6,
        "activation_dim": D,
        "dict_size": F,
        "k": k,
        "layer": 0,
        "lm_name": "none",
        "warmup_steps": 10,
        "threshold_start_step": 0,
        "seed": SEED,
        "device": "cpu",
    }


def update(trainer: Any, x_BD: t.Tensor) -> Callable[[], object]:
    steps = iter(range(10**6))
    return lambda: trainer.update(next(steps), x_BD)


def measure(k: int) -> dict[str, list[str]]:
    """Each row's milliseconds, and over upstream's and SAELens's, measured in turns with it."""
    x_BD = t.randn(BATCH, D, generator=t.Generator().manual_seed(SEED))
    others = baselines(k, x_BD)
    reference = {name: others[name] for name in list(others)[:2]}

    def cells(name: str, milliseconds: dict[str, float]) -> list[str]:
        value = milliseconds[name]
        return [f"{value:.0f}", *(f"{value / milliseconds[other]:.2f}" for other in reference)]

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


def main() -> None:
    t.set_num_threads(2)
    t.manual_seed(SEED)
    if len(sys.argv) == 2:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    at_64, at_512 = (
        json.loads(
            subprocess.run(
                [sys.executable, __file__, str(k)], check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )
        for k in (64, 512)
    )
    columns = [
        name
        for k in (64, 512)
        for name in (f"k={k}, ms", "/ upstream", "/ SAELens")[: len(at_64["upstream TopK"])]
    ]
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
    lines = [
        "`python -m experiments.speed.step_time`",
        "",
        header(setting, *packages) + "; the other libraries in fp32 unless said",
        "",
        *table("one update", {name: at_64[name] + at_512[name] for name in at_64}, columns),
        "",
        "A trainer of ours has glibc keep freed memory (`trainers/scratch.py`), which may speed up "
        "what else runs in the process too: hence the first rows.",
    ]
    write("benchmark_step.md", lines)


if __name__ == "__main__":
    main()
