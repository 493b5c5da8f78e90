"""Tables of SAEs: what commands print of their metrics, what SAEs are called, and text in columns."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..activations.positions import left_out
from ..config.checks import meant
from ..config.run import TrainConfig
from ..config.sae import DERIVED, MUCH_NOISE, SAEConfig
from ..errors import ConfigError
from ..run_folder.comparing import (
    LEAVING_OUT,
    measurements,
    only_posteriors_differ,
    training,
    unequal,
)
from .metrics import METRICS, NOT_MEASURED, Metric, shown_in

_REMEDIES = "See `When it goes wrong` in docs/settings.md."
_FEWEST_SELECTIONS = 10
"""How often the average feature must have been selected for `alive` to say anything."""
_LONG_NAME = 30  # characters
_GAP = "  "


# --- the metrics of SAEs, side by side


def printed(
    results: dict[str, dict[str, Any]],
    metrics: Sequence[Metric] | None = None,
    configs: dict[str, dict[str, Any]] | None = None,
) -> str:
    """What commands print of run folders' metrics: a table that fits the terminal, and its legend.

    Folders that were not measured as the first one are marked. A second table says in what folders
    were measured differently and, with `configs`, a third in what they were trained differently.

    Arguments:
        results, configs: the content of each folder's metrics.json and config.json.
    """
    metrics = usual_columns(results) if metrics is None else metrics
    width = shutil.get_terminal_size().columns
    names, measured = short_names(results), measurements(results)
    differing = unequal(list(measured.values()))
    for folder in measured:
        if unequal([measured[folder], next(iter(measured.values()))]):
            names[folder] += " *"
    for folder, config in (configs or {}).items():
        if "run" not in config:  # trainSAE calls all of them trainer_0, trainer_1, …
            names[folder] += f" ({config['trainer']['dict_class']})"
    parts = [table({names[folder]: values for folder, values in results.items()}, metrics, width)]
    if lines := notes(results, metrics):
        parts.append("\n".join(lines))
    if differing:
        parts.append("* Not a matched comparison: measured differently from the first row.")
        parts.append(_settings_table(names, measured, differing, width))
    trained, shown = training(configs or {}), differing
    differing = unequal(list(trained.values()))
    if any(
        name not in shown or trained[folder].get(name) != measured.get(folder, {}).get(name)
        for name in differing
        for folder in trained
    ):
        is_matched = only_posteriors_differ(list(trained.values()))
        parts.append(
            "All were trained on the same batches from the same initial weights. Their posteriors differ:"
            if is_matched
            else "These training settings also differ:"
        )
        parts.append(_settings_table(names, trained, differing, width))
    return "\n\n".join([*parts, legend(metrics, width)])


def _settings_table(
    names: dict[str, str], settings: dict[str, dict[str, Any]], shown: list[str], width: int
) -> str:
    rows = [
        [names[folder], *(setting_text(each.get(name)) for name in shown)]
        for folder, each in settings.items()
    ]
    return text_table(["", *shown], rows, width)


def table(
    results: dict[str, dict[str, Any]],
    metrics: Sequence[Metric] | None = None,
    width: int | None = None,
) -> str:
    """The metrics of SAEs as aligned text, a row each; a single SAE is not named.

    `width`: see `text_table`.
    """
    metrics = usual_columns(results) if metrics is None else metrics
    rows = [
        [name, *(metric.text(values.get(metric.key)) for metric in metrics)]
        for name, values in results.items()
    ]
    labels = [metric.label for metric in metrics]
    if len(rows) == 1:
        return text_table(labels, [rows[0][1:]], width, repeated=0)
    return text_table(["", *labels], rows, width)


def notes(results: dict[str, dict[str, Any]], metrics: Sequence[Metric]) -> list[str]:
    """What the table can't show: positions that CE left alone, and why metrics are missing."""
    said_of: dict[str, list[str]] = {}
    names = short_names(results)
    for folder, values in results.items():
        settings = values.get("measured_on", {})
        what = left_out(**{name: settings[name] for name in LEAVING_OUT if name in settings})
        alone, positions = (values.get(n) for n in ("positions_left_alone", "loss_positions"))
        if alone and positions:
            line = (
                f"CE: {alone:,} of {positions:,} positions left alone: "
                f"{what or 'training leaves them out'}"
            )
            said_of.setdefault(line, []).append(names[folder])
        for metric in metrics:
            if reason := values.get(NOT_MEASURED, {}).get(metric.key):
                line = f"{metric.label}: not measured: {reason}"
                said_of.setdefault(line, []).append(names[folder])
    return [
        line if len(some) == len(results) else f"{', '.join(some)}: {line}"
        for line, some in said_of.items()
    ]


def legend(metrics: Sequence[Metric], width: int) -> str:
    """What each metric means, and in which direction it is better."""
    lines = []
    for metric in metrics:
        better = f" ({metric.better} is better)" if metric.better else ""
        text = f"{metric.label}{better}: {metric.in_words or metric.definition}"
        lines += textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def usual_columns(results: dict[str, dict[str, Any]]) -> list[Metric]:
    """The metrics that a table of these SAEs shows by default."""
    return [
        metric
        for metric in shown_in("compare")
        if not metric.is_of_truth
        or any(values.get(metric.key) is not None for values in results.values())
    ]


def chosen(columns: str) -> list[Metric]:
    """The metrics of `--columns`, keys separated by commas. Raises ConfigError for an unknown key."""
    keys = [key.strip() for key in columns.split(",")]
    for key in keys:
        if key not in METRICS:
            raise ConfigError(
                f"no metric {key!r}",
                name="columns",
                value=columns,
                expected=f"one or more of {','.join(METRICS)}{meant(key, METRICS)}",
            )
    return [METRICS[key] for key in dict.fromkeys(keys)]


def symptoms(metrics: Mapping[str, Any], sae: SAEConfig) -> list[str]:
    """What is wrong with a trained SAE, a sentence each; empty for a good one.

    Arguments:
        metrics: its metrics.json. What was not measured is no symptom.
    """
    noise = metrics.get("noise_to_signal") if sae.to_flat()["noise_anneal_steps"] is None else None
    names = ("fve", "kl_per_token", "alive", "frac_recovered")
    fve, kl, alive, recovered = (metrics.get(name) for name in names)
    selections = (metrics.get("tokens") or 0) * (metrics.get("l0") or 0)
    if selections < _FEWEST_SELECTIONS * sae.dict_size:
        alive = None
    is_poor = fve is not None and fve < 0.5
    found = {
        f"The noise stays to the end and drowns the activations: noise_to_signal is above {MUCH_NOISE}.": (
            noise is not None and noise > MUCH_NOISE
        ),
        "The reconstruction explains less than half of the variance: FVE is below 0.5.": is_poor,
        "The KL has collapsed: the features say next to nothing about a token.": (
            is_poor and kl is not None and kl < 0.01
        ),
        "The language model loses more than half of what its activations give: CE recovered is below 0.5.": (
            recovered is not None and recovered < 0.5
        ),
        "More than a quarter of the features were never selected in the held-out tokens.": (
            alive is not None and alive < 0.75
        ),
    }
    return [f"{sentence} {_REMEDIES}" for sentence, is_there in found.items() if is_there]


# --- what SAEs are called: as short as tells them apart


def short_names(folders: Iterable[str]) -> dict[str, str]:
    """Each folder's shortest ending that tells it from the others.

    Of long names of equally many parts, e.g. those of a sweep's runs, only the parts that differ:
    …beta0.1…seed0.
    """
    parts = {folder: Path(folder).parts for folder in folders}
    for n in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {folder: str(Path(*path[-n:])) for folder, path in parts.items()}
        if len(set(names.values())) == len(parts):
            by_parts: dict[int, dict[str, str]] = {}
            for folder, name in names.items():
                by_parts.setdefault(name.count("_"), {})[folder] = name
            shortened = dict(names)
            for alike in by_parts.values():
                if max(map(len, alike.values())) > _LONG_NAME:
                    shortened |= _differing_parts(alike)
            return shortened if len(set(shortened.values())) == len(names) else names
    return {folder: folder for folder in parts}


def by_settings(configs: dict[str, TrainConfig]) -> dict[str, str]:
    """What to call SAEs whose names are long, e.g. those of a sweep: the settings that differ, as
    k=8 beta=0. Short names are kept."""
    given = {
        name: {n: v for n, v in config.to_dict().items() if v is not None}
        for name, config in configs.items()
    }
    names = [name for name in unequal(list(given.values())) if name not in DERIVED]
    if any("noise_to_signal" in each for each in given.values()):
        names = [name for name in names if name != "sigma"]  # follows from it
    called = {
        name: " ".join(f"{n}={setting_text(each[n])}" for n in names if n in each)
        for name, each in given.items()
    }
    are_long = max(map(len, configs), default=0) > _LONG_NAME
    is_clear = len(set(called.values())) == len(called) > 1
    return called if are_long and is_clear else {name: name for name in configs}


def _differing_parts(names: dict[str, str]) -> dict[str, str]:
    """Names of equally many parts between "_", without the parts that all of them have."""
    parts = [name.split("_") for name in names.values()]
    if len(parts) == 1:
        return names
    is_shared = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    shortened = [
        "_".join("…" if s else p for p, s in zip(one, is_shared, strict=True)) for one in parts
    ]
    return {
        folder: re.sub(r"_?…(_…)*_?", "…", name)
        for folder, name in zip(names, shortened, strict=True)
    }


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
        repeated: how many of the first columns each block has, if they take half of it at most.
    """
    grid = [list(row) for row in (header, *rows)]  # a cell's lines end in "\n"
    if width is not None and _total(_widths(grid)) > width:
        for row in grid[1:]:
            row[0] = _broken(row[0], max(12, width // 3))
        grid[0][1:] = [_wrapped(*column) for column in list(zip(*grid, strict=True))[1:]]
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
    """Of each column, its longest line."""
    columns = zip(*grid, strict=True)
    return [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _wrapped(head: str, *cells: str) -> str:
    """A head in lines that are no wider than its column, where its words allow it."""
    width = max(map(len, [*head.split(), *cells, " "]))
    return "\n".join(textwrap.wrap(head, width, break_long_words=False, break_on_hyphens=False))


def _broken(name: str, width: int) -> str:
    """A long name in lines, broken after "_", "/" and spaces."""
    lines = [""]
    for part in re.findall(r"[^_/ ]*[_/ ]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append(_GAP)
        lines[-1] += part
    return "\n".join(lines)


def _aligned(grid: list[list[str]], widths: list[int]) -> str:
    """The lines of a table. Heads of fewer lines than others stand at the bottom."""
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
