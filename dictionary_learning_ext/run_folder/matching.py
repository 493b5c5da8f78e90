"""What SAEs were trained and measured on, and the settings that differ. Imports no torch."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..config.run import NOT_THE_RESULT, RunConfig, TrainConfig
from ..config.sae import DERIVED, OPTION_NAMES, AuxKOptions, SAEConfig, Variational
from ..errors import CheckpointError, ConfigError, Setting, Text, UserError, listed
from .files import CONFIG, METRICS, evaluation
from .reading import read_config, read_metrics_if_any, settings_in

logger = logging.getLogger(__name__)

SEEDS = ("seed", "data_seed")
"""The settings in which runs of one setting differ."""
LEAVING_OUT = ("remove_bos", "max_norm_multiple")
"""The settings that leave out tokens. A command can give them to all folders."""
STORED = "activations"
"""The setting that names a folder of stored activations."""
NONE = "none"
"""The value of STORED that stands for none: activations of the language model."""
MEASURED_ON = (
    "model",
    "hook",
    "data",
    "text_packing",
    "ctx_len",
    "dtype",
    *LEAVING_OUT,
)
"""The settings that SAEs must share to be measured together."""
_COUNTS = ("tokens", "loss_tokens")
_NOT_THE_TRAINING = {
    *NOT_THE_RESULT,
    *("architecture", "device", "text_passes", "save_steps", "eval_tokens", "eval_documents"),
}
_OF_THE_POSTERIOR = {each.name for each in fields(Variational)} - {
    each.name for cls in (SAEConfig, AuxKOptions) for each in fields(cls)
}
"""The settings that variational SAEs add: how they are compared, unless the rest differs too."""
_OF_THE_START = ("data", "steps", "batch_size", "dict_size", "k", "seed")
"""Keys needed before two runs can be said to share batches and initial weights."""
_OF_THE_BUFFER = {
    "ctx_len": "ctx_len",
    "text": "data",
    "packing": "text_packing",
    "remove_bos": "remove_bos",
    "max_norm_multiple": "max_norm_multiple",
}
"""A buffer's names of settings, and a run's. Upstream's buffers only write ctx_len."""


# --- one folder


def run_of(
    folder: Path,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = "cpu",
    step: int | None = None,
    *,
    activations: str | None = None,
    max_norm_multiple: float | None = None,
    remove_bos: bool | None = None,
) -> RunConfig:
    """A folder's run, with the settings that are given here in place of its own.

    A folder that upstream's `trainSAE` wrote has no run. If its submodule_name is a hook point's, that
    is the hook, and the model is that of its metrics.json, or lm_name. Otherwise both must be given. The
    text is its buffer's, or that of its metrics.json.

    Arguments:
        activations: a folder of stored activations, or NONE for those of the language model.

    Raises: ConfigError, CheckpointError if the SAE was trained on something else than what is given.
    """
    config, path = read_config(folder, step), folder / CONFIG
    changes: dict[str, Any] = {"model": model, "hook": hook, "data": data}
    if "run" in config:
        run = TrainConfig().updated(settings_in(config, path), str(path)).run
    else:
        changes |= _named_by(folder, config, changes)
        run = _run_of_upstreams(folder, config, **changes)
        model, hook = changes["model"], changes["hook"]
    was_model, was_hook = (config["trainer"].get(name) for name in ("lm_name", "submodule_name"))
    if model is not None and was_model is not None and not same_model(model, was_model):
        # It may be the same under another name. Its width is checked once it is loaded.
        logger.warning("%s: trained on the model %s, now used with %s", folder, was_model, model)
    if hook is not None and not str(was_hook).startswith("blocks."):
        _require_layer(folder, config, hook)  # upstream's names are free, e.g. resid_post_layer_3
        if "run" not in config:
            logger.warning(
                "%s: %s doesn't say which module it was trained on (submodule_name=%r); trusting "
                "--hook %s",
                folder,
                CONFIG,
                was_hook,
                hook,
            )
    elif hook not in (None, was_hook):
        raise CheckpointError(
            f"{folder}: trained on hook {was_hook}, not on {hook}; leave out the hook point or give "
            "another folder"
        )
    changes |= {
        "device": device,
        "activations": activations,
        "max_norm_multiple": max_norm_multiple,
        "remove_bos": remove_bos,
    }
    run = replace(run, **{name: value for name, value in changes.items() if value is not None})
    return replace(run, activations=None) if run.activations == NONE else run


def _named_by(folder: Path, config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The model, hook and text that the files of a folder of upstream's name and `given` doesn't."""
    trainer, measured = config["trainer"], _former_evaluation(folder).get("measured_on", {})
    hook, named = trainer.get("submodule_name"), {}
    if not re.fullmatch(r"blocks\.\d+\.hook_\w+", str(hook)):
        return named
    names_text = config.get("buffer", {}).get("text") is not None  # what it was trained on
    measured = {n: measured.get(n) for n in (("model",) if names_text else ("model", "data"))}
    own = {METRICS: measured, CONFIG: {"model": trainer.get("lm_name"), "hook": hook}}
    for source, values in own.items():
        known = given | named
        taken = {n: v for n, v in values.items() if known[n] is None and v is not None}
        if taken:
            flags = " ".join(f"--{name} {value}" for name, value in taken.items())
            logger.info("%s: using %s, from its %s", folder, flags, source)
        named |= taken
    return named


def _run_of_upstreams(
    folder: Path, config: dict[str, Any], model: str | None, hook: str | None, data: str | None
) -> RunConfig:
    """The run of a folder of upstream's, as far as its "buffer" tells.

    Upstream's own buffers, which don't write their packing, read a truncated document per context.
    """
    if model is None or hook is None:
        trainer = config["trainer"]
        unknown = {
            "model": f"no certain language model (lm_name={trainer.get('lm_name')!r})",
            "hook": f"no hook point (submodule_name={trainer.get('submodule_name')!r})",
        }
        missing = [name for name, value in (("model", model), ("hook", hook)) if value is None]
        raise ConfigError(
            f"{folder}: its {CONFIG} has no settings of a run (upstream's trainSAE writes none), and "
            f"{' and '.join(unknown[name] for name in missing)}",
            instead=("give ", *listed(map(Setting, missing), " and ")),
        )
    buffer = config.get("buffer", {})
    found = {"text_packing": "truncate"} | {
        name: buffer[theirs]
        for theirs, name in _OF_THE_BUFFER.items()
        if buffer.get(theirs) is not None
    }
    if "data" not in found and data is None:
        logger.warning(
            "%s: %s doesn't say which text it was trained on; measuring on --data %s",
            folder,
            CONFIG,
            RunConfig.data,
        )
    return TrainConfig().updated(found | {"model": model, "hook": hook}, str(folder / CONFIG)).run


def _require_layer(folder: Path, config: dict[str, Any], hook: str) -> None:
    """Raise a CheckpointError unless a folder of upstream's was trained where `hook` is."""
    layer, io = config["trainer"].get("layer"), config.get("buffer", {}).get("io")
    match = re.match(r"blocks\.(\d+)\.hook_(\w+)", hook)
    if match is None or type(layer) is not int:
        return  # `find_hook` names the hook points there are
    # Between two blocks: the input of one is the output of the one before.
    before = {"resid_pre": int(match[1]), "resid_post": int(match[1]) + 1}.get(match[2])
    trained_before = {"in": layer, "out": layer + 1}.get(str(io))
    if before is None or trained_before is None:
        fits = int(match[1]) == layer
    else:
        fits = before == trained_before
    if not fits:
        side = {"in": "the input of ", "out": "the output of "}.get(str(io), "")
        kind = "hook_resid_pre" if io == "in" else "hook_resid_post"
        raise CheckpointError(
            f"{folder}: trained on {side}layer {layer}, not on {hook}",
            instead=("use ", Setting("hook", f"blocks.{layer}.{kind}")),
        )


def measured_on(run: RunConfig) -> dict[str, Any]:
    """The settings that determine the held-out activations that an SAE is measured on.

    A cache holds other tokens than the language model is given, so its folder is one of them.
    """
    return {name: getattr(run, name) for name in (*MEASURED_ON, STORED)}


def evaluation_file(
    folder: Path, config: dict[str, Any], run: RunConfig, tokens: int, metrics: dict[str, Any]
) -> Path:
    """Where an evaluation is written: metrics.json, or beside it if its settings are others.

    The folder's own settings are those in metrics.json, or else those that its training would have
    ended with.

    Arguments:
        run: what was measured on.
        tokens: how many were asked for.
        metrics: what was measured. It names the step of a checkpoint.
    """
    settings = config.get("run", {}).get("settings", {})
    if former := _former_evaluation(folder):
        own = former.get("measured_on", {}) | {"tokens": former.get("tokens")}
        # Tokens are rounded up to whole batches.
        same_tokens = own["tokens"] in (None, tokens, metrics["tokens"])
    else:
        own = settings | {"tokens": settings.get("eval_tokens")}
        same_tokens = own["tokens"] in (None, 0, tokens)
    other = {"step": metrics["step"]} if "step" in metrics else {}
    other |= {
        name: NONE if name == STORED and value is None else value
        for name, value in measured_on(run).items()
        if name in own and not same_setting(name, own[name], value)
    }
    return evaluation(folder, other | ({} if same_tokens else {"tokens": metrics["tokens"]}))


def _former_evaluation(folder: Path) -> dict[str, Any]:
    """A folder's metrics.json. Empty if there is none, or a damaged one, which is written again."""
    try:
        former = read_metrics_if_any(folder)
    except CheckpointError:
        return {}
    return former if isinstance(former, dict) else {}


# --- several folders


def same_model(one: Any, other: Any) -> bool:
    """Whether two names may be those of one language model, whose folder may have moved."""
    return Path(str(one)).name == Path(str(other)).name


def same_setting(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same."""
    if name == STORED and None not in (one, other):
        one, other = (os.path.abspath(Path(str(value)).expanduser()) for value in (one, other))
    return one == other or (name == "model" and same_model(one, other))


def require_one_setting(
    runs: dict[str, RunConfig], names: Sequence[str], error: type[UserError]
) -> None:
    """Raise an error, which says which flag helps, unless runs have one value of each setting."""
    (first_name, first), *others = runs.items()
    for name in names:
        for folder, run in others:
            one, other = getattr(first, name), getattr(run, name)
            if same_setting(name, one, other):
                continue
            advice: Text = "evaluate folders with different settings separately"
            if name in LEAVING_OUT:
                given = Setting(name, True if isinstance(one, bool) else one or other)
                advice = ("give ", given, " to measure both the same way")
            raise error(
                (
                    f"{folder}: its run has ",
                    Setting(name, other),
                    f", but {first_name} has {one!r}",
                ),
                instead=advice,
            )


def measurements(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each of several metrics.json was measured on: its settings, and how many tokens."""
    settings = {name: metrics.get("measured_on", {}) for name, metrics in results.items()}
    names = sorted({name for each in settings.values() for name in each})
    return {
        folder: {name: settings[folder].get(name) for name in names}
        | {name: metrics[name] for name in _COUNTS if metrics.get(name) is not None}
        for folder, metrics in results.items()
    }


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json that its SAE uses, with what was left to the trainer filled in.

    Folders of upstream's `trainSAE` hold what their trainer says of itself, its class included.
    """
    names = [*OPTION_NAMES, *(each.name for each in fields(RunConfig))]
    trainer = {name: value for name, value in config["trainer"].items() if name in names}
    settings = config.get("run", {}).get("settings")
    if settings is None:
        named = {n: v for n, v in config["trainer"].items() if n == "trainer_class"}
        return named | trainer
    which = {name: settings.get(name) for name in ("architecture", "posterior")}
    sae = SAEConfig().changed_to(**which)
    unused = {*OPTION_NAMES} - vars(sae).keys() | {*sae.unused()}
    filled = {n: trainer.get(n) if value is None else value for n, value in settings.items()}
    return {name: value for name, value in filled.items() if name not in unused}


def unequal(all_settings: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that differ, in their order. Those without a setting don't count, e.g. SAEs of an
    architecture that lacks an option."""
    values: dict[str, list[Any]] = {}
    for settings in all_settings:
        for name, value in settings.items():
            values.setdefault(name, []).append(value)
    return [
        name
        for name, all_of in values.items()
        if any(not same_setting(name, v, all_of[0]) for v in all_of)
    ]


def measured_differently(results: dict[str, dict[str, Any]]) -> list[str]:
    """The settings in which the measurements of several metrics.json differ."""
    return unequal(list(measurements(results).values()))


def training(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings in each config.json that decide what was trained, without the architecture and
    without those that follow from others. Upstream's have the trainer's class among them.
    """
    trained = {
        folder: {n: v for n, v in settings_of(config).items() if n not in _NOT_THE_TRAINING}
        for folder, config in configs.items()
    }
    following = _following(list(trained.values()))
    return {
        folder: {n: v for n, v in settings.items() if n not in following}
        for folder, settings in trained.items()
    }


def only_posteriors_differ(trained: Sequence[dict[str, Any]]) -> bool:
    """Whether SAEs had the same batches and initial weights, and differ in what a posterior adds.

    Arguments:
        trained: the values of `training`.
    """
    is_known = all(name in settings for settings in trained for name in _OF_THE_START)
    has_own_start = any("group_fractions" in settings for settings in trained)  # Matryoshka
    different = set(unequal(trained))
    return is_known and not has_own_start and bool(different) and different <= _OF_THE_POSTERIOR


def _following(trained: Sequence[dict[str, Any]]) -> set[str]:
    """The settings that follow from others: sigma or noise_to_signal, and of runs of different
    lengths, the steps that are the same share of each run."""
    noisy = [settings for settings in trained if settings.get("sigma") is not None]
    by_ratio = all(settings.get("noise_to_signal") is not None for settings in noisy)
    following = {"sigma" if noisy and by_ratio else "noise_to_signal"}
    for name in DERIVED:
        counts = [(each.get("steps"), each[name]) for each in trained if name in each]
        if len({steps for steps, _ in counts}) > 1 and all(
            _is_same_share(*counts[0], *other) for other in counts[1:]
        ):
            following.add(name)
    return following


def _is_same_share(
    steps: int | None, count: int | None, others: int | None, its: int | None
) -> bool:
    """Whether two counts are the same share of two runs, but for rounding to whole numbers."""
    if None in (steps, count, others, its):
        return count == its
    return abs(count * others - its * steps) <= max(steps, others)  # pyright: ignore
