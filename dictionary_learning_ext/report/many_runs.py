"""The results of many runs, grouped by their settings except the seeds, and what comes back between the seeds."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UserError
from ..evaluation.metrics import Metric, Number
from ..features.reproducibility import Numbers
from ..features.seeds import compare_seeds
from ..run_folder.files import FAILED, WEIGHTS
from ..run_folder.identity import PLACE, differences, key_of
from ..run_folder.reading import runs_in
from ..run_folder.sae_folder import SEEDS, SAEFolder, find_sae

logger = logging.getLogger(__name__)

RANKED_BY = "description_length"
SAME_BATCHES = (
    "* some of these seeds saw the same batches, and features may come back for that reason"
)


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    name: str
    settings: dict[str, Any]
    """The architecture and all other settings that decide what was trained, the seeds among them."""
    metrics: dict[str, Any]
    """The content of metrics.json; empty if it was not evaluated."""
    sae: SAEFolder


@dataclass(frozen=True)
class Group:
    """The runs of one setting, which differ in their seeds alone."""

    runs: list[RunResult]
    scores: "SeedScores | None" = None
    """What comes back between its SAEs; None if that was not measured."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the runs share."""
        return {n: value for n, value in self.runs[0].settings.items() if n not in SEEDS}

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.runs)

    def mean(self, key: str) -> float | None:
        """A metric's mean; None if it was not measured in all runs."""
        values: list[Any] = [run.metrics.get(key) for run in self.runs]
        return None if None in values else statistics.fmean(values)

    def spread(self, key: str) -> float | None:
        """A metric's standard deviation over the seeds; None for a single run."""
        if self.n == 1 or self.mean(key) is None:
            return None
        return statistics.stdev(run.metrics[key] for run in self.runs)

    def text(self, metric: Metric) -> str:
        """A metric as tables show it: its mean and, for several runs, its standard deviation."""
        mean, spread = metric.text(self.mean(metric.key)), self.spread(metric.key)
        digits = len(mean.partition(".")[2])
        return mean if spread is None else f"{mean} ± {spread:.{digits}f}"


def grouped(results: Sequence[RunResult]) -> list[Group]:
    """The runs, grouped by their settings except the seeds and sorted by the settings that differ. Of runs of one setting
    with the same seeds, the first counts, as a copy of a run is not another seed."""
    groups: dict[str, dict[tuple[Any, ...], RunResult]] = {}
    for run in results:
        seeds = groups.setdefault(key_of(run.settings, SEEDS), {})
        seeds.setdefault(tuple(map(run.settings.get, SEEDS)), run)
    names = differing(results)
    return sorted(
        (Group([*seeds.values()]) for seeds in groups.values()),
        key=lambda group: [_sort_key(group.settings.get(name)) for name in names],
    )


def _sort_key(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers first, in their order, then text."""
    is_number = isinstance(value, int | float)
    return (0, value, "") if is_number else (1, 0.0, str(value))


def differing(results: Sequence[RunResult]) -> list[str]:
    """The settings in which runs differ, sorted. An option that only one architecture has is left out."""
    return sorted(differences(*(run.settings for run in results)))


SAME_FVE = 0.002
"""Settings whose FVE is at most this far below the best of their k count as equally good reconstructions."""


def best_of_each_k(
    groups: list[Group], key: str = RANKED_BY, *, highest: bool = False
) -> list[Group]:
    """The setting with the lowest mean of a metric for each k, at each hook point, or the highest."""
    best = max if highest else min
    return [
        best(rivals, key=lambda group: group.mean(key) or 0.0)
        for rivals in _groups_by_k(groups, key)
    ]


def most_returning_of_each_k(groups: list[Group]) -> list[Group]:
    """For each k at each hook point, the setting of which the most features come back between its seeds.

    Only settings whose seeds were compared and whose mean FVE is within SAME_FVE of the best count. They are ranked by the
    FVE of what comes back, or by the share as a direction if the former isn't known of all.
    """
    best = []
    for rivals in _groups_by_k(groups, "fve"):
        least = max(group.mean("fve") or 0.0 for group in rivals) - SAME_FVE
        near = [
            (group, group.scores.values)
            for group in rivals
            if group.scores is not None and (group.mean("fve") or 0.0) >= least
        ]
        keys = ("in_function_fve", "as_direction")
        key = next((key for key in keys if all(v[key] is not None for _, v in near)), keys[1])
        if near:
            best.append(max(near, key=lambda rated: rated[1][key] or 0.0)[0])
    return best


def _groups_by_k(groups: list[Group], metric: str) -> list[list[Group]]:
    """The settings with this metric, in a list for each hook point and k."""
    places: dict[tuple[str, Any], list[Group]] = {}
    for group in groups:
        if group.mean(metric) is not None:
            at = " ".join(str(group.settings.get(name)) for name in PLACE)
            place = at, group.settings.get("k") or 0
            places.setdefault(place, []).append(group)
    return [places[place] for place in sorted(places)]


def read_all_in(folder: Path) -> tuple[list[RunResult], list[str]]:
    """The results of each trained SAE in a folder, by the run folder's path in it.

    Also returns a line for each run folder that is left out: its name, and whether it failed, isn't finished or is damaged.
    """
    results, left_out = [], []
    for run in runs_in(folder):
        name, has_failed = str(run.relative_to(folder)), (run / FAILED).is_file()
        if has_failed or not (run / WEIGHTS).is_file():
            left_out.append(f"{name} ({'failed' if has_failed else 'not finished'})")
            continue
        try:
            sae = find_sae(run)
            if sae.is_run:
                _ = sae.train_config  # raises if a setting is damaged
            results.append(RunResult(name, sae.trained_as, sae.metrics or {}, sae))
        except UserError as error:
            left_out.append(f"{name} ({error})")
    return results, left_out


def from_folder(folder: Path, state: str | None = None) -> list[RunResult]:
    """Every trained SAE in a folder. A warning names the folders that are left out.

    Arguments:
        state: a sentence about what is missing, for the error's message.

    Raises: ConfigError if there is no such folder, or no run in it is finished.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected one of a sweep, e.g. runs/NAME")
    results, left_out = read_all_in(folder)
    if left_out:
        logger.warning("left out: %s", ", ".join(left_out))
    if not results:
        raise ConfigError(
            f"{folder}: holds no finished run; "
            + (state or "expected a folder written by vsae sweep, e.g. runs/NAME")
        )
    return results


# --- what comes back between the seeds of a setting


@dataclass(frozen=True)
class SeedScores:
    """What comes back between the SAEs of one setting, on average over all pairs."""

    values: dict[str, float | None]
    """How much comes back, by the keys of COME_BACK."""
    share_batches: bool
    """Whether two of the SAEs have the same data seed."""
    random_tokens: Numbers | None = None
    """How much of random tokens comes back, by the keys of SHOWN; None if it isn't known."""

    def text(self, measure: Number) -> str:
        """A measure as tables show it, with a star if seeds saw the same batches."""
        value = self.values[measure.key]
        star = " *" if self.share_batches and value is not None else ""
        return measure.text(value) + star


def with_seed_scores(groups: Sequence[Group], *, encode: bool = False) -> list[Group]:
    """The settings, with what comes back between their seeds. `encode`: see `compare_seeds`."""
    saes = {run.sae.name: run.sae for group in groups for run in group.runs}
    scores: dict[str, SeedScores] = {}
    for names, returning in compare_seeds(saes, encode=encode):
        found = SeedScores(returning.numbers(), returning.share_batches, returning.random_tokens)
        scores |= dict.fromkeys(names, found)
    return [replace(group, scores=scores.get(group.runs[0].sae.name)) for group in groups]
