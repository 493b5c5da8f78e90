"""Which evaluations and trainings of SAEs can be compared. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.run import NONE
from ..errors import CheckpointError
from .files import EVALUATION, OF, evaluation, read_json
from .identity import STORED, differences, key_of, measured_on, parts_of
from .sae_folder import SEEDS, SAEFolder
from .schema import METRICS_JSON

_COUNTS = ("tokens", "loss_tokens")


def former_evaluation(results: Path) -> dict[str, Any]:
    """The metrics.json in a folder of results. Empty if there is none or it is damaged, as it will be written again."""
    try:
        return read_json(results / EVALUATION, METRICS_JSON)
    except (CheckpointError, FileNotFoundError):
        return {}


def evaluation_file(
    sae: SAEFolder,
    results: Path,
    tokens: int,
    metrics: Mapping[str, Any],
    former: Mapping[str, Any],
) -> Path:
    """The file for an evaluation: metrics.json, or another if its settings differ from the folder's.

    The folder's settings are those of its former evaluation, or else those of the run's own final one.

    Arguments:
        results: the folder for the SAE's results.
        tokens: the number of tokens that were asked for.
        metrics: the evaluation, with the step if it is that of a checkpoint.
        former: the content of the metrics.json there; empty if there is none, or it is to be replaced.
    """
    own, same_tokens = {}, True
    if former:
        own = _measured(former)
        # A text may end early.
        same_tokens = former.get("tokens") in (None, tokens, metrics["tokens"])
    elif sae.is_run and results == sae.path:
        own, same_tokens = measured_on(sae.run), sae.run.eval_tokens in (0, tokens)
    now = metrics["measured_on"]
    other = {name: metrics[name] for name in ("step",) if name in metrics}
    for name in differences(own, _measured(metrics)):
        other[name] = NONE if name == STORED and now[name] is None else now[name]
    return evaluation(results, other | ({} if same_tokens else {"tokens": metrics["tokens"]}))


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a metrics.json was measured on."""
    settings, content = metrics.get("measured_on", {}), metrics.get(OF, {})
    return parts_of(settings, {n: one for n, one in content.items() if n in settings})


def measurements(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each metrics.json was measured on, and the numbers of tokens."""
    return {
        folder: {"target": None}
        | _measured(metrics)
        | {name: metrics[name] for name in _COUNTS if metrics.get(name) is not None}
        for folder, metrics in results.items()
    }


def grouped_by_setting(saes: Mapping[str, SAEFolder]) -> list[list[str]]:
    """Group SAEs by all settings that decide what was trained, except for the seeds: their names. Of other libraries' SAEs, the
    language model and the hook point count where their files name them."""
    groups: dict[str, list[str]] = {}
    for name, sae in saes.items():
        place = {part: sae.source.get(part) for part in ("model", "hook")}
        groups.setdefault(key_of(sae.trained_as | place, SEEDS), []).append(name)
    return list(groups.values())
