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
    """One chart: a value for each SAE at each place on the x axis."""

    title: str
    explanation: str
    x: list[str]
    values: dict[str, list[float | None]]
    """For each SAE's label, one value per x."""


@dataclass(frozen=True)
class _ChartMetrics:
    """Which of SAE Bench's metrics a chart shows: their names, or a pattern with a number in it."""

    title: str
    explanation: str
    metrics: dict[str, str] | str


_CHARTS = (
    _ChartMetrics(
        "Core",
        "Language model loss recovered, explained variance, cosine similarity and live features. "
        "Higher is better.",
        {
            "ce_loss_score": "CE loss score",
            "explained_variance_legacy": "explained variance",
            "cossim": "cosine",
            "frac_alive": "alive",
        },
    ),
    _ChartMetrics(
        "Spurious correlation removal",
        "SCR by number of ablated features. Higher is better.",
        r"scr_metric_threshold_(\d+)",
    ),
    _ChartMetrics(
        "Targeted probe perturbation",
        "TPP by number of ablated features. Higher is better.",
        r"tpp_threshold_(\d+)_total_metric",
    ),
    _ChartMetrics(
        "Sparse probing",
        "Accuracy of a probe on the n best features. Higher is better.",
        r"sae_top_(\d+)_test_accuracy",
    ),
    _ChartMetrics(
        "Absorption",
        "How much of a feature's role other features absorb. Lower is better.",
        {"mean_absorption_fraction_score": "mean absorption"},
    ),
)


def bench_charts(folders: dict[str, Path]) -> list[BenchChart]:
    """The charts for which the folders' eval_results/ hold metrics.

    Arguments:
        folders: run folders by label.

    Raises: CheckpointError if a result file is damaged.
    """
    metrics = {label: _metrics(folder) for label, folder in folders.items()}
    charts = []
    for wanted in _CHARTS:
        names = _names(wanted.metrics, {name for one in metrics.values() for name in one})
        values = {
            label: [found.get(name) for name in names]
            for label, found in metrics.items()
            if any(name in found for name in names)
        }
        if values:
            charts.append(
                BenchChart(wanted.title, wanted.explanation, list(names.values()), values)
            )
    return charts


def _names(wanted: dict[str, str] | str, there: set[str]) -> dict[str, str]:
    """The metrics of a chart that are there, in order, with their labels on the x axis."""
    if isinstance(wanted, dict):
        return {name: shown for name, shown in wanted.items() if name in there}
    numbers = {int(match[1]): name for name in there if (match := re.fullmatch(wanted, name))}
    return {numbers[number]: str(number) for number in sorted(numbers)}


def _metrics(folder: Path) -> dict[str, float]:
    """Every metric in a folder's eval_results/<eval>/*.json, by name, without its group."""
    found: dict[str, float] = {}
    for path in sorted((folder / BENCH_RESULTS).glob("*/*_eval_results.json")):
        try:
            groups: Any = json.loads(path.read_text(encoding="utf-8"))["eval_result_metrics"]
            numbers = [pair for group in groups.values() for pair in group.items()]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not an SAE Bench result ({type(error).__name__}: {error}); delete it or "
                "run the evaluation again"
            ) from error
        found |= {
            name: value
            for name, value in numbers
            if isinstance(value, int | float) and not isinstance(value, bool) and value != -1
        }
    return found
