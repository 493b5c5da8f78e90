"""One page for a folder of run folders: their metrics side by side, and links to their reports."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..evaluation.comparison import setting_text
from ..evaluation.metrics import shown_in
from ..run_folder.matching import measurements, training, unequal
from ..run_folder.names import FAILED, INDEX, REPORT, WEIGHTS
from ..run_folder.reading import read_config, read_metrics_if_any, run_folders_in
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

    Raises: CheckpointError if a file of a run folder is damaged.
    """
    folder = Path(folder)
    out = folder / INDEX if out is None else Path(out)
    inside = run_folders_in(folder)
    finished = [one for one in inside if (one / WEIGHTS).is_file()]
    configs = {one.name: read_config(one) for one in finished}
    results = {one.name: read_metrics_if_any(one) or {} for one in finished}
    trained, measured = training(configs), measurements({n: m for n, m in results.items() if m})
    settings = ["architecture", *unequal(list(trained.values()))]
    measured_as = unequal(list(measured.values()))
    columns = [name for name in measured_as if name not in settings]
    metrics = shown_in("report")
    rows = []
    for one in finished:
        used = configs[one.name].get("run", {}).get("settings", {}) | trained[one.name]
        used["architecture"] = used.get("architecture", configs[one.name]["trainer"]["dict_class"])
        values = {name: used.get(name) for name in settings}
        values |= {name: measured.get(one.name, {}).get(name) for name in columns}
        has_report = (one / REPORT).is_file()
        rows.append(
            _Row(
                name=one.name,
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
        unfinished=[
            f"{one.name} ({'failed' if (one / FAILED).is_file() else 'not finished'})"
            for one in inside
            if one not in finished
        ],
    )
    write_text(out, page)
    return out


def _link(page: Path, out: Path) -> str:
    """The address of a page as seen from another."""
    return quote(Path(os.path.relpath(page, out.parent)).as_posix())
