"""How often do synthesised tokens excite a feature as much as the best of a text?

    python -m experiments.robustness.synthesis_reach train     # 2 minutes
    python -m experiments.robustness.synthesis_reach bench     # 4 minutes
    python -m experiments.robustness.synthesis_reach tables    # write the page's tables again

For 50 random live features of each SAE: the activation at the last of the hard tokens, relative to
the largest in 100,000 held-out tokens, and the same for the best of as many random sequences.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.collector import FeatureCollector
from dictionary_learning_ext.features.synthesis import synthesise
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, FORMER_PRESET, top_k_and_two_vsaes, train_missing

FEATURES, TOKENS, SEED, STEPS = 50, 100_000, 0, 1000
RUNS = Path("runs/synthesis_reach")
FOLDERS = [
    str(RUNS / name) for name in ("top_k", "vsae_annealed_selection", "vsae_paper", "layer2")
]


def train_four(_: argparse.Namespace) -> None:
    """Three at blocks.0, and a TopK SAE at blocks.2."""
    saes = top_k_and_two_vsaes(SEED)
    former = preset("recommended", STEPS).updated(FORMER_PRESET, "the former preset")
    run = replace(former.run, hook=FIRST_HOOK)
    train_missing(run, RUNS, saes)
    train_missing(replace(run, hook="blocks.2.hook_resid_post"), RUNS, {"layer2": saes["top_k"]})


def measure(arguments: argparse.Namespace) -> None:
    t.set_num_threads(1)
    rows = [reach(folder) for folder in arguments.folders]
    content = {"settings": {"date": time.strftime("%Y-%m-%d")}, "rows": rows}
    raw_results.write(RESULTS / "synthesis_reach.json", content)


def reach(folder: str) -> dict[str, Any]:
    """Of one SAE: each feature's ratio, of the synthesised tokens and of random sequences."""
    opened = open_folders([folder])
    run, saes, language_model = opened.run, opened.saes, opened.language_model
    assert language_model is not None
    sae = saes[folder][0]
    collector = FeatureCollector(sae, TOKENS, seed=SEED)
    for batch in opened.inputs.contexts(run.hook, "heldout", TOKENS):
        collector.add(batch)
    statistics = collector.statistics()
    live = statistics.alive_F.nonzero().flatten()
    order = t.randperm(len(live), generator=t.Generator().manual_seed(SEED))
    features = sorted(live[order[:FEATURES]].tolist())
    start = time.monotonic()
    found = synthesise(sae, language_model.module, opened.hook_point, features, seed=SEED)
    seconds = time.monotonic() - start
    best = statistics.max_F[features]
    return {
        "sae": folder.rpartition("/")[2],
        "hook": run.hook,
        "ratio": (t.tensor([one.activation for one in found]) / best).tolist(),
        "random": (t.tensor([one.random for one in found]) / best).tolist(),
        "seconds": seconds,
    }


def tables(content: dict[str, Any]) -> list[str]:
    rows = {}
    for row in content["rows"]:
        ratio, random = t.tensor(row["ratio"]), t.tensor(row["random"])
        rows[row["sae"]] = [
            row["hook"],
            f"{int((ratio >= 0.8).sum())} of {len(ratio)}",
            f"{ratio.median():.2f}",
            f"{ratio.min():.2f}",
            f"{int((random >= 0.8).sum())}",
            f"{random.median():.2f}",
            f"{row['seconds']:.0f}",
        ]
    columns = ["hook", "reached", "median ratio", "least", "random reached", "random median"]
    return [
        f"{about_line(content['settings'])}, seed {SEED}: {FEATURES} random live features of each SAE, "
        f"{TOKENS:,} held-out tokens.",
        "",
        *table("SAE", rows, [*columns, "seconds"]),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="run folders of the SAEs")


STAGES = Stages(
    "robustness.synthesis_reach",
    {"train": train_four, "bench": measure},
    {"synthesis_reach": Page(tables)},
    options=options,
)

if __name__ == "__main__":
    STAGES.run()
