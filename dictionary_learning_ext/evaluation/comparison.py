"""Run folders side by side: the table of their metrics, its legend, and what is not matched."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..activations.positions import left_out
from ..config.checks import meant
from ..config.sae import MUCH_NOISE, SAEConfig
from ..errors import ConfigError
from ..run_folder.matching import (
    LEAVING_OUT,
    measurements,
    only_posteriors_differ,
    training,
    unequal,
)
from .metric import Metric
from .metrics import METRICS, NOT_MEASURED, shown_in
from .sae_names import short_names
from .tables import setting_text, text_table

MATCHED = "All were trained on the same batches from the same initial weights."
_REMEDIES = "See `When it goes wrong` in docs/settings.md."
_FEWEST_SELECTIONS = 10
"""How often the average feature must have been selected for `alive` to say anything."""


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


def usual_columns(results: dict[str, dict[str, Any]]) -> list[Metric]:
    """The metrics that a table of these SAEs shows by default."""
    return [
        metric
        for metric in shown_in("compare")
        if not metric.is_of_truth
        or any(values.get(metric.key) is not None for values in results.values())
    ]


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
        if values.get("positions_left_alone"):
            line = (
                f"CE: {values['positions_left_alone']:,} of {values['loss_positions']:,} positions "
                f"left alone: {what or 'training leaves them out'}"
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
            f"{MATCHED} Their posteriors differ:"
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
