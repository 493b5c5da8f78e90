"""One page for a folder of run folders: their metrics side by side, and links to their reports."""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import UserError
from ..evaluation.metrics import shown_in
from ..evaluation.sae_names import short_names
from ..evaluation.tables import setting_text
from ..features.reproducibility_of_settings import SAME_BATCHES, SEED_METRICS, of_seeds
from ..run_folder.matching import SEEDS, measurements, training, unequal
from ..run_folder.names import CONFIG, FAILED, INDEX, REPORT, WEIGHTS
from ..run_folder.reading import (
    checked_settings,
    read_config,
    read_metrics_if_any,
    run_folders_in,
)
from ..run_folder.writing import write_text
from .rendering import rendered


@dataclass(frozen=True)
class _Row:
    """One SAE."""

    name: str
    link: str | None
    """Its report; None if there is none."""
    metrics: list[str]
    settings: list[str]


@dataclass(frozen=True)
class _Setting:
    """The SAEs of one setting, which differ in their seeds alone."""

    name: str
    n: int
    cells: list[str]
    share_batches: bool


def write_index(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
) -> Path:
    """Write the page about the run folders in a folder; return its path.

    Arguments:
        folder: holds run folders.
        out: the page (default: `folder`/index.html).
        on_step: called with the name of each step that takes long before it starts.

    A folder that is damaged or not finished is left out of the table, and named below it.
    """
    folder = Path(folder)
    out = folder / INDEX if out is None else Path(out)
    inside = run_folders_in(folder)
    configs, results, left_out = {}, {}, []
    for one in inside:
        if not (one / WEIGHTS).is_file():
            left_out.append(f"{one.name} ({_why_not_finished(one)})")
            continue
        try:
            config, metrics = read_config(one), read_metrics_if_any(one) or {}
            if "run" in config:
                checked_settings(config, one / CONFIG)
        except UserError as error:
            left_out.append(f"{one.name} ({error})")
        else:
            configs[one.name], results[one.name] = config, metrics
    finished = [one for one in inside if one.name in configs]
    names = short_names(configs)
    trained, measured = training(configs), measurements({n: m for n, m in results.items() if m})
    architectures = {name: _architecture(config) for name, config in configs.items()}
    settings = unequal(list(trained.values()))
    if len(set(architectures.values())) > 1:
        settings.insert(0, "architecture")
    measured_as = unequal(list(measured.values()))
    columns = [name for name in measured_as if name not in settings]
    metrics = shown_in("report")
    rows = []
    for one in finished:
        used = configs[one.name].get("run", {}).get("settings", {}) | trained[one.name]
        used["architecture"] = architectures[one.name]
        values = {name: used.get(name) for name in settings}
        values |= {name: measured.get(one.name, {}).get(name) for name in columns}
        has_report = (one / REPORT).is_file()
        rows.append(
            _Row(
                name=names[one.name],
                link=_link(one / REPORT, out) if has_report else None,
                metrics=[metric.text(results[one.name].get(metric.key)) for metric in metrics],
                settings=[setting_text(value) for value in values.values()],
            )
        )
    together = folder / REPORT
    ours = [one.name for one in finished if "run" in configs[one.name]]
    of_one = {one: {**trained[one], "architecture": architectures[one]} for one in ours}
    seeds = _with_seeds(folder, of_one, settings, on_step)
    page = rendered(
        INDEX,
        title=folder.resolve().name,
        rows=rows,
        metrics=metrics,
        settings=[*settings, *columns],
        measured_as=measured_as,
        seeds=seeds,
        seed_metrics=SEED_METRICS,
        same_batches=SAME_BATCHES if any(one.share_batches for one in seeds) else None,
        missing=[
            shlex.join(["vsae", "report", str(one)])
            for one in finished
            if not (one / REPORT).is_file()
        ],
        together=_link(together, out) if together.is_file() else None,
        left_out=left_out,
    )
    write_text(out, page)
    return out


def _with_seeds(
    folder: Path,
    trained: dict[str, dict[str, Any]],
    differing: list[str],
    on_step: Callable[[str], None],
) -> list[_Setting]:
    """How well the seeds of each setting agree that has several.

    Arguments:
        trained: the settings of each run folder in `folder`.
        differing: the settings in which these differ.
    """
    groups: dict[str, list[str]] = {}
    for name, settings in trained.items():
        shared = {n: value for n, value in settings.items() if n not in SEEDS}
        groups.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(name)
    found = []
    for names in groups.values():
        if len(names) < 2:
            continue
        first = trained[names[0]]
        shown = [f"{n}={setting_text(first.get(n))}" for n in differing if n not in SEEDS]
        setting = ", ".join(shown) or "all"
        on_step(f"matching the features of {len(names)} seeds ({setting})")
        scores = of_seeds([folder / name for name in names])
        if scores is not None:
            cells = [metric.text(scores) for metric in SEED_METRICS]
            found.append(_Setting(setting, scores.n, cells, scores.share_batches))
    return found


def _why_not_finished(folder: Path) -> str:
    return "failed" if (folder / FAILED).is_file() else "not finished"


def _architecture(config: dict[str, Any]) -> str:
    """Its name, or that of its class in upstream's folders."""
    settings = config.get("run", {}).get("settings", {})
    return settings.get("architecture", config["trainer"]["dict_class"])


def _link(page: Path, out: Path) -> str:
    """The address of a page as seen from another."""
    return quote(Path(os.path.relpath(page, out.parent)).as_posix())
