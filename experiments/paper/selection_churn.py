"""Does reconstruction fall because noise changes which features win? FVE against selection stability.

    python -m experiments.paper.selection_churn train     # train, measure, write the page
    python -m experiments.paper.selection_churn tables    # write the page's tables again

Six noise levels that stay to the end, on both, on the values, and on the selection. There is no KL, so
noise is the only difference. TopK stands beside them. All are trained from one buffer, with two seeds.
Stability is the mean Jaccard overlap of TopK(mu) with TopK(mu + sigma eps) on held-out tokens.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as t

from experiments import raw_results
from experiments.pages import each, labels_of, save_plot, table
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, metrics_of, run_settings, sae_config, train_missing

STEPS, SEEDS, K, D, F = 500, (0, 1), 16, 128, 512
SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
NOISE_ON = ("both", "values", "selection")
METRICS = ("fve", "fve_sampled", "stability_sigma", "near_dead_0.1", "noise_to_signal")
RUNS = Path("runs/selection_churn")


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    saes, settings = {}, {}
    for seed in SEEDS:
        shared: dict[str, Any] = {"k": K, "dict_size": F, "seed": seed}
        name = f"top_k_seed{seed}"
        saes[name] = sae_config(architecture="top_k", **shared)
        settings[name] = {"noise_on": "TopK", "sigma": 0.0, "seed": seed}
        for noise_on in NOISE_ON:
            for sigma in SIGMAS:
                name = f"{noise_on}_sigma{sigma}_seed{seed}"
                saes[name] = sae_config(noise_on=noise_on, sigma=sigma, beta=0.0, **shared)
                settings[name] = {"noise_on": noise_on, "sigma": sigma, "seed": seed}
    folders = train_missing(
        run_settings(hook=FIRST_HOOK, steps=STEPS, eval_tokens=20_000), RUNS, saes
    )
    rows = [
        settings[name] | dict.fromkeys(METRICS) | metrics_of(folder, METRICS)
        for name, folder in folders.items()
    ]
    setting = (
        f"embedded model, blocks.0.hook_resid_post, D = {D}, F = {F}, k = {K}, {STEPS} steps of "
        f"1,024 tokens, lr 2e-3, sqrt_d, no KL, seeds {SEEDS}; 20,000 held-out tokens"
    )
    head = {"date": time.strftime("%Y-%m-%d"), "torch": t.__version__, "setting": setting}
    raw_results.write(RESULTS / "selection_churn.json", {"settings": head, "rows": rows})


def tables(content: dict[str, Any]) -> list[str]:
    rows, settings = content["rows"], content["settings"]

    def cells_of(noise_on: str, sigma: float) -> list[str]:
        own = [r for r in rows if (r["noise_on"], r["sigma"]) == (noise_on, sigma)]
        return [each([row[metric] for row in own]) for metric in METRICS]

    cells = {"TopK": cells_of("TopK", 0.0)}
    for noise_on in NOISE_ON:
        for sigma in SIGMAS:
            cells[f"{noise_on}, sigma {sigma}"] = cells_of(noise_on, sigma)
    return [
        f"{about_line(settings)}; {settings['setting']}.",
        "",
        *table("noise on", cells, labels_of(METRICS)),
        "",
        *correlations(rows),
    ]


def correlations(rows: list[dict[str, Any]]) -> list[str]:
    """For each kind of noise, FVE against stability, and what FVE loses at the most."""
    lines = []
    baseline = statistics.mean(r["fve"] for r in rows if r["noise_on"] == "TopK")
    for noise_on in NOISE_ON:
        own = [r for r in rows if r["noise_on"] == noise_on]
        fve, stability = ([r[name] for r in own] for name in ("fve", "stability_sigma"))
        lines.append(
            f"- {noise_on}: correlation of FVE with stability {np.corrcoef(fve, stability)[0, 1]:.3f} "
            f"over {len(own)} runs; FVE falls by {baseline - min(fve):.3f} from TopK's {baseline:.3f} "
            f"at the most."
        )
    return lines


def draw(content: dict[str, Any], page: Path) -> None:
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
    save_plot(figure, page.with_suffix(".png"), dpi=110)


STAGES = Stages(
    "paper.selection_churn", {"train": measure}, {"selection_churn": Page(tables, draw)}
)

if __name__ == "__main__":
    STAGES.run()
