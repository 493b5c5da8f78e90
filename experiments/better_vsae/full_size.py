"""TopK and six settings of the variational SAE at the paper's size, on a real language model: SmolLM2-135M.

    python -m experiments.language_models.smollm2 runs/smollm2-135m   # the language model, once
    python -m experiments.better_vsae.full_size train     # train, measure, write the page
    python -m experiments.better_vsae.full_size tables    # write the page's tables again

    ... train --k 64    # one of the two k; the other in a process of its own beside it

42 SAEs (seven models, k = 64 and 256, three seeds) of F = 4D at blocks.0.hook_resid_post, D = 576, all
trained on the same batches: those of one buffer for each k, from the same seed.

What is trained or measured is not done again, and a training that was stopped is continued.
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as t

from dictionary_learning_ext import RunConfig, load_dictionary
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.evaluation.measure import measure as measure_saes
from dictionary_learning_ext.run_folder.files import write_json
from experiments import raw_results
from experiments.pages import LABELS, SHOWN, labels_of, save_plot, spread, table
from experiments.paper.feature_maps import dispersion
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import (
    FIRST_HOOK,
    agreement,
    directions_of,
    folder_name,
    metrics_of,
    sae_config,
    train_missing,
)

D, F, KS, LR, BATCH, PASSES = 576, 2304, (64, 256), 1e-3, 1024, 10
EVAL_TOKENS, EVAL_DOCUMENTS = 20_000, 6
MODELS: dict[str, dict[str, Any]] = {
    "TopK": {"posterior": "point", "rectify": True, "beta": 0.0},
    "point, beta 0.01": {"posterior": "point", "rectify": True, "beta": 0.01},
    "both, sigma 1, beta 0.01": {"beta": 0.01},
    "values, sigma 1, beta 0.01": {"noise_on": "values", "beta": 0.01},
    "selection 0.03": {"noise_on": "selection", "ratio": 0.03, "beta": 0.0},
    "point, KL 0.01": {"posterior": "point", "beta": 0.01, "kl_scope": "selected"},
    "selection 0.1, KL 0.01": {
        "noise_on": "selection",
        "ratio": 0.1,
        "beta": 0.01,
        "kl_scope": "selected",
    },
}
"""ratio is noise_to_signal = k sigma^2 / D of noise that is annealed to 0 over the first half."""
DRAWN = ("fve", "near_dead_0.1")


def run_name(model: str, k: int, seed: int) -> str:
    return folder_name(model, f"k{k}", f"seed{seed}")


def config_of(model: str, k: int, seed: int) -> SAEConfig:
    settings = dict(MODELS[model])
    if (ratio := settings.pop("ratio", None)) is not None:
        settings |= {"sigma": math.sqrt(ratio * D / k), "noise_anneal": 0.5}
    return sae_config(k=k, dict_size=F, lr=LR, seed=seed, **settings)


def measure(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    for k in arguments.k:
        measure_at(arguments, k)


def measure_at(arguments: argparse.Namespace, k: int) -> None:
    """Train and evaluate what is not there yet at this k, and write every SAE's metrics."""
    began = time.monotonic()
    steps, seeds = arguments.tokens // BATCH, range(arguments.seeds)
    folder = arguments.runs / f"{steps}_steps" / f"k{k}"
    cells = [(model, seed) for seed in seeds for model in MODELS]
    saes = {run_name(model, k, seed): config_of(model, k, seed) for model, seed in cells}
    run = RunConfig(
        model=arguments.lm,
        hook=FIRST_HOOK,
        text_passes=PASSES,
        steps=steps,
        batch_size=BATCH,
        n_ctxs=1024,
        dtype="bfloat16",
        eval_tokens=0,  # here it is measured in float32
        save_every="30m",
    )
    train_missing(run, folder, saes, finished="ae.pt")
    text_tokens = evaluate_missing(arguments.lm, [folder / name for name in saes])
    directions = {name: directions_of(folder / name) for name in saes}
    rows = []
    for model, seed in cells:
        own = directions[run_name(model, k, seed)]
        other = directions[run_name(model, k, (seed + 1) % len(seeds))]
        row: dict[str, Any] = {"model": model, "k": k, "seed": seed}
        row |= metrics_of(folder / run_name(model, k, seed), SHOWN)
        row |= {"dispersion": dispersion(own @ own.T), "agreement": agreement(own, other)}
        rows.append(row)
    write_rows(arguments.raw, rows, k, steps * BATCH, text_tokens, began)


def write_rows(
    raw: Path, rows: list[dict[str, Any]], k: int, tokens: int, text_tokens: int, began: float
) -> None:
    """Put these rows in place of this k's, beside those of the other k on equally many tokens."""
    nothing = {"settings": None, "rows": []}
    before = raw_results.read_or(raw, nothing)
    if before["settings"] and before["settings"]["tokens"] != tokens:
        before = nothing
    others = [row for row in before["rows"] if row["k"] != k]
    chance = np.random.default_rng(0).normal(size=(2, F, D))
    steps = tokens // BATCH
    settings = {
        **about(began, before["settings"]),
        "tokens": tokens,
        "text_tokens": text_tokens,
        "agreement_by_chance": agreement(*chance),
        "setting": f"SmolLM2-135M-Instruct, blocks.0.hook_resid_post, D = {D}, F = {F}, {steps:,} "
        f"steps of {BATCH:,} tokens, lr {LR:g} and falling in the last quarter, sqrt_d, bfloat16, "
        f"seeds {', '.join(map(str, sorted({row['seed'] for row in rows})))}; measured in float32 "
        f"on {EVAL_TOKENS:,} held-out tokens, CE on the beginnings of {EVAL_DOCUMENTS} held-out "
        "passages",
    }
    content = {"settings": settings, "rows": sorted(others + rows, key=lambda row: row["k"])}
    raw_results.write(raw, content)


def evaluate_missing(lm: str, folders: list[Path]) -> int:
    """Write the metrics.json that are not there yet; return the tokens in the training text.

    In float32: a cross-entropy in bfloat16 has steps of 1/32 nat.
    """
    run = RunConfig(model=lm, hook=FIRST_HOOK, eval_documents=EVAL_DOCUMENTS)
    inputs = open_inputs(run, [run.hook])
    dictionaries = {}
    for folder in folders:
        if not (folder / "metrics.json").exists():
            sae, config = load_dictionary(folder)
            dictionaries[str(folder)] = (sae, config["trainer"]["norm_factor"])
    if dictionaries:
        held_out = inputs.held_out(run.hook, EVAL_TOKENS)
        for name, metrics in measure_saes(dictionaries, held_out, EVAL_TOKENS).items():
            write_json(Path(name) / "metrics.json", metrics)
    model: Any = inputs.language_model
    text = ContextStream(open_text(run.data), model.tokenizer, run.ctx_len)
    while True:
        try:
            text.next_batch(1024)
        except StopIteration:
            return text.tokens_read


def values(rows: list[dict[str, Any]], metric: str, model: str, k: int) -> list[float]:
    """One number per seed."""
    return [row[metric] for row in rows if (row["model"], row["k"]) == (model, k)]


def tables(content: dict[str, Any]) -> list[str]:
    rows, settings = content["rows"], content["settings"]
    tokens, text_tokens = settings["tokens"], settings["text_tokens"]
    lines = [
        f"{about_line(settings)}; {settings['setting']}. {tokens:,} tokens for training: "
        f"{tokens / text_tokens:.2f} passes over the shipped books, {text_tokens:,} tokens of this "
        f"model's. Agreement of seeds of random directions: {settings['agreement_by_chance']:.3f}.",
        "",
    ]
    for k in sorted({row["k"] for row in rows}):
        cells = {model: [spread(values(rows, m, model, k)) for m in SHOWN] for model in MODELS}
        lines += [*table(f"k = {k}", cells, labels_of(SHOWN)), ""]
    return lines[:-1]


def draw(content: dict[str, Any], page: Path) -> None:
    figure, axes = plt.subplots(1, len(DRAWN), figsize=(8, 3.2), sharey=True)
    for axis, name in zip(axes, DRAWN, strict=True):
        for k, marker, offset in zip(KS, "os", (-0.12, 0.12), strict=True):
            if not any(row["k"] == k for row in content["rows"]):
                continue
            found = [values(content["rows"], name, model, k) for model in MODELS]
            axis.errorbar(
                [statistics.mean(numbers) for numbers in found],
                [row + offset for row in range(len(MODELS))],
                xerr=[statistics.stdev(numbers) for numbers in found],
                fmt=marker,
                markersize=4,
                label=f"k = {k}",
            )
        axis.set(xlabel=LABELS[name], yticks=range(len(MODELS)), yticklabels=MODELS)
        axis.grid(axis="y", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend()
    save_plot(figure, page.with_suffix(".png"), dpi=100)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, choices=KS, nargs="*", default=KS, help="which k to train")
    parser.add_argument("--lm", default="runs/smollm2-135m", help="the language model's folder")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="to train on")
    parser.add_argument("--seeds", type=int, default=3, help="how many, at least 2")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--runs", type=Path, default=Path("runs/full_size"), help="SAEs go here")
    parser.add_argument("--raw", type=Path, default=RESULTS / "full_size.json", help="raw results")


STAGES = Stages(
    "better_vsae.full_size",
    {"train": measure},
    {"full_size": Page(tables, draw)},
    options,
    raw_of=lambda arguments: arguments.raw,
)

if __name__ == "__main__":
    STAGES.run()
