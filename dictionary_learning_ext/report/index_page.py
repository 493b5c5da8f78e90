"""One page for a folder of run folders: their metrics side by side, and links to their reports."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import UserError
from ..evaluation.comparison import setting_text, short_names
from ..evaluation.metrics import shown_in
from ..run_folder.matching import measurements, training, unequal
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


def write_index(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page about the run folders in a folder; return its path.

    Arguments:
        folder: holds run folders.
        out: the page (default: `folder`/index.html).

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
    page = rendered(
        INDEX,
        title=folder.resolve().name,
        rows=rows,
        metrics=metrics,
        settings=[*settings, *columns],
        measured_as=measured_as,
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


def _why_not_finished(folder: Path) -> str:
    return "failed" if (folder / FAILED).is_file() else "not finished"


def _architecture(config: dict[str, Any]) -> str:
    """Its name, or that of its class in upstream's folders."""
    settings = config.get("run", {}).get("settings", {})
    return settings.get("architecture", config["trainer"]["dict_class"])


def _link(page: Path, out: Path) -> str:
    """The address of a page as seen from another."""
    return quote(Path(os.path.relpath(page, out.parent)).as_posix())
