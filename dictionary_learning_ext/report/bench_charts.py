"""SAE Bench's results in a run folder, as the charts of a report."""

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.architectures import BenchEvaluation
from ..errors import CheckpointError
from ..run_folder.names import BENCH_RESULTS

logger = logging.getLogger(__name__)


_OTHERS = re.compile(r"(random_|frozen_decoder_|identity_|.*_top\d+_)")
"""What the names of the results of floors and size-matched controls begin with."""


@dataclass(frozen=True)
class BenchChart:
    """One chart: a value for each SAE at each place on the x axis."""

    title: str
    explanation: str
    x: list[str]
    values: dict[str, list[float | None]]
    """For each SAE's label, one value per x."""
    is_curve: bool
    """Whether the places are numbers, so that a line may join the values."""


@dataclass(frozen=True)
class _ChartMetrics:
    """Which of SAE Bench's metrics a chart shows: their names, or a pattern with a number in it."""

    evaluation: BenchEvaluation
    title: str
    explanation: str
    metrics: dict[str, str] | str


_CHARTS = (
    _ChartMetrics(
        "core",
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
        "scr",
        "Spurious correlation removal",
        "SCR by number of ablated features. Higher is better.",
        r"scr_metric_threshold_(\d+)",
    ),
    _ChartMetrics(
        "tpp",
        "Targeted probe perturbation",
        "TPP by number of ablated features. Higher is better.",
        r"tpp_threshold_(\d+)_total_metric",
    ),
    _ChartMetrics(
        "sparse_probing",
        "Sparse probing",
        "Accuracy of a probe on the n best features. Higher is better.",
        r"sae_top_(\d+)_test_accuracy",
    ),
    _ChartMetrics(
        "sae_probes",
        "Sparse probing, sae-probes",
        "Accuracy of a probe on the n best features, on sae-probes's data sets. Higher is better.",
        r"sae_top_(\d+)_test_accuracy",
    ),
    _ChartMetrics(
        "absorption",
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
    charts = []
    for wanted in _CHARTS:
        metrics = {label: _metrics(folder, wanted.evaluation) for label, folder in folders.items()}
        names = _names(wanted.metrics, {name for one in metrics.values() for name in one})
        values = {
            label: [found.get(name) for name in names]
            for label, found in metrics.items()
            if any(name in found for name in names)
        }
        if values:
            x = list(names.values())
            is_curve = isinstance(wanted.metrics, str) and len(x) > 1
            charts.append(BenchChart(wanted.title, wanted.explanation, x, values, is_curve))
    return charts


def _names(wanted: dict[str, str] | str, there: set[str]) -> dict[str, str]:
    """The metrics of a chart that are there, in order, with their labels on the x axis."""
    if isinstance(wanted, dict):
        return {name: shown for name, shown in wanted.items() if name in there}
    numbers = {int(match[1]): name for name in there if (match := re.fullmatch(wanted, name))}
    return {numbers[number]: str(number) for number in sorted(numbers)}


def _metrics(folder: Path, evaluation: BenchEvaluation) -> dict[str, float]:
    """Every metric of a folder's own SAE in an evaluation, by name, without its group."""
    found: dict[str, float] = {}
    for path in _own_results(folder, evaluation):
        try:
            groups: Any = json.loads(path.read_text(encoding="utf-8"))["eval_result_metrics"]
            numbers = [pair for group in groups.values() for pair in group.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not an SAE Bench result ({type(error).__name__}: {error}); delete it or "
                "run the evaluation again"
            ) from error
        found |= {
            name: value
            for name, value in numbers
            if isinstance(value, int | float) and not isinstance(value, bool)
            if value != -1 and math.isfinite(value)
        }
    return found


def _own_results(folder: Path, evaluation: BenchEvaluation) -> list[Path]:
    """The result of a folder's own SAE: beside it may be those of floors and size-matched controls."""
    there = sorted((folder / BENCH_RESULTS / evaluation).glob("*_eval_results.json"))
    parts = folder.resolve().parts  # a folder may be "."
    names = [f"{label}_custom_sae_eval_results.json" for label in (parts[-1], "_".join(parts[-2:]))]
    own = [path for name in names for path in there if path.name == name]
    if own or not there:
        return own[:1]
    if len(there) == 1 and not _OTHERS.match(there[0].name):  # of a folder that was renamed
        return there
    logger.warning(
        "%s: none of the %d results is named after the folder, so that none is shown; run `vsae bench` "
        "again",
        there[0].parent,
        len(there),
    )
    return []
