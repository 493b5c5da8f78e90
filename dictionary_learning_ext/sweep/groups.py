"""The runs of a sweep, grouped by everything except their seeds, and the best for each k."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.run import NOT_THE_RESULT
from ..evaluation.metrics import Metric
from ..features.reproducibility_of_settings import SEED_METRICS, SeedMetric, SeedScores
from ..run_folder.matching import SEEDS, unequal

RunResult = dict[str, Any]
"""One finished run: its name "run", its "settings", its "metrics" and, if it is here, its "folder"."""

RANKED_BY = "description_length"
_NEVER_SHOWN = (*NOT_THE_RESULT, "device")


@dataclass(frozen=True)
class Group:
    """The runs of one setting, which differ in their seeds alone."""

    runs: list[RunResult]
    scores: SeedScores | None = None
    """How well its SAEs agree; None if that was not measured."""

    @property
    def folders(self) -> list[Path]:
        """The run folders of those that are here."""
        return [Path(run["folder"]) for run in self.runs if "folder" in run]

    @property
    def settings(self) -> dict[str, Any]:
        """What they share."""
        first = self.runs[0]["settings"]
        return {name: value for name, value in first.items() if name not in SEEDS}

    @property
    def n(self) -> int:
        """How many runs there are."""
        return len(self.runs)

    def mean(self, key: str) -> float | None:
        """A metric's mean; None if it was not measured in all runs."""
        values = [run["metrics"].get(key) for run in self.runs]
        return None if None in values else statistics.fmean(values)

    def spread(self, key: str) -> float | None:
        """A metric's standard deviation over the seeds; None of a single run."""
        if self.n == 1 or self.mean(key) is None:
            return None
        return statistics.stdev(run["metrics"][key] for run in self.runs)

    def text(self, metric: Metric) -> str:
        """A metric as tables show it: its mean and, of several runs, its standard deviation."""
        spread = self.spread(metric.key)
        mean = metric.text(self.mean(metric.key))
        return mean if spread is None else f"{mean} ± {spread:.{_digits(mean)}f}"


def _digits(number: str) -> int:
    return len(number.partition(".")[2])


def grouped(results: list[RunResult]) -> list[Group]:
    """The runs by their settings but for the seeds, sorted by the settings that are swept."""
    groups: dict[str, list[RunResult]] = {}
    for one in results:
        settings = {n: v for n, v in one["settings"].items() if n not in (*_NEVER_SHOWN, *SEEDS)}
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(one)
    names = swept(results)
    return sorted(
        map(Group, groups.values()),
        key=lambda group: [_place(group.settings.get(name)) for name in names],
    )


def _place(value: Any) -> tuple[int, float, str]:
    """Numbers first, in their order."""
    is_number = isinstance(value, int | float)
    return (0, value, "") if is_number else (1, 0.0, str(value))


def swept(results: list[RunResult]) -> list[str]:
    """The settings in which the runs differ. An option of only one architecture is none of them."""
    names = unequal([one["settings"] for one in results])
    return sorted(name for name in names if name not in _NEVER_SHOWN)


def best_of_each_k(groups: list[Group]) -> list[Group]:
    """The setting with the lowest mean description length for each k, at each hook point."""
    best: dict[Any, Group] = {}
    for group in groups:
        where, length = (group.settings.get("hook"), group.settings.get("k")), group.mean(RANKED_BY)
        if length is None:
            continue
        former = best[where].mean(RANKED_BY) if where in best else None
        if former is None or length < former:
            best[where] = group
    return [best[hook, k] for hook, k in sorted(best, key=lambda w: (str(w[0]), w[1] or 0))]


def seed_metrics(groups: list[Group]) -> list[SeedMetric]:
    """What tables show of how well seeds agree: nothing if it was measured of no group."""
    return list(SEED_METRICS) if any(group.scores for group in groups) else []


def share_batches(groups: list[Group]) -> bool:
    """Whether seeds of a group that was measured saw the same batches."""
    return any(group.scores is not None and group.scores.share_batches for group in groups)
