"""Whole runs, language model, buffer and all: ours against upstream's `trainSAE`.

    python -m experiments.speed.whole_runs bench     # about 10 minutes
    python -m experiments.speed.whole_runs tables    # write the page again

The language model has Pythia-70M's shape (random weights), the text is the shipped books, activations
are read at layer 0. First one SAE of k = 64, then twelve: k = 64, 128, 256, 512 with three seeds each.
Ours are trained in one run from one buffer. Upstream's are trained in twelve runs (one of each k is
timed and counted three times) and in one call of `trainSAE`. Everything is timed: loading, filling,
training, writing. The runs of one SAE are timed in two orders; the page shows the mean of both.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from nnsight import LanguageModel
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from dictionary_learning_ext import open_text
from dictionary_learning_ext.activations.language_models import EMBEDDED_MODEL
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
from experiments.stages import Stages

BATCH, F, N_CTXS, STEPS_ONE, STEPS_TWELVE = 2048, 2048, 1024, 128, 96
KS, SEEDS = (64, 128, 256, 512), (0, 1, 2)


def make_language_model(folder: Path) -> Path:
    """A model of Pythia-70M's shape, with the embedded model's tokenizer."""
    config = GPTNeoXConfig(
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        vocab_size=50_304,
    )
    t.manual_seed(SEED)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder)
    return folder


def upstream(model: Path, ks: list[int], steps: int) -> Callable[[Path], object]:
    """One call of `trainSAE` on upstream's buffer."""

    def run(folder: Path) -> None:
        lm: Any = LanguageModel(str(model), device_map="cpu", dispatch=True)
        submodule = lm.gpt_neox.layers[0]
        buffer = ActivationBuffer(
            iter(open_text("embedded", passes=2)),
            lm,
            submodule,
            d_submodule=512,
            n_ctxs=N_CTXS,
            ctx_len=128,
            refresh_batch_size=32,
            out_batch_size=BATCH,
        )
        configs = [
            {"trainer": TopKTrainer, **trainer_arguments(512, F, k), "steps": steps} for k in ks
        ]
        trainSAE(buffer, configs, steps=steps, save_dir=str(folder), device="cpu")

    return run


def ours(
    model: Path, saes: dict[str, SAEConfig], steps: int, dtype: str
) -> Callable[[Path], object]:
    """One run of ours."""

    def run(folder: Path) -> None:
        settings = RunConfig(
            model=str(model),
            text_passes=2,
            steps=steps,
            batch_size=BATCH,
            n_ctxs=N_CTXS,
            dtype=dtype,  # pyright: ignore[reportArgumentType]
            eval_tokens=0,
            save_dir=str(folder),
        )
        train(settings, saes)

    return run


def seconds(runs: dict[str, Callable[[Path], object]], *, twice: bool) -> dict[str, float]:
    """The wall time of each; or the mean of two, the second time in the other order."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for order in (list(runs), list(reversed(runs)) if twice else []):
        for name in order:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                runs[name](Path(folder) / "run")
                times[name].append(time.perf_counter() - started)
                print(f"{name}: {times[name][-1]:.1f} s", flush=True)
    return {name: sum(values) / len(values) for name, values in times.items()}


def vsaes(ks: tuple[int, ...], seeds: tuple[int, ...]) -> dict[str, SAEConfig]:
    return {
        f"k{k}_seed{seed}": SAEConfig(k=k, dict_size=F, seed=seed) for k in ks for seed in seeds
    }


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as base:
        model = make_language_model(Path(base) / "lm")
        one = seconds(
            {
                "upstream trainSAE, TopK": upstream(model, [64], STEPS_ONE),
                "vSAE, float32": ours(model, vsaes((64,), (0,)), STEPS_ONE, "float32"),
                "vSAE, bfloat16": ours(model, vsaes((64,), (0,)), STEPS_ONE, "bfloat16"),
            },
            twice=True,
        )
        twelve = seconds(
            {f"k={k}": upstream(model, [k], STEPS_TWELVE) for k in KS}
            | {
                "one call": upstream(model, [k for k in KS for _ in SEEDS], STEPS_TWELVE),
                "vSAE, bfloat16": ours(model, vsaes(KS, SEEDS), STEPS_TWELVE, "bfloat16"),
                "vSAE, float32": ours(model, vsaes(KS, SEEDS), STEPS_TWELVE, "float32"),
            },
            twice=False,
        )
    setting = f"B={BATCH} D=512 F={F}, {N_CTXS} contexts of 128 in the buffer, seed {SEED}"
    packages = ("dictionary-learning", "nnsight", "transformers")
    content = {"header": header(setting, *packages), "one": one, "twelve": twelve}
    write_for_this_cpu(RESULTS / "benchmark_pipeline.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    return [
        *page_by_cpu(content, tables_of_cpu),
        "",
        "Upstream is in fp32 throughout, which is what its `trainSAE` does on a CPU; our bfloat16 is "
        "the language model, the buffer and the matmuls. Of the 12 upstream runs, one of each k was "
        "timed and counted three times.",
    ]


def tables_of_cpu(content: dict[str, Any]) -> list[str]:
    one, twelve = content["one"], content["twelve"]
    apart = sum(twelve[f"k={k}"] for k in KS) * len(SEEDS)
    rows = {
        name: [
            f"{value:.1f}",
            f"{STEPS_ONE * BATCH / value:,.0f}",
            f"{one['upstream trainSAE, TopK'] / value:.2f}",
        ]
        for name, value in one.items()
    }
    rows_twelve = {
        f"12 vSAEs in one run, {dtype}": [
            f"{own:.0f}",
            f"{apart:.0f}",
            f"{apart / own:.2f}",
            f"{twelve['one call']:.0f}",
            f"{twelve['one call'] / own:.2f}",
        ]
        for dtype in ("float32", "bfloat16")
        for own in (twelve[f"vSAE, {dtype}"],)
    }
    return [
        content["header"],
        "",
        *table(f"one SAE, k=64, {STEPS_ONE} steps", rows, ["seconds", "tokens/s", "over upstream"]),
        "",
        *table(
            f"12 SAEs, {STEPS_TWELVE} steps",
            rows_twelve,
            ["seconds", "12 TopK in 12 upstream runs", "ratio", "in one `trainSAE`", "ratio"],
        ),
    ]


STAGES = Stages("speed.whole_runs", {"bench": measure}, tables)

if __name__ == "__main__":
    STAGES.run()
