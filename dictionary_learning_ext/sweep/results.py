"""The results of a sweep: reading them, the best run for each k, and tables as text and CSV."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

from ..errors import ConfigError, first_line
from ..evaluation.metrics import shown_in
from ..evaluation.tables import text_table
from ..run_folder.names import CONFIG, SWEEP_PAGE, SWEEP_TABLE
from ..run_folder.reading import read_config, read_metrics_if_any
from ..run_folder.writing import write_text
from .results_page import RunResult, page

logger = logging.getLogger(__name__)

RANKED_BY = "description_length"
_NEVER_SHOWN = ("save_dir", "overwrite", "wandb", "wandb_project", "wandb_artifacts", "device")


def from_folder(folder: Path) -> list[RunResult]:
    """The settings and metrics of every finished run in a folder. A warning lists the others.

    Raises: ConfigError if no run is finished.
    """
    results, unfinished = [], []
    for one in sorted(path.parent for path in folder.glob(f"*/{CONFIG}")):
        metrics = read_metrics_if_any(one)
        if metrics is None:
            unfinished.append(one.name)
            continue
        settings = read_config(one)["run"]["settings"]
        results.append({"run": one.name, "settings": settings, "metrics": metrics})
    if unfinished:
        logger.warning("left out, as they have no results yet: %s", ", ".join(unfinished))
    if not results:
        raise ConfigError(
            f"{folder}: holds no finished run; expected a folder written by vsae sweep, e.g. "
            "runs/NAME"
        )
    return results


def from_wandb(sweep: str) -> list[RunResult]:
    """The same from wandb's server. Raises ConfigError if it can't be read."""
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
    return results


def swept(results: list[RunResult]) -> list[str]:
    """The settings in which the runs differ."""
    names = {name for one in results for name in one["settings"]} - set(_NEVER_SHOWN)
    return sorted(n for n in names if len({repr(one["settings"].get(n)) for one in results}) > 1)


def best_of_each_k(results: list[RunResult]) -> list[RunResult]:
    """The run with the lowest description length for each k."""
    best: dict[Any, RunResult] = {}
    for one in results:
        k = one["settings"].get("k")
        length = one["metrics"].get(RANKED_BY)
        if length is not None and (k not in best or length < best[k]["metrics"][RANKED_BY]):
            best[k] = one
    return sorted(best.values(), key=lambda one: one["settings"].get("k") or 0)


def show(results: list[RunResult], folder: Path) -> str:
    """Write results.csv and results.html into `folder`; return the table and the best as text."""
    names, best, metrics = swept(results), best_of_each_k(results), shown_in("sweep")
    keys = [metric.key for metric in metrics]
    header = ["run", *names, *keys]
    cells = [
        [one["run"], *(one["settings"].get(n) for n in names), *map(one["metrics"].get, keys)]
        for one in results
    ]
    text = io.StringIO()
    csv.writer(text).writerows([header, *cells])
    write_text(folder / SWEEP_TABLE, text.getvalue())
    write_text(folder / SWEEP_PAGE, page(folder.name, results, names, best, metrics))
    rows = [
        [
            *(_shown(one["settings"].get(name)) for name in names),
            *(metric.text(one["metrics"].get(metric.key)) for metric in metrics),
        ]
        for one in results
    ]
    lines = [text_table([*names, *(metric.label for metric in metrics)], rows)]
    lines += ["", f"Lowest description length for each k, out of {len(results)} runs:"]
    lines += [f"  k={one['settings'].get('k')}: {one['run']}" for one in best]
    lines += ["", f"Wrote {folder / SWEEP_TABLE} and {folder / SWEEP_PAGE}."]
    return "\n".join(lines)


def _shown(setting: Any) -> str:
    return f"{setting:.4g}" if isinstance(setting, float) else str(setting)
