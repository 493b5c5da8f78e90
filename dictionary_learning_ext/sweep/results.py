"""The results of a sweep: reading them, and tables as text and CSV."""

import csv
import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, first_line
from ..evaluation.metrics import METRICS, Metric, shown_in
from ..evaluation.tables import setting_text, text_table
from ..features.reproducibility_of_settings import SAME_BATCHES, of_seeds
from ..run_folder.matching import SEEDS, settings_of
from ..run_folder.names import SWEEP_PAGE, SWEEP_SETTINGS, SWEEP_TABLE
from ..run_folder.reading import read_config, read_metrics_if_any, run_folders_in
from ..run_folder.writing import write_text
from . import manifest
from .groups import (
    RANKED_BY,
    Group,
    RunResult,
    best_of_each_k,
    grouped,
    seed_metrics,
    share_batches,
    swept,
)
from .results_page import page

logger = logging.getLogger(__name__)


def from_folder(folder: Path) -> list[RunResult]:
    """The settings and metrics of every finished run in a folder.

    Settings that were left to the trainer are those that it chose. A run that was not evaluated, as
    its settings say, has no metrics. Where no sweep.json says what is missing, a warning does.

    Raises: ConfigError if no run is finished.
    """
    results, unfinished = [], []
    for one in run_folders_in(folder):
        if not manifest.is_done(one):
            unfinished.append(one.name)
            continue
        settings, metrics = settings_of(read_config(one)), read_metrics_if_any(one) or {}
        results.append(
            {"run": one.name, "settings": settings, "metrics": metrics, "folder": str(one)}
        )
    if not results:
        state = manifest.progress(folder)
        raise ConfigError(
            f"{folder}: holds no finished run; "
            + (state or "expected a folder written by vsae sweep, e.g. runs/NAME")
        )
    if unfinished and manifest.read(folder) is None:
        logger.warning("left out, as they have no results yet: %s", ", ".join(unfinished))
    return results


def from_wandb(sweep: str) -> tuple[list[RunResult], str | None]:
    """The same from wandb's server, and what is missing. Raises ConfigError if it can't be read."""
    import wandb

    try:
        runs = list(wandb.Api().sweep(sweep).runs)
        results = [
            {
                "run": run.name,
                "settings": dict(run.config),
                "metrics": {
                    name.removeprefix("eval/"): value
                    for name, value in dict(run.summary).items()
                    if name.startswith("eval/")
                },
            }
            for run in runs
            if run.state == "finished"
        ]
    except Exception as error:  # of many kinds: login, network, no such sweep
        raise ConfigError(
            f"--of-wandb {sweep}: can't be read ({first_line(error)}); expected "
            "ENTITY/PROJECT/SWEEP; if you are not logged in, run `wandb login`"
        ) from error
    if not results:
        raise ConfigError(f"--of-wandb {sweep}: none of its {len(runs)} runs has finished")
    missing = f"{len(results)} of {len(runs)} runs are finished"
    return results, missing if len(results) < len(runs) else None


def show(
    results: list[RunResult], folder: Path, missing: str | None = None, width: int | None = None
) -> str:
    """Write the results into `folder` as CSV files and a page; return the table and the best as text.

    If they can't be written, as in a read-only folder, a warning says so.

    Arguments:
        missing: what of the sweep is missing, if anything.
        width: of the terminal.
    """
    names, metrics = swept(results), shown_in("sweep")
    groups = [replace(one, scores=of_seeds(one.folders)) for one in grouped(results)]
    best, settings = best_of_each_k(groups), [name for name in names if name not in SEEDS]
    files = {
        folder / SWEEP_TABLE: _csv(*_runs_table(results, names, metrics)),
        folder / SWEEP_SETTINGS: _csv(*_settings_table(groups, settings, metrics)),
        folder / SWEEP_PAGE: page(folder.name, results, groups, best, metrics, missing),
    }
    has_seeds = any(group.n > 1 for group in groups)
    of_seed = seed_metrics(groups)
    first = [*settings, *(["n"] if has_seeds else [])]
    head = [*first, *(metric.label for metric in (*metrics, *of_seed))]
    rows = [
        [
            *(setting_text(group.settings.get(name)) for name in settings),
            *([str(group.n)] if has_seeds else []),
            *map(group.text, metrics),
            *(metric.text(group.scores) for metric in of_seed),
        ]
        for group in groups
    ]
    lines = [
        text_table(head, rows, width, max(1, len(first))),
        *([SAME_BATCHES + "."] if share_batches(groups) else []),
        "",
        *([f"{missing}."] if missing else []),
    ]
    lines += _winners(best, settings, len(results), has_seeds)
    try:
        for path, text in files.items():
            write_text(path, text)
    except CheckpointError as error:
        logger.warning("the results are shown and not written: %s", error)
        return "\n".join(lines)
    return "\n".join([*lines, "", f"Wrote {', '.join(map(str, files))}."])


def _winners(best: list[Group], settings: list[str], n_runs: int, has_seeds: bool) -> list[str]:
    label = METRICS[RANKED_BY].label
    if not best:
        return [f"{label} was not measured, so the runs are not ranked."]
    each = ["hook", "k"] if "hook" in settings else ["k"]
    which = "for each " + " and ".join(each)
    if not has_seeds:
        lines = [f"Lowest {label} {which}, out of {n_runs} runs, one seed each (n = 1):"]
        names = [*each, *(name for name in settings if name not in each)]
        return lines + [f"  {_shown(one, names)}\n    {one.runs[0]['run']}" for one in best]
    lines = [
        f"Lowest mean {label} {which}, out of {n_runs} runs "
        "(mean ± standard deviation over n seeds):"
    ]
    for one in best:
        others = _shown(one, [name for name in settings if name not in each]) or "all seeds"
        length = one.text(METRICS[RANKED_BY])
        lines.append(f"  {_shown(one, each)}: {others}: {length} (n = {one.n})")
    return lines


def _shown(group: Group, names: list[str]) -> str:
    return ", ".join(f"{name}={setting_text(group.settings.get(name))}" for name in names)


def _runs_table(
    results: list[RunResult], names: list[str], metrics: list[Metric]
) -> tuple[list[str], list[list[Any]]]:
    """A row for each run, with the unrounded metrics."""
    keys = [metric.key for metric in metrics]
    rows = [
        [one["run"], *(one["settings"].get(n) for n in names), *map(one["metrics"].get, keys)]
        for one in results
    ]
    return ["run", *names, *keys], rows


def _settings_table(
    groups: list[Group], names: list[str], metrics: list[Metric]
) -> tuple[list[str], list[list[Any]]]:
    """A row for each setting: the mean and standard deviation of every metric over the seeds, and how
    well the SAEs agree."""
    keys, of_seed = [metric.key for metric in metrics], [one.key for one in seed_metrics(groups)]
    rows = [
        [
            *(group.settings.get(name) for name in names),
            group.n,
            *(value for key in keys for value in (group.mean(key), group.spread(key))),
            *(group.scores.values[key] if group.scores else None for key in of_seed),
        ]
        for group in groups
    ]
    columns = [f"{key}_{what}" for key in keys for what in ("mean", "sd")]
    return [*names, "n", *columns, *of_seed], rows


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()
