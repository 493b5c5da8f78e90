"""Does reconstruction fall because noise changes which features win? FVE against selection stability.

    python -m experiments.paper.selection_churn            # train, measure, write; about 5 minutes
    python -m experiments.paper.selection_churn --tables   # write the page again from the raw results

Six noise levels that stay to the end, on both, on the values, and on the selection; no KL, so that
noise is all that differs; TopK beside them. All from one buffer, two seeds. Stability is the mean
Jaccard overlap of TopK(mu) with TopK(mu + sigma eps) on held-out tokens. Raw figures go to
results/selection_churn.json, the page made from them to results/selection_churn.md and .png.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as t

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.run_folder.reading import read_metrics
from experiments.pages import RESULTS, table

STEPS, SEEDS, K, D, F = 500, (0, 1), 16, 128, 512
SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
NOISE_ON = ("both", "values", "selection")
RAW, RUNS = RESULTS / "selection_churn.json", Path("runs/selection_churn")


def measure() -> None:
    shared: dict[str, Any] = {"k": K, "dict_size": F, "lr": 2e-3, "decay_start": STEPS * 3 // 4}
    saes, settings = {}, {}
    for seed in SEEDS:
        saes[f"top_k_seed{seed}"] = SAEConfig(architecture="top_k", seed=seed, **shared)
        settings[f"top_k_seed{seed}"] = {"noise_on": "TopK", "sigma": 0.0, "seed": seed}
        for noise_on in NOISE_ON:
            for sigma in SIGMAS:
                name = f"{noise_on}_sigma{sigma}_seed{seed}"
                saes[name] = SAEConfig(
                    noise_on=noise_on, sigma=sigma, beta=0.0, seed=seed, **shared
                )
                settings[name] = {"noise_on": noise_on, "sigma": sigma, "seed": seed}
    if not all((RUNS / name / "metrics.json").exists() for name in saes):
        run = RunConfig(steps=STEPS, save_dir=str(RUNS), overwrite=True, eval_tokens=20_000)
        train(run, saes)
    rows = []
    for name in saes:
        figures = read_metrics(RUNS / name)
        wanted = ("fve", "fve_sampled", "stability_sigma", "near_dead_0.1", "noise_to_signal")
        rows.append(settings[name] | {figure: figures.get(figure) for figure in wanted})
    setting = (
        f"embedded model, blocks.0.hook_resid_post, D = {D}, F = {F}, k = {K}, {STEPS} steps of "
        f"1,024 tokens, lr 2e-3, sqrt_d, no KL, seeds {SEEDS}; 20,000 held-out tokens"
    )
    head = {"date": time.strftime("%Y-%m-%d"), "torch": t.__version__, "setting": setting}
    RAW.write_text(json.dumps({"settings": head, "rows": rows}, indent=0) + "\n")


def page(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    rows, settings = content["rows"], content["settings"]

    def of(figure: str, noise_on: str, sigma: float) -> str:
        values = [r[figure] for r in rows if (r["noise_on"], r["sigma"]) == (noise_on, sigma)]
        return " / ".join("" if value is None else f"{value:.3f}" for value in values)

    columns = {
        "fve": "FVE",
        "fve_sampled": "FVE, sampled",
        "stability_sigma": "stability",
        "near_dead_0.1": "near-dead < 0.1",
        "noise_to_signal": "noise_to_signal",
    }
    cells = {"TopK": [of(figure, "TopK", 0.0) for figure in columns]}
    for noise_on in NOISE_ON:
        for sigma in SIGMAS:
            cells[f"{noise_on}, sigma {sigma}"] = [of(f, noise_on, sigma) for f in columns]
    lines = [
        "`python -m experiments.paper.selection_churn`",
        "",
        f"{settings['date']}, torch {settings['torch']}; {settings['setting']}. One number a seed.",
        "",
        *table("noise on", cells, list(columns.values())),
        "",
    ]
    baseline = statistics.mean(r["fve"] for r in rows if r["noise_on"] == "TopK")
    for noise_on in NOISE_ON:
        own = [r for r in rows if r["noise_on"] == noise_on]
        fve, stability = ([r[name] for r in own] for name in ("fve", "stability_sigma"))
        lines.append(
            f"- {noise_on}: correlation of FVE with stability {np.corrcoef(fve, stability)[0, 1]:.3f} "
            f"over {len(own)} runs; FVE falls by {baseline - min(fve):.3f} from TopK's {baseline:.3f} "
            f"at the most."
        )
    return [*lines, "", "![FVE against selection stability](selection_churn.png)"]


def draw(content: dict[str, Any]) -> None:
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for noise_on, marker in zip(NOISE_ON, "os^", strict=True):
        own = [r for r in content["rows"] if r["noise_on"] == noise_on]
        axis.plot(
            [r["stability_sigma"] for r in own],
            [r["fve"] for r in own],
            marker,
            label=f"noise on {noise_on}",
        )
    axis.set(xlabel="selection stability at the model's sigma", ylabel="FVE at the mean")
    axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "selection_churn.png", dpi=110)


def main() -> None:
    t.set_num_threads(2)
    if "--tables" not in sys.argv:
        measure()
    content = json.loads(RAW.read_text())
    draw(content)
    lines = page(content)
    (RESULTS / "selection_churn.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
