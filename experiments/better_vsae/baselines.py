"""The SAEs of the paper's related work, trained in the same loop on the same batches.

    python -m experiments.better_vsae.baselines train     # train, measure, write the page
    python -m experiments.better_vsae.baselines tables    # write the page's tables again

TopK, BatchTopK, Matryoshka and ReLU + L1 are upstream's trainers. JumpReLU is trained by upstream's
trainer, and by trainers/upstream.py, which applies the threshold once. The purely variational SAE is
k = F. VAEase is trainers/vaease.py; its L0 counts the features whose gate is open. Those that have
no k are trained at several penalties.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from experiments import raw_results
from experiments.pages import DIGITS, labels_of, spread, table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, folder_name, metrics_of, sae_config, train_missing

STEPS, SEEDS, D, F, K, EVAL_TOKENS = 500, (0, 1, 2), 128, 512, 16, 20_000
MODELS: dict[str, dict[str, Any]] = {
    "TopK": {"architecture": "top_k", "k": K},
    "vSAE, selection annealed": {
        "k": K,
        "noise_on": "selection",
        "sigma": 0.5,
        "noise_anneal": 0.5,
        "beta": 0.0,
    },
    "vSAE, the paper's equations": {"k": K, "beta": 1.0},
    "BatchTopK": {"architecture": "batch_top_k", "k": K},
    "Matryoshka": {"architecture": "matryoshka", "k": K},
    **{
        name: {
            "architecture": "jump_relu",
            "target_l0": 16.0,
            "lr": 1e-3,
            "threshold_twice": twice,
        }
        for name, twice in (
            ("JumpReLU, L0 aimed at 16", False),
            ("JumpReLU as upstream trains it, L0 aimed at 16", True),
        )
    },
    **{
        f"ReLU, L1 {penalty:g}": {"architecture": "relu", "l1_penalty": penalty, "lr": 1e-3}
        for penalty in (1.0, 3.0, 6.0)
    },
    **{
        f"purely variational, sigma {sigma:g}, beta {beta:g}": {
            "architecture": "vsae",
            "sigma": sigma,
            "beta": beta,
            "lr": 1e-3,
        }
        for sigma, beta in ((0.1, 1.0), (0.3, 1.0), (1.0, 1.0), (1.0, 0.01))
    },
    **{
        f"VAEase, gamma from {gamma:g}, lr {lr:g}": {
            "architecture": "vaease",
            "gamma_init": gamma,
            "lr": lr,
        }
        for gamma, lr in ((0.1, 1e-3), (0.1, 5e-3), (1.0, 5e-3))
    },
}
METRICS = (
    "l0",
    "fve",
    "frac_recovered",
    "cossim",
    "alive",
    "near_dead_0.1",
    "near_dead_0.5",
    "description_length",
)
RAW, RUNS = RESULTS / "baselines.json", Path("runs/baselines")


def measure(_: argparse.Namespace) -> None:
    """Train what is not there yet, and write every SAE's metrics."""
    began = time.monotonic()
    before = raw_results.read_or(RAW, {"settings": None})["settings"]
    cells = list(itertools.product(SEEDS, MODELS))
    names = {(seed, model): folder_name(model, f"seed{seed}") for seed, model in cells}
    saes = {
        names[seed, model]: sae_config(seed=seed, dict_size=F, **MODELS[model])
        for seed, model in cells
    }
    run = RunConfig(hook=FIRST_HOOK, steps=STEPS, eval_tokens=EVAL_TOKENS, log_steps=500)
    folders = train_missing(run, RUNS, saes)
    rows = [
        {"model": model, "seed": seed} | metrics_of(folders[names[seed, model]], METRICS)
        for seed, model in cells
    ]
    settings = {
        **about(began, before),
        "setting": f"embedded model, blocks.0.hook_resid_post, D = {D}, F = {F}, k = {K} where there "
        f"is one, {STEPS} steps of 1,024 tokens, sqrt_d, seeds {SEEDS}; {EVAL_TOKENS:,} held-out "
        "tokens; lr 2e-3 for the TopK family, 1e-3 for the others unless a name says otherwise",
    }
    raw_results.write(RAW, {"settings": settings, "rows": rows})


def tables(content: dict[str, Any]) -> list[str]:
    rows, settings = content["rows"], content["settings"]

    def cell(model: str, metric: str) -> str:
        if metric == "description_length" and model.startswith("purely variational"):
            return ""
        values = [row[metric] for row in rows if row["model"] == model]
        return spread(values, DIGITS.get(metric, 3))

    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {model: [cell(model, metric) for metric in METRICS] for model in models}
    return [
        f"{about_line(settings)}; {settings['setting']}.",
        "",
        *table("", cells, labels_of(METRICS)),
    ]


STAGES = Stages("better_vsae.baselines", {"train": measure}, {"baselines": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
