"""One part of the study: a pair of seeds at a setting, trained and measured. Its rows are kept at once.

A part that has its rows is not run again. To run it again, delete its rows and its SAEs' folders: an SAE
whose folder is finished is only measured again.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import RETURNING, reproducibility
from experiments import raw_results
from experiments.raw_results import RESULTS, about
from experiments.reproducibility.settings import RUNS, Options, Setting
from experiments.trained_saes import metrics_of, train_missing

RAW = RESULTS / "reproducibility.json"
METRICS = (
    "fve",
    "frac_recovered",
    "loss_original",
    "loss_reconstructed",
    "near_dead_0.1",
    "near_dead_0.5",
    "alive",
    "l0",
    "stability_rms",
)
"""Kept of every SAE."""
BINS = 20
"""The histogram of the features' matches has so many, from 0 to 1."""


def read(raw: Path = RAW) -> dict[str, Any]:
    return raw_results.read_or(raw, {"parts": {}, "saes": [], "pairs": []})


def part_name(stage: str, name: str, seeds: tuple[int, int]) -> str:
    return f"{stage}: {name}: {seeds[0]}, {seeds[1]}"


def run_part(
    stage: str,
    name: str,
    setting: Setting,
    arms: Mapping[str, Options],
    seeds: tuple[int, int],
    raw: Path = RAW,
    pair_measures: Callable[[Path, Path], dict[str, Any]] | None = None,
) -> None:
    """Train the arms that have no rows yet from both seeds, each on its own data order, and add the rows.

    Arguments:
        pair_measures: more of what is measured of two seeds' SAEs.
    """
    part = part_name(stage, name, seeds)
    has_rows = {row["arm"] for row in read(raw)["pairs"] if row["part"] == part}
    missing = {arm: options for arm, options in arms.items() if arm not in has_rows}
    if not missing:
        return
    began, saes, folders = time.monotonic(), [], {}
    for seed in seeds:
        place = seed_folder(stage, name, seed)
        configs = {
            arm_folder_name(arm): setting.sae(options, seed) for arm, options in missing.items()
        }
        found = train_missing(setting.run(place, seed), place, configs)
        for arm in missing:
            folders[arm, seed] = found[arm_folder_name(arm)]
            row = {"part": part, "arm": arm, "seed": seed}
            metrics = metrics_of(folders[arm, seed], METRICS)
            saes.append(row | {n: v for n, v in metrics.items() if v is not None})
    pairs = []
    for arm in missing:
        two = folders[arm, seeds[0]], folders[arm, seeds[1]]
        more = {} if pair_measures is None else pair_measures(*two)
        pairs.append({"part": part, "arm": arm} | pair_of(*two) | more)
    content = read(raw)
    content["saes"] += saes
    content["pairs"] += pairs
    content["parts"][part] = about(began, content["parts"].get(part))
    raw_results.write(raw, content)


def seed_folder(stage: str, name: str, seed: int) -> Path:
    """Where the run folders of a seed's SAEs are."""
    return RUNS / stage / name.replace(", ", "_").replace(" ", "").replace("/", "") / str(seed)


def arm_folder_name(arm: str) -> str:
    """An arm as its run folder's name."""
    return arm.replace(", ", "_").replace(" ", "-").replace("%", "")


def pair_of(one: Path, other: Path) -> dict[str, Any]:
    """How the SAEs of two seeds agree."""
    directions = {
        str(folder): decoder_directions(load_dictionary(folder)[0]) for folder in (one, other)
    }
    found = reproducibility(directions)
    (pair,) = found.pairs.values()
    returning = found.as_direction(str(one))
    counts, _ = np.histogram(pair.match_F.clip(0, 1), bins=BINS, range=(0, 1))
    return {
        "pw_mcc": pair.pw_mcc,
        "null": pair.null,
        "null_error": pair.null_error,
        "null_draws": pair.null_draws,
        "less_null": pair.pw_mcc - pair.null,
        "agreement": pair.agreement,
        "within": float(np.mean(list(found.within.values()))),
        **{f"returning_{least:g}": returning[least] for least in RETURNING},
        "matches": counts.tolist(),
    }
