"""SAE Bench's results in a run folder, as the charts of a report."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..run_folder.names import BENCH_RESULTS


@dataclass(frozen=True)
class BenchChart:
    """One chart: a value per SAE and place on the x axis."""

    title: str
    explanation: str
    x: list[str]
    values: dict[str, list[float | None]]
    """By the SAE's label, one per x."""


@dataclass(frozen=True)
class _Figure:
    """Which of SAE Bench's metrics a chart shows: names, or one name's pattern with a number."""

    title: str
    explanation: str
    metrics: dict[str, str] | str


_FIGURES = (
    _Figure(
        "Core",
        "Share of the language model's loss kept, explained variance, cosine, living features: "
        "higher is better.",
        {
            "ce_loss_score": "CE loss score",
            "explained_variance_legacy": "explained variance",
            "cossim": "cosine",
            "frac_alive": "alive",
        },
    ),
    _Figure(
        "Spurious correlation removal",
        "SCR by the number of features ablated; higher is better.",
        r"scr_metric_threshold_(\d+)",
    ),
    _Figure(
        "Targeted probe perturbation",
        "TPP by the number of features ablated; higher is better.",
        r"tpp_threshold_(\d+)_total_metric",
    ),
    _Figure(
        "Sparse probing",
        "Accuracy of a probe on the n best features; higher is better.",
        r"sae_top_(\d+)_test_accuracy",
    ),
    _Figure(
        "Absorption",
        "Share of a feature's meaning that others absorb; lower is better.",
        {"mean_absorption_fraction_score": "mean absorption"},
    ),
)


def bench_charts(folders: dict[str, Path]) -> list[BenchChart]:
    """The charts of what is in the folders' eval_results/, none if nothing is.

    Arguments:
        folders: run folders by label.

    Raises: CheckpointError if a result is damaged.
    """
    metrics = {label: _metrics(folder) for label, folder in folders.items()}
    charts = []
    for figure in _FIGURES:
        names = _names(figure.metrics, {name for one in metrics.values() for name in one})
        values = {
            label: [found.get(name) for name in names]
            for label, found in metrics.items()
            if any(name in found for name in names)
        }
        if values:
            charts.append(
                BenchChart(figure.title, figure.explanation, list(names.values()), values)
            )
    return charts


def _names(wanted: dict[str, str] | str, there: set[str]) -> dict[str, str]:
    """The metrics of a figure that are there, in order, and how each is called on the x axis."""
    if isinstance(wanted, dict):
        return {name: shown for name, shown in wanted.items() if name in there}
    numbers = {int(match[1]): name for name in there if (match := re.fullmatch(wanted, name))}
    return {numbers[number]: str(number) for number in sorted(numbers)}


def _metrics(folder: Path) -> dict[str, float]:
    """Every number of a folder's eval_results/<eval>/*.json, without its group."""
    found: dict[str, float] = {}
    for path in sorted((folder / BENCH_RESULTS).glob("*/*_eval_results.json")):
        try:
            groups: Any = json.loads(path.read_text(encoding="utf-8"))["eval_result_metrics"]
            numbers = [pair for group in groups.values() for pair in group.items()]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not a result of SAE Bench ({type(error).__name__}: {error}); remove it "
                "or run the evaluation again"
            ) from error
        found |= {
            name: value
            for name, value in numbers
            if isinstance(value, int | float) and not isinstance(value, bool) and value != -1
        }
    return found
