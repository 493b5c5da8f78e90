"""Does a feature that returns from other seeds match a true feature better?

    python -m experiments.ground_truth.match_to_truth train     # train, measure, write the page
    python -m experiments.ground_truth.match_to_truth tables    # write the page's tables again

The arms of experiments/reproducibility (TopK without ReLU, the chosen penalty alone, its noise alone, both)
are trained on `synthetic:small`, each from several seeds, and each seed on samples of its own. Of every
feature two numbers are taken: its match across seeds, which is the mean absolute cosine with its partners
in the other SAEs, and its match with the truth, the absolute cosine with its partner among the true
features. Partners are one to one. The question is how well the first, which can be measured on any
language model, tells the second.
"""

import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from scipy.stats import spearmanr

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.synthetic import draw_model
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.config.synthetic_models import settings_of_run
from dictionary_learning_ext.features.reproducibility import (
    Reproducibility,
    matching,
    reproducibility,
)
from experiments import raw_results
from experiments.pages import each, labels_of, table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import directions_of, metrics_of, sae_config, train_missing

MODEL, STEPS, SEEDS, K, F = "synthetic:small", 2000, 4, 8, 1024
NOISE, PENALTY = 0.3, 0.03
"""What experiments.reproducibility.study chose."""
METRICS = ("fve", "true_mcc", "firing_f1", "true_coverage")
BINS = {"below 0.5": (0.0, 0.5), "0.5 to 0.7": (0.5, 0.7), "0.7 to 0.9": (0.7, 0.9)} | {
    "above 0.9": (0.9, 1.1)
}
"""Of the match across seeds."""
RUNS = Path("runs/match_to_truth")


def saes_of(seed: int) -> dict[str, SAEConfig]:
    """The SAEs of a seed, by the names of the tables."""
    shared: dict[str, Any] = {"k": K, "dict_size": F, "seed": seed}
    noise = {
        "noise_on": "selection",
        "noise_to_signal": NOISE,
        "noise_anneal": 0.5,
    }
    penalty = {"kl_scope": "selected", "beta": PENALTY}
    return {
        "TopK": sae_config(posterior="point", beta=0.0, **shared),
        "penalty alone": sae_config(posterior="point", **penalty, **shared),
        "noise alone": sae_config(beta=0.0, **noise, **shared),
        "noise and penalty": sae_config(**penalty, **noise, **shared),
    }


def measure(arguments: Namespace) -> None:
    began, steps = time.monotonic(), arguments.steps
    base = RunConfig(**settings_of_run(MODEL), steps=steps)
    folders: dict[str, list[Path]] = {}
    for seed in range(arguments.seeds):
        of_seed = train_missing(
            replace(base, data_seed=seed), arguments.runs / str(seed), saes_of(seed)
        )
        for name, folder in of_seed.items():
            folders.setdefault(name, []).append(folder)
    truth = draw_model(MODEL).feature_dict.feature_vectors.detach().numpy()
    rows = [row for name, own in folders.items() for row in rows_of(name, own, truth)]
    setting = (
        f"{MODEL}, D = {truth.shape[1]}, {len(truth):,} true features, F = {F:,}, k = {K}, {steps:,} steps"
        f" of 1,024 samples, lr 2e-3, sqrt_d, {arguments.seeds} seeds, each with its own samples"
    )
    head = about(began) | {"setting": setting}
    raw_results.write(arguments.raw, {"settings": head, "rows": rows})


def rows_of(model: str, folders: list[Path], truth_TD: np.ndarray) -> list[dict[str, Any]]:
    """A row for each SAE of one kind."""
    directions = {str(folder): directions_of(folder) for folder in folders}
    found = reproducibility({name: t.from_numpy(each) for name, each in directions.items()})
    return [
        {"model": model, "seed": seed}
        | metrics_of(folder, METRICS)
        | {"pw_mcc": mean_pw_mcc(found, str(folder))}
        | both_matches(
            found.scores(str(folder)).match_F,
            matching(directions[str(folder)], truth_TD, signed=False)[1],
        )
        for seed, folder in enumerate(folders)
    ]


def mean_pw_mcc(found: Reproducibility, name: str) -> float:
    """Of an SAE's pairs with the others."""
    return float(np.mean([pair.pw_mcc for names, pair in found.pairs.items() if name in names]))


def both_matches(across_F: np.ndarray, true_F: np.ndarray) -> dict[str, Any]:
    """How the features' match across seeds tells their match with the truth.

    Returns: the rank correlation, and of each of BINS the share of the features and their mean match
    with the truth (None if there are none).
    """
    of_bins: dict[str, Any] = {}
    for name, (low, high) in BINS.items():
        inside_F = (across_F >= low) & (across_F < high)
        of_bins[name] = {
            "share": float(inside_F.mean()),
            "true_match": float(true_F[inside_F].mean()) if inside_F.any() else None,
        }
    ranks: Any = spearmanr(across_F, true_F)
    return {"correlation": float(ranks.statistic), "bins": of_bins}


def tables(content: dict[str, Any]) -> list[str]:
    rows, settings = content["rows"], content["settings"]
    of_model = {
        model: [row for row in rows if row["model"] == model]
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    names = [*METRICS, "pw_mcc", "correlation"]
    whole = {
        model: [each([row[name] for row in own]) for name in names]
        for model, own in of_model.items()
    }
    by_bin = {
        f"{model}, {name}": [
            each([row["bins"][name][what] for row in own]) for what in ("share", "true_match")
        ]
        for model, own in of_model.items()
        for name in BINS
    }
    return [
        f"{about_line(settings)}; {settings['setting']}.",
        "",
        *table("", whole, [*labels_of(METRICS), "PW-MCC", "correlation"]),
        "",
        *table("match across seeds", by_bin, ["share of features", "mean match with the truth"]),
    ]


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0; 2 or more")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the SAEs are")
    parser.add_argument(
        "--raw", type=Path, default=RESULTS / "match_to_truth.json", help="the raw results"
    )


STAGES = Stages(
    "ground_truth.match_to_truth",
    {"train": measure},
    {"match_to_truth": Page(tables)},
    options,
    raw_of=lambda arguments: arguments.raw,
)

if __name__ == "__main__":
    STAGES.run()
