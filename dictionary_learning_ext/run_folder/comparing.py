"""Compare the settings with which SAEs were trained and measured. Imports no torch."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.hooks import RESID_POST, RESID_PRE, HookName, hook_name
from ..config.run import NONE, NOT_THE_RESULT, RunConfig
from ..config.sae import NOISES, SCHEDULES, dead_after
from ..errors import CheckpointError, UserError
from .files import EVALUATION, OF, at_home, evaluation, read_json
from .sae_folder import SEEDS, SAEFolder
from .schema import METRICS_JSON

LEAVING_OUT = ("remove_bos", "max_norm_multiple")
"""The settings that leave out tokens. A command can set them for all folders."""
STORED = "activations"
"""The setting that names a folder of stored activations."""
PLACE = ("hook", "target")
"""The settings that say where activations are read."""
MEASURED_ON = (
    "model",
    *PLACE,
    "data",
    "text_column",
    "text_packing",
    "ctx_len",
    "dtype",
    *LEAVING_OUT,
)
"""The settings that SAEs must share to be measured together."""
CONTEXTS = ("text_packing", "ctx_len", "dtype")
"""The settings that say how a text is cut into contexts, and in which precision the language model reads it."""
_COUNTS = ("tokens", "loss_tokens")
_NOT_THE_TRAINING = {
    *NOT_THE_RESULT,
    *("architecture", "text_passes", "save_steps", "eval_tokens", "eval_documents"),
}


def measured_on(settings: RunConfig) -> dict[str, Any]:
    """The settings that determine the held-out activations that an SAE is measured on.

    The folder of a cache is one of them, as a cache may hold other held-out tokens than the text. The target is that of a
    transcoder alone.
    """
    names = [n for n in (*MEASURED_ON, STORED) if n != "target" or settings.target is not None]
    own = {name: getattr(settings, name) for name in names}
    return own | {"max_norm_multiple": settings.sink_multiple}


def former_evaluation(results: Path) -> dict[str, Any]:
    """The metrics.json in a folder of results. Empty if there is none or it is damaged, as it will be written again."""
    try:
        return read_json(results / EVALUATION, METRICS_JSON)
    except (CheckpointError, FileNotFoundError):
        return {}


def evaluation_file(
    sae: SAEFolder,
    results: Path,
    run: RunConfig,
    tokens: int,
    metrics: dict[str, Any],
    former: Mapping[str, Any],
) -> Path:
    """The file for an evaluation: metrics.json, or another if its settings differ from the folder's.

    The folder's settings are those of its former evaluation, or else those of the run's own final one.

    Arguments:
        results: the folder for the SAE's results.
        run: the settings with which the SAE was measured.
        tokens: the number of tokens that were asked for.
        metrics: the evaluation, with the step if it is that of a checkpoint.
        former: the content of the metrics.json there; empty if there is none, or it is to be replaced.
    """
    if former:
        own = former.get("measured_on", {})
        moved = [
            n for n, of in former.get(OF, {}).items() if of and of == metrics.get(OF, {}).get(n)
        ]
        own = {name: value for name, value in own.items() if name not in moved}
        # A text may end early.
        same_tokens = former.get("tokens") in (None, tokens, metrics["tokens"])
    elif sae.is_run and results == sae.path:
        own = measured_on(sae.run)
        same_tokens = sae.run.eval_tokens in (0, tokens)
    else:
        own, same_tokens = {}, True
    other = {"step": metrics["step"]} if "step" in metrics else {}
    other |= {
        name: NONE if name == STORED and value is None else value
        for name, value in measured_on(run).items()
        if name in own and not same_setting(name, own[name], value)
    }
    return evaluation(results, other | ({} if same_tokens else {"tokens": metrics["tokens"]}))


def same_model(one: Any, other: Any) -> bool:
    """Whether two names may be of the same language model, whose folder may have moved."""
    return Path(str(one)).name == Path(str(other)).name


def same_setting(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting are equivalent."""
    if name == STORED and None not in (one, other):
        one, other = (os.path.abspath(at_home(str(value))) for value in (one, other))
    if name == "hook":  # a block's input is the output of the block before
        one, other = (_as_input(str(value)) for value in (one, other))
    return one == other or (name == "model" and same_model(one, other))


def _as_input(hook: str) -> str:
    named = hook_name(hook)
    if named is None or named.kind != RESID_POST:
        return hook
    return str(HookName(named.block + 1, RESID_PRE))


def require_one_setting(
    runs: dict[str, RunConfig], names: Sequence[str], error: type[UserError]
) -> None:
    """Raise an error, with advice, unless all runs have the same value of each setting."""
    (first_name, first), *others = runs.items()
    for name in names:
        for folder, run in others:
            one, other = getattr(first, name), getattr(run, name)
            if same_setting(name, one, other):
                continue
            advice = "evaluate folders with different settings separately"
            if name in LEAVING_OUT:
                advice = f"give {name}={one or other} to measure both the same way"
            raise error(setting_differs(name, first_name, one, folder, other), instead=advice)


def setting_differs(name: str, first: str, one: Any, folder: str, other: Any) -> str:
    """The message of an error about a setting in which two runs differ."""
    return f"{folder}: its run has {name}={other!r}, but {first} has {one!r}"


def measurements(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings and the numbers of tokens with which each metrics.json was measured. Of texts, or stored activations, with
    the same content one stands for all."""
    settings = {name: dict(metrics.get("measured_on", {})) for name, metrics in results.items()}
    one_of: dict[str, Any] = {}
    for name, own in settings.items():
        for what in (STORED, "data"):
            if (content := results[name].get(OF, {}).get(what)) is not None:
                own[what] = one_of.setdefault(content, own.get(what))
    names = sorted({name for each in settings.values() for name in each})
    return {
        folder: {name: settings[folder].get(name) for name in names}
        | {name: metrics[name] for name in _COUNTS if metrics.get(name) is not None}
        for folder, metrics in results.items()
    }


def unequal(all_settings: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that differ, in their order. SAEs that lack a setting are not compared in it, and a schedule that is
    the same share of runs of different lengths doesn't count."""
    differing = []
    for name in dict.fromkeys(name for settings in all_settings for name in settings):
        first, *others = (settings for settings in all_settings if name in settings)
        if not all(_same_in(name, first, other) for other in others):
            differing.append(name)
    return differing


def _same_in(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two SAEs have equivalent values of a setting, or may have the same share of the run, rounded down."""
    runs: list[Any] = [one.get("steps"), other.get("steps")]
    if name in SCHEDULES and None not in (one[name], other[name], *runs):
        return abs(one[name] * runs[1] - other[name] * runs[0]) < max(runs)
    return same_setting(name, one[name], other[name])


def trained_as(saes: Mapping[str, SAEFolder]) -> dict[str, dict[str, Any]]:
    """The architecture of each SAE, and the settings that decide what was trained, without those that follow from others. For
    upstream's folders they include the trainer's class. Of caches with the same content one stands for all.
    """
    trained: dict[str, dict[str, Any]] = {}
    one_of: dict[str, Any] = {}
    for name, sae in saes.items():
        settings = dict(sae.settings)
        if settings.keys() & {*NOISES}:  # one takes the place of another
            settings = dict.fromkeys(NOISES) | settings
        size, k = settings.get("dict_size"), settings.get("k")
        if size and k and settings.get("dead_feature_threshold") == dead_after(size, k):
            settings["dead_feature_threshold"] = None  # follows from the two
        if (digest := sae.config.get("buffer", {}).get("cache")) is not None:
            settings[STORED] = one_of.setdefault(digest, settings.get(STORED))
        deciding = {n: v for n, v in settings.items() if n not in _NOT_THE_TRAINING}
        trained[name] = {"architecture": sae.architecture} | deciding
    return trained


def grouped_by_setting(
    saes: Mapping[str, SAEFolder], trained: Mapping[str, dict[str, Any]]
) -> list[list[str]]:
    """Group SAEs by all settings that decide what was trained, except for the seeds: their names. Of other libraries' SAEs, the
    language model and the hook point count where their files name them.

    Arguments:
        trained: what `trained_as` gives of them.
    """
    groups: dict[str, list[str]] = {}
    for name, sae in saes.items():
        own, named = trained[name], sae.source
        place = {
            "model": Path(str(named.get("model"))).name,
            "hook": _as_input(str(named.get("hook"))),
        }
        groups.setdefault(but_for_seeds(own | place), []).append(name)
    return list(groups.values())


def but_for_seeds(settings: dict[str, Any]) -> str:
    """Settings without the seeds, as JSON, to group runs by."""
    shared = {name: value for name, value in settings.items() if name not in SEEDS}
    return json.dumps(shared, sort_keys=True, default=str)
