"""What a named SAE was trained on: its run, also where another library wrote its folder. Imports no torch."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.hooks import RESID_POST, RESID_PRE, HookName, hook_name
from ..config.run import NONE, UNKNOWN, DeviceMap, RunConfig, TrainConfig
from ..errors import CheckpointError, ConfigError
from .comparing import same_model, same_setting
from .files import CONFIG, METRICS
from .reading import former_evaluation, read_config
from .sae_names import results_folder
from .settings import settings_in, settings_named_in

logger = logging.getLogger(__name__)


def run_of(
    folder: str | Path,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = RunConfig.device,
    step: int | None = None,
    *,
    text_column: str | None = None,
    activations: str | None = None,
    max_norm_multiple: float | None = None,
    remove_bos: bool | None = None,
    device_map: DeviceMap | None = None,
) -> RunConfig:
    """A named SAE's run, with the settings that are given here in place of its own.

    A folder that upstream's `trainSAE` wrote has no run. If its submodule_name is a hook point's, that
    is the hook, and the model is that of its metrics.json, or lm_name. Otherwise both must be given. The
    text is its buffer's, or that of its metrics.json. So it is with other libraries' folders, but
    their model needs no hook point beside it to be believed.

    Arguments:
        activations: a folder of stored activations, or NONE for those of the language model.

    Raises: ConfigError, CheckpointError if the SAE was trained on something else than what is given.
    """
    config = read_config(folder, step)
    changes: dict[str, Any] = {
        "model": model,
        "hook": hook,
        "data": data,
        "max_norm_multiple": max_norm_multiple,
    }
    if "run" in config:
        path = Path(folder) / CONFIG
        run = TrainConfig().with_settings(settings_in(config, path), str(path)).run
    else:
        changes |= _named_by(folder, config, changes)
        run = _run_of_others(folder, config, changes)
        model, hook = changes["model"], changes["hook"]
    was_model, was_hook = (config["trainer"].get(name) for name in ("lm_name", "submodule_name"))
    if model is not None and was_model not in (None, UNKNOWN) and not same_model(model, was_model):
        # It may be the same under another name. Its width is checked once it is loaded.
        logger.warning("%s: trained on the model %s, now used with %s", folder, was_model, model)
    if options := config.get("foreign", {}).get("model_options"):
        logger.warning(
            "%s: trained on a model that TransformerLens loaded with %s; here it is loaded by transformers, and "
            "its activations may differ",
            folder,
            options,
        )
    if hook is not None and was_hook != UNKNOWN and not str(was_hook).startswith("blocks."):
        _require_layer(folder, config, hook)  # upstream's names are free, e.g. resid_post_layer_3
        if "run" not in config:
            logger.warning(
                "%s: its settings don't say which module it was trained on; trusting --hook %s",
                *(folder, hook),
            )
    elif hook is not None and was_hook != UNKNOWN and not same_setting("hook", hook, was_hook):
        raise CheckpointError(
            f"{folder}: trained on hook {was_hook}, not on {hook}; leave out the hook point or give "
            "another folder"
        )
    changes |= {
        "device": device,
        "activations": activations,
        "text_column": text_column,
        "remove_bos": remove_bos,
    }
    run = replace(run, **{name: value for name, value in changes.items() if value is not None})
    if run.model == UNKNOWN and run.activations is None:
        raise ConfigError(
            f"{folder}: trained on batches of your own, whose language model is not known",
            instead="give model, hook and data, or activations",
        )
    run = replace(run, device_map=device_map)  # of this machine, as the device is
    return replace(run, activations=None) if run.activations == NONE else run


def runs_of(
    folders: Sequence[str | Path], step: int | None = None, **given: Any
) -> dict[str, RunConfig]:
    """Each one's run, see `run_of`, all to be read on the same tokens.

    Other libraries don't write whether they left tokens out for their norm. Such an SAE is read without those
    that the first other one leaves out.
    """
    runs = {str(folder): run_of(folder, step=step, **given) for folder in folders}
    unsaid = [
        folder
        for folder, run in runs.items()
        if run.max_norm_multiple is None
        and "max_norm_multiple" not in settings_named_in(read_config(folder, step))
    ]
    first = next((folder for folder in runs if folder not in unsaid), None)
    if first is None or (multiple := runs[first].max_norm_multiple) is None:
        return runs
    for folder in unsaid:
        logger.info("%s: using max_norm_multiple=%g, from %s", folder, multiple, first)
        runs[folder] = replace(runs[folder], max_norm_multiple=multiple)
    return runs


def _named_by(folder: str | Path, config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The model, hook and text that the files of a folder without a run name and `given` doesn't."""
    named = settings_named_in(config)
    measured = former_evaluation(results_folder(folder)).get("measured_on", {})
    if "hook" not in named and "foreign" not in config:
        return {}
    # What it was measured on is known to work. The text that another library names may be on its machine only.
    elsewhere = ("model", "data") if "foreign" in config else ("model",)
    names = ("model", "hook", "data", "max_norm_multiple")
    own = {
        METRICS: {n: measured.get(n) for n in names if n in elsewhere or n not in named},
        "settings": {name: named.get(name) for name in ("model", "hook")},
    }
    found: dict[str, Any] = {}
    for source, values in own.items():
        known = given | found
        taken = {n: v for n, v in values.items() if known[n] is None and v is not None}
        if taken:
            words = " ".join(f"{name}={value}" for name, value in taken.items())
            logger.info("%s: using %s, from its %s", folder, words, source)
        found |= taken
    return found


_HOOKS = " (`vsae hooks --model NAME` lists a model's hook points)"


def _run_of_others(folder: str | Path, config: dict[str, Any], known: dict[str, Any]) -> RunConfig:
    """The run of a folder of upstream's or another library's, as far as its "buffer" tells.

    Upstream's own buffers, which don't write their packing, read a truncated document per context.

    Arguments:
        known: its model and hook point, and what else is given or in its files.
    """
    trainer = config["trainer"]
    if missing := [name for name in ("model", "hook") if known[name] is None]:
        unknown = {
            "model": f"which language model{_only(trainer.get('lm_name'))}",
            "hook": f"which hook point{_only(trainer.get('submodule_name'))}",
        }
        raise ConfigError(
            f"{folder}: its files don't say {' and '.join(unknown[name] for name in missing)}",
            instead=f"give {' and '.join(missing)}{_HOOKS if 'hook' in missing else ''}",
        )
    found = {"text_packing": "truncate"} | settings_named_in(config)
    if "data" not in found and known["data"] is None:
        logger.warning(
            "%s: its settings don't say which text it was trained on; measuring on --data %s. --data FILE names another.",
            *(folder, RunConfig.data),
        )
    own = {name: known[name] for name in ("model", "hook")}
    own["eval_tokens"] = 0  # it has no evaluation of its own
    return TrainConfig().with_settings(found | own, str(folder)).run


def _only(name: object) -> str:
    """A remark on a name that a file gives but that can't be used, or nothing."""
    return "" if name is None else f" (only {str(name)!r})"


def _require_layer(folder: str | Path, config: dict[str, Any], hook: str) -> None:
    """Raise a CheckpointError unless a folder of upstream's was trained where `hook` is."""
    layer, io = config["trainer"].get("layer"), config.get("buffer", {}).get("io")
    named = hook_name(hook)
    if named is None or type(layer) is not int:
        return  # `find_hook` names the hook points there are
    trained_on = str(HookName(layer, RESID_PRE if io == "in" else RESID_POST))
    if io in ("in", "out") and named.kind in (RESID_PRE, RESID_POST):
        fits = same_setting("hook", hook, trained_on)
    else:
        fits = named.block == layer
    if not fits:
        side = {"in": "the input of ", "out": "the output of "}.get(str(io), "")
        raise CheckpointError(
            f"{folder}: trained on {side}layer {layer}, not on {hook}",
            instead=f"use hook={trained_on!r}",
        )
