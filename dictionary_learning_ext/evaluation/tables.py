"""Tables of SAEs' metrics as commands print them, short names of SAEs, and text in columns."""

import logging
import os
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..activations.positions import left_out
from ..config.checks import require_choice
from ..config.names import is_automatic
from ..errors import in_shell, printable
from ..run_folder.comparing import measurements
from ..run_folder.files import NOT_MEASURED
from ..run_folder.identity import LEAVING_OUT, STORED, differences
from ..run_folder.sae_folder import SEEDS, SAEFolder
from .metrics import METRICS, Metric, changes_since, shown_in

logger = logging.getLogger(__name__)

LONGEST_NAME = 40
"""The most characters of a folder's name that tables show."""
_GAP = "  "


# --- the metrics of SAEs, side by side


def results_table(
    results: Mapping[str, dict[str, Any]],
    saes: Mapping[str, SAEFolder],
    metrics: Sequence[Metric] | None = None,
    further: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The metrics of SAEs as commands print them: a table that fits the terminal.

    SAEs that were measured differently from the first one are marked, and metrics that are stale. Further tables show the
    settings in which the measurements and the trainings differ.

    Arguments:
        results: the content of each one's metrics.json.
        further: more columns, by their heads: the cells of the folders that have one.
    """
    metrics = shown_in("compare") if metrics is None else metrics
    width = shutil.get_terminal_size().columns
    trained = {folder: sae.trained_as for folder, sae in saes.items()}
    measured = measurements(results)
    names = labels_of(trained)
    differing = differences(*measured.values())
    reasons, first = stale_metrics(results, saes), next(iter(measured.values()))
    marked = {
        folder: name
        + " *" * bool(differences(first, measured[folder]))
        + " !" * (folder in reasons)
        for folder, name in names.items()
    }
    parts = [table(results, metrics, width, further, marked)]
    tokens = {values.get("tokens") for values in results.values()}
    if len(tokens) == 1 and (n := tokens.pop()) is not None:
        parts.append(f"On {n:,} held-out tokens.")
    if lines := [f"! {line}" for line in stale_lines(reasons, names)]:
        parts.append("\n".join(lines))
    if lines := notes(results, names, metrics):
        parts.append("\n".join(lines))
    if differing:
        parts.append("* Not a matched comparison: measured differently from the first row.")
        parts.append(_settings_table(marked, measured, differing, width))
    different = [
        name
        for name in differing_settings(trained)
        if any(
            _as_label(name, settings.get(name)) not in names[folder]
            and (
                name not in differing or str(settings.get(name)) != str(measured[folder].get(name))
            )
            for folder, settings in trained.items()
        )
    ]
    if different:
        parts.append("These training settings also differ:")
        parts.append(_settings_table(names, trained, different, width))
    return printable("\n\n".join(parts))


def _settings_table(
    names: dict[str, str], settings: dict[str, dict[str, Any]], shown: list[str], width: int
) -> str:
    rows = [
        [names[folder], *(setting_text(values.get(name)) for name in shown)]
        for folder, values in settings.items()
    ]
    return text_table(["", *shown], rows, width)


def table(
    results: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[Metric] | str | None = None,
    width: int | None = None,
    further: Mapping[str, Mapping[str, str]] | None = None,
    names: Mapping[str, str] | None = None,
) -> str:
    """The metrics of SAEs as aligned text, with a row for each. A single SAE is not named.

    Arguments:
        results: each SAE's metrics.json, by its name.
        metrics: the columns, or their keys separated by commas, e.g. "fve,l0". Default: those that
            `vsae compare` shows.
        width: see `text_table`.
        further: see `results_table`. A column without a cell is left out.
        names: the SAEs' names in the table. Default: those in `results`.
    """
    if isinstance(metrics, str):
        metrics = chosen(metrics)
    metrics = shown_in("compare") if metrics is None else metrics
    further = {head: cells for head, cells in (further or {}).items() if cells}
    head = [*further, *(metric.label for metric in metrics)]
    rows = []
    for sae, values in results.items():
        cells = [column.get(sae, "-") for column in further.values()]
        cells += [metric.text(values.get(metric.key)) for metric in metrics]
        rows.append([names[sae] if names else sae, *cells])
    if len(rows) == 1:
        return text_table(head, [rows[0][1:]], width, repeated=0)
    return text_table(["", *head], rows, width)


def notes(
    results: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], metrics: Sequence[Metric]
) -> list[str]:
    """Lines below the table: the positions that CE left alone, and why metrics are missing."""
    said_of: dict[str, list[str]] = {}
    for folder, values in results.items():
        lines, settings = [], values.get("measured_on", {})
        what = left_out(**{name: settings[name] for name in LEAVING_OUT if name in settings})
        alone, positions = (values.get(n) for n in ("positions_left_alone", "loss_positions"))
        if alone and positions:
            why = what or "training leaves them out"
            lines.append(f"CE: {alone:,} of {positions:,} positions left alone: {why}")
        reasons = values.get(NOT_MEASURED, {})
        shown = [metric for metric in metrics if metric.key in reasons]
        lines += [f"{metric.label}: not measured: {reasons[metric.key]}" for metric in shown]
        for line in lines:
            said_of.setdefault(line, []).append(names[folder])
    return [
        line if len(some) == len(results) else f"{', '.join(some)}: {line}"
        for line, some in said_of.items()
    ]


_OTHER = {
    "weights": "other weights",
    "data": "another text",
    STORED: "other activations",
    "model": "another language model",
    "definitions": "other definitions of the metrics",
}
"""What a change of each part of an `identity` is called."""


def stale_metrics(
    results: Mapping[str, Mapping[str, Any]], saes: Mapping[str, SAEFolder]
) -> dict[str, str]:
    """Why the metrics.json of SAEs may not be what an evaluation would give now, by folder: what has changed, or that it doesn't
    say."""
    changes = {name: changes_since(saes[name], metrics) for name, metrics in results.items()}
    return {
        folder: "by an earlier version, so it isn't known on what"
        if names is None
        else f"with {' and '.join(_OTHER[name] for name in names)}"
        for folder, names in changes.items()
        if names != []
    }


def stale_lines(reasons: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Sentences for `stale_metrics`."""
    folders: dict[str, list[str]] = {}
    for folder, reason in reasons.items():
        folders.setdefault(reason, []).append(folder)
    return [
        f"Measured {reason}: {', '.join(names[one] for one in of)}. `vsae eval {in_shell(*of)}` measures again."
        for reason, of in folders.items()
    ]


def metrics_as_now(sae: SAEFolder) -> dict[str, Any] | None:
    """An SAE's metrics.json; None if there is none, or with a warning if it is of something else than what is there now."""
    if sae.metrics is None or not changes_since(sae, sae.metrics):
        return sae.metrics
    reasons = stale_metrics({sae.name: sae.metrics}, {sae.name: sae})
    (line,) = stale_lines(reasons, {sae.name: sae.name})
    logger.warning("metrics are left out. %s", line)
    return None


def metrics_in(results: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """The metrics that at least one of these SAEs has."""
    return [
        metric
        for metric in METRICS.values()
        if any(values.get(metric.key) is not None for values in results.values())
    ]


def chosen(columns: str) -> list[Metric]:
    """The metrics of `--columns`, keys separated by commas. Raises ConfigError for an unknown key."""
    keys = [key.strip() for key in columns.split(",")]
    for key in keys:
        require_choice("columns", key, METRICS)
    return [METRICS[key] for key in dict.fromkeys(keys)]


# --- names of SAEs, as short as possible


def labels_of(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Short names of SAEs.

    A name that somebody chose is kept. SAEs with automatic names, or names of over 40 characters, are named by the
    settings in which they differ: k=16 seed=1.

    Arguments:
        settings: each one's training settings, by its folder or name, see `SAEFolder.trained_as`.
    """
    called, endings = _names_from_settings(settings), endings_of(settings)
    for folder, ending in endings.items():
        name = Path(ending).name
        if not is_automatic(name) and len(name) <= LONGEST_NAME:
            called[folder] = ending
    times = Counter(called.values())
    return {f: name if name and times[name] == 1 else endings[f] for f, name in called.items()}


def titles(saes: Mapping[str, SAEFolder]) -> dict[str, str]:
    """The name of each setting in tables and prose: its title, and what tells it from others of that title.

    Arguments:
        saes: an SAE of each setting.
    """
    plain = {name: sae.title for name, sae in saes.items()}
    found = {}
    for folder, title in plain.items():
        alike = [other for other in plain if plain[other] == title]
        but_seeds = {
            f: {n: v for n, v in saes[f].trained_as.items() if n not in SEEDS} for f in alike
        }
        found[folder] = f"{title} {_names_from_settings(but_seeds)[folder]}".strip()
    times, endings = Counter(found.values()), endings_of(saes)
    return {f: name if times[name] == 1 else f"{name} {endings[f]}" for f, name in found.items()}


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """Each label as part of a file's name, all different: x/y and x_y become x_y and x_y_2."""
    names: dict[str, str] = {}
    for label in labels:
        name = plain = re.sub(r"[^\w.-]", "_", label)
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}_{number}"
        names[label] = name
    return names


def endings_of(folders: Iterable[str]) -> dict[str, str]:
    """For each folder, the shortest ending of its path that no other has."""
    parts = {folder: Path(os.path.abspath(folder)).parts for folder in folders}
    for n in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {folder: str(Path(*path[-n:])) for folder, path in parts.items()}
        if len(set(names.values())) == len(parts):
            return names
    return {folder: folder for folder in parts}


def _names_from_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names made of settings that differ, as few as tell SAEs apart: first those that all SAEs have, the seeds last."""
    names = sorted(
        differing_settings(settings),
        key=lambda name: (name in SEEDS, any(own.get(name) is None for own in settings.values())),
    )

    def told_apart(by: Sequence[str]) -> int:
        return len({_label(trained, by) for trained in settings.values()})

    chosen: list[str] = []
    for name in names:
        if told_apart([*chosen, name]) > told_apart(chosen):
            chosen.append(name)
    return {folder: _label(values, chosen) for folder, values in settings.items()}


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings in which SAEs differ. data_seed is left out if it is different for each seed.

    Arguments:
        settings: each one's training settings, see `SAEFolder.trained_as`.
    """
    names = differences(*settings.values(), ignoring=("trainer_class",))
    seeds = {(trained.get("seed"), trained.get("data_seed")) for trained in settings.values()}
    follows = "seed" in names and len(seeds) == len({seed for seed, _ in seeds})
    return [name for name in names if not (follows and name == "data_seed")]


def _label(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return " ".join(filter(None, (_as_label(name, settings.get(name)) for name in names)))


def _as_label(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "architecture":
        return value
    text = setting_text(value).removesuffix(".hook_resid_post").rstrip("/").rpartition("/")[2]
    return text if name == "hook" else f"{name}={text}"


# --- text in columns


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    repeated: int = 1,
) -> str:
    """Aligned columns: the first to the left, the others to the right, with a line under the head.

    Arguments:
        width: of the terminal. A wider table gets heads of several lines. If that is not enough, its
            columns are divided into blocks one below the other.
        repeated: how many of the first columns to repeat in each block, as long as they take at most half of it.
    """
    grid = [list(map(printable, row)) for row in (header, *rows)]  # a head's lines end in "\n"
    columns, limit = list(zip(*grid, strict=True))[1:], max(map(len, grid[0]))
    while width is not None and limit > 0 and _total(_widths(grid)) > width:
        limit -= 1
        grid[0][1:] = [_wrapped(limit, *column) for column in columns]
    widths = _widths(grid)
    while width is not None and repeated > 1 and _total(widths[:repeated]) > width // 2:
        repeated -= 1
    first = list(range(repeated))
    blocks = [first]
    for column in range(repeated, len(header)):
        block = [*blocks[-1], column]
        is_too_wide = width is not None and _total([widths[i] for i in block]) > width
        if is_too_wide and len(blocks[-1]) > repeated:
            blocks.append([*first, column])
        else:
            blocks[-1] = block
    return "\n\n".join(
        _aligned([[row[i] for i in block] for row in grid], [widths[i] for i in block])
        for block in blocks
    )


def _widths(grid: list[list[str]]) -> list[int]:
    """The width of each column's longest line."""
    columns = zip(*grid, strict=True)
    return [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _wrapped(limit: int, head: str, *cells: str) -> str:
    """A head in lines that are no wider than `limit` or its column, as far as its words allow."""
    width = max(limit, *map(len, [*head.split(), *cells]))
    return "\n".join(textwrap.wrap(head, width, break_long_words=False, break_on_hyphens=False))


def _aligned(grid: list[list[str]], widths: list[int]) -> str:
    """The lines of a table. Heads with fewer lines are aligned at the bottom."""
    depth = max(head.count("\n") for head in grid[0])
    heads = ["\n" * (depth - head.count("\n")) + head for head in grid[0]]
    lines = []
    for row in [heads, *grid[1:]]:
        for first, *others in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append(_GAP.join([first.ljust(widths[0]), *right]).rstrip())
    head, body = lines[: depth + 1], lines[depth + 1 :]
    return "\n".join([*head, "-" * max(map(len, head)), *body])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Bars in cells are escaped."""
    lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def setting_text(value: Any) -> str:
    """A setting, as tables show it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
