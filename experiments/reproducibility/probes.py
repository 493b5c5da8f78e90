"""sae_probes of the confirmation's SAEs: the one measure of the protocol that needs SAE Bench."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictionary_learning_ext.sae_bench.probes import SMALLEST
from experiments import raw_results
from experiments.raw_results import about
from experiments.reproducibility.decisions import Row, parts_of
from experiments.reproducibility.parts import RAW, arm_folder_name, read, seed_folder
from experiments.reproducibility.settings import BOTH, TOP_K

MEASURE = "sae_probes"
COMPARED = (TOP_K, BOTH)
BENCH_SEEDS = 3


def probe_setting(name: str, raw: Path = RAW) -> None:
    """Add the probes' accuracy to the rows of the setting's SAEs that lack it.

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
            row[MEASURE] = of_sae[_sae(row)]
    part = f"probes: {name}"
    content["parts"][part] = about(began, content["parts"].get(part))
    raw_results.write(raw, content)


def rows_without(content: dict[str, Any], name: str) -> list[Row]:
    """The rows of the setting's SAEs that lack the measure."""
    return [
        row
        for row in parts_of(content, "confirm", name)
        if "seed" in row and row["arm"] in COMPARED and MEASURE not in row
    ]


def _sae(row: Row) -> tuple[str, str, int]:
    """Which SAE a row is of."""
    return row["part"], row["arm"], row["seed"]


def accuracies(folders: Sequence[Path], sets: str = SMALLEST) -> list[float]:
    """The accuracy of each SAE's probes: its mean over 1, 2 and 5 features and over the bench's seeds."""
    from dictionary_learning_ext.sae_bench.results import values_of
    from dictionary_learning_ext.sae_bench.runner import bench

    outcome = bench(folders, evals=(MEASURE,), probing_sets=sets, bench_seeds=BENCH_SEEDS)
    outcome.check()
    # By label, in the order of the folders.
    return [
        statistics.mean(v for k in (1, 2, 5) for v in of_sae[f"sae-probes, top {k}"].values())
        for of_sae in values_of(outcome).values()
    ]
