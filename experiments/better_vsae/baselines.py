"""The SAEs of the paper's related work, trained in the same loop on the same batches.

    python -m experiments.better_vsae.baselines            # train, measure, write
    python -m experiments.better_vsae.baselines --tables   # write the page again from the raw results

TopK, BatchTopK, Matryoshka, JumpReLU and ReLU + L1 are upstream's trainers; the purely variational
SAE is k = F; VAEase is trainers/vaease.py, whose L0 counts the features whose gate is open. Those that
have no k come at several penalties. Raw figures go to results/baselines.json, the page to results/baselines.md.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.run_folder.reading import read_metrics
from experiments.pages import RESULTS, about, about_line, table, write
from experiments.trained_saes import FIGURES as COMMON
from experiments.trained_saes import folder_name

STEPS, SEEDS, D, F, K, EVAL_TOKENS = 500, (0, 1, 2), 128, 512, 16, 20_000
MODELS: dict[str, dict[str, Any]] = {
    "TopK": {"architecture": "top_k", "k": K},
    "vSAE, selection annealed": {
        "k": K,
        "noise_on": "selection",
        "sigma": 0.5,
        "noise_anneal_steps": STEPS // 2,
        "beta": 0.0,
    },
    "vSAE, the paper's equations": {"k": K, "beta": 1.0},
    "BatchTopK": {"architecture": "batch_top_k", "k": K},
    "Matryoshka": {"architecture": "matryoshka", "k": K},
    "JumpReLU, L0 aimed at 16": {"architecture": "jump_relu", "target_l0": 16.0, "lr": 1e-3},
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
FIGURES = {
    "l0": "L0",
    **{name: COMMON[name] for name in ("fve", "frac_recovered", "cossim", "alive")},
    **{name: COMMON[name] for name in ("near_dead_0.1", "near_dead_0.5")},
    "description_length": "description length",
}
RAW, RUNS = RESULTS / "baselines.json", Path("runs/baselines")


def measure() -> None:
    """Train what is not there yet, all from one buffer, and write every SAE's figures."""
    began = time.monotonic()
    before = json.loads(RAW.read_text())["settings"] if RAW.exists() else None
    shared: dict[str, Any] = {"dict_size": F, "decay_start": STEPS * 3 // 4, "lr": 2e-3}
    saes = {
        folder_name(model, f"seed{seed}"): SAEConfig(seed=seed, **(shared | settings))
        for seed in SEEDS
        for model, settings in MODELS.items()
    }
    missing = {n: sae for n, sae in saes.items() if not (RUNS / n / "metrics.json").exists()}
    if missing:
        folder = RUNS if len(missing) > 1 else RUNS / next(iter(missing))
        run = RunConfig(
            steps=STEPS,
            save_dir=str(folder),
            overwrite=True,
            eval_tokens=EVAL_TOKENS,
            log_steps=500,
        )
        train(run, missing)
    rows = []
    for seed, model in itertools.product(SEEDS, MODELS):
        figures = read_metrics(RUNS / folder_name(model, f"seed{seed}"))
        rows.append({"model": model, "seed": seed} | {f: figures[f] for f in FIGURES})
    settings = {
        **about(began, before),
        "setting": f"embedded model, blocks.0.hook_resid_post, D = {D}, F = {F}, k = {K} where there "
        f"is one, {STEPS} steps of 1,024 tokens, sqrt_d, seeds {SEEDS}; {EVAL_TOKENS:,} held-out "
        "tokens; lr 2e-3 for the TopK family, 1e-3 for the others "
        "unless told",
    }
    RAW.write_text(json.dumps({"settings": settings, "rows": rows}, indent=0) + "\n")


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    rows, settings = content["rows"], content["settings"]

    def cell(model: str, figure: str) -> str:
        values = [row[figure] for row in rows if row["model"] == model]
        if figure == "description_length" and model.startswith("purely variational"):
            return ""
        digits = 1 if figure in ("l0", "description_length") else 3
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {model: [cell(model, figure) for figure in FIGURES] for model in models}
    return [
        "`python -m experiments.better_vsae.baselines`",
        "",
        f"{about_line(settings)}; {settings['setting']}. Mean ± standard "
        "deviation over seeds. Near-dead is against each SAE's own L0 where it has no k. Description "
        "length (nats per token; less is better) compares SAEs of unlike L0: see FIGURES in dictionary_learning_ext/evaluation.py; where "
        "all features are on, it says nothing, and is left out. VAEase's L0 is its number of active "
        "dimensions: features whose gate is above 0.05.",
        "",
        *table("", cells, list(FIGURES.values())),
    ]


def main() -> None:
    if "--tables" not in sys.argv:
        measure()
    write("baselines.md", tables(json.loads(RAW.read_text())))


if __name__ == "__main__":
    main()
