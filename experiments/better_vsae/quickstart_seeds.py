"""TopK and two vSAEs over three seeds: what `vsae quickstart` compared until 2026-11-27.

    python -m experiments.better_vsae.quickstart_seeds train     # 2 minutes a seed on 2 cores
    python -m experiments.better_vsae.quickstart_seeds tables    # write the page's tables again

Trains them for seeds 0, 1 and 2, unless runs/quickstart_seeds holds them already.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from experiments import raw_results
from experiments.pages import each, labels_of, table
from experiments.raw_results import RESULTS
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, metrics_of, top_k_and_two_vsaes, train_missing

SEEDS, STEPS = (0, 1, 2), 1000
RUNS = Path("runs/quickstart_seeds")
METRICS = ("fve", "frac_recovered", "near_dead_0.1", "near_dead_0.5", "stability_rms")


def measure(_: argparse.Namespace) -> None:
    rows = []
    for seed in SEEDS:
        saes = top_k_and_two_vsaes(seed)
        folders = train_missing(RunConfig(hook=FIRST_HOOK, steps=STEPS), RUNS / str(seed), saes)
        rows += [
            {"model": name, "seed": seed} | metrics_of(folder, METRICS)
            for name, folder in folders.items()
        ]
    content = {"settings": {"date": time.strftime("%Y-%m-%d")}, "rows": rows}
    raw_results.write(RESULTS / "quickstart_seeds.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    rows = content["rows"]
    cells = {
        f"`{model}`": [each([r[metric] for r in rows if r["model"] == model]) for metric in METRICS]
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    return [
        f"{content['settings']['date']}; embedded model, blocks.0.hook_resid_post, D = 128, F = 512, "
        f"k = 16, {STEPS} steps of 1,024 tokens; seeds {', '.join(map(str, SEEDS))}",
        "",
        *table("", cells, labels_of(METRICS)),
    ]


STAGES = Stages(
    "better_vsae.quickstart_seeds", {"train": measure}, {"quickstart_seeds": Page(tables)}
)

if __name__ == "__main__":
    STAGES.run()
