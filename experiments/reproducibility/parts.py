"""One part of the study: a pair of seeds at a setting, trained and measured. Its rows are kept at once.

A part that has its rows is not run again. To run it again, delete its rows and its SAEs' folders: an SAE
whose folder is finished is only measured again. sae_probes, which need SAE Bench, are added to the rows
later.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import RETURNING, reproducibility
from dictionary_learning_ext.sae_bench.probes import SMALLEST
from experiments import raw_results
from experiments.raw_results import RESULTS, about
from experiments.reproducibility.decisions import Row, parts_of
from experiments.reproducibility.settings import BOTH, RUNS, TOP_K, Options, Setting
from experiments.trained_saes import metrics_of, train_missing

RAW = RESULTS / "reproducibility.json"
METRICS = (
    "fve",
    "frac_recovered",
    "near_dead_0.1",
    "near_dead_0.5",
    "alive",
    "l0",
    "stability_rms",
)
"""Kept of every SAE."""
BINS = 20
"""Of the histogram of the features' matches, from 0 to 1."""
PROBES, PROBED, BENCH_SEEDS = "sae_probes", (TOP_K, BOTH), 3
"""The measure that needs SAE Bench, the arms that it is taken of, and over how many of its seeds."""


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
    returning = found.returning(str(one))
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


def probe_setting(name: str, raw: Path = RAW) -> None:
    """Add sae_probes, which needs SAE Bench, to the rows of the setting's SAEs that lack it.

    Raises: SystemExit if the SAEs of these rows aren't on this machine.
    """
    began = time.monotonic()
    rows = rows_without(read(raw), name)
    if not rows:
        return
    folders = [
        seed_folder("confirm", name, row["seed"]) / arm_folder_name(row["arm"]) for row in rows
    ]
    for folder in folders:
        if not folder.exists():
            raise SystemExit(
                f"{folder} isn't there: expected the SAEs whose rows are in {raw.name}; to train them "
                "again, delete these rows and run the stage confirm"
            )
    found = accuracies(folders)
    of_sae = {_sae(row): accuracy for row, accuracy in zip(rows, found, strict=True)}
    content = read(raw)  # again: another stage may have added rows
    for row in rows_without(content, name):
        if _sae(row) in of_sae:
            row[PROBES] = of_sae[_sae(row)]
    part = f"probes: {name}"
    content["parts"][part] = about(began, content["parts"].get(part))
    raw_results.write(raw, content)


def rows_without(content: dict[str, Any], name: str) -> list[Row]:
    """The rows of the setting's SAEs that lack the measure."""
    return [
        row
        for row in parts_of(content, "confirm", name)
        if "seed" in row and row["arm"] in PROBED and PROBES not in row
    ]


def _sae(row: Row) -> tuple[str, str, int]:
    """Which SAE a row is of."""
    return row["part"], row["arm"], row["seed"]


def accuracies(folders: Sequence[Path], sets: str = SMALLEST) -> list[float]:
    """The accuracy of each SAE's probes: its mean over 1, 2 and 5 features and over the bench's seeds."""
    from dictionary_learning_ext.sae_bench.results import values_of
    from dictionary_learning_ext.sae_bench.runner import bench

    outcome = bench(folders, evals=(PROBES,), probing_sets=sets, bench_seeds=BENCH_SEEDS)
    outcome.check()
    # By label, in the order of the folders.
    return [
        statistics.mean(v for k in (1, 2, 5) for v in of_sae[f"sae-probes, top {k}"].values())
        for of_sae in values_of(outcome).values()
    ]
