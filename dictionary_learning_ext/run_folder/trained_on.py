"""The run of an SAE, also of folders that upstream or another library wrote. Imports no torch."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config.hooks import RESID_POST, RESID_PRE, HookName, hook_name
from ..config.run import NONE, UNKNOWN, DeviceMap, RunConfig, TrainConfig
from ..errors import CheckpointError, ConfigError
from .comparing import former_evaluation, same_model, same_setting
from .files import EVALUATION
from .sae_folder import SAEFolder

logger = logging.getLogger(__name__)


def trained_on(
    sae: SAEFolder,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = RunConfig.device,
    *,
    text_column: str | None = None,
    activations: str | None = None,
    max_norm_multiple: float | None = None,
    remove_bos: bool | None = None,
    device_map: DeviceMap | None = None,
) -> RunConfig:
    """The run of an SAE. Arguments that are given replace its own settings.

    Folders of upstream's `trainSAE` and other libraries have no run. Their model, hook point and text come from
    metrics.json or from the settings in their files. Upstream's `lm_name` and `submodule_name` may be any text. So they
    are used only if the latter is a hook point's name; otherwise model and hook must be given.

    Arguments:
        activations: a folder of stored activations, or NONE to run the language model.

    Raises: ConfigError if model or hook are not known; CheckpointError if the SAE was trained at another hook point.
    """
    arguments: dict[str, Any] = {
        **{"model": model, "hook": hook, "data": data, "device": device},
        **{"text_column": text_column, "activations": activations},
        **{"max_norm_multiple": max_norm_multiple, "remove_bos": remove_bos},
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    if sae.is_run:
        run = sae.run
    else:
        given |= _found_in_files(sae, given)
        run = _run_from_buffer(sae, given)
    _require_its_place(sae, given.get("model"), given.get("hook"))
    run = replace(run, **given)
    if run.model == UNKNOWN and run.activations is None:
        raise ConfigError(
            f"{sae.name}: trained on batches of your own, whose language model is not known",
            instead="give model, hook and data, or activations",
        )
    run = replace(run, device_map=device_map)  # that of training may be for another machine
    return replace(run, activations=None) if run.activations == NONE else run


def all_trained_on(saes: Mapping[str, SAEFolder], **given: Any) -> dict[str, RunConfig]:
    """The run of each SAE, see `trained_on`, to be measured on the same tokens.

    Other libraries don't save whether outliers were left out. Their SAEs get the max_norm_multiple of the first SAE
    that has one.
    """
    runs = {name: trained_on(sae, **given) for name, sae in saes.items()}
    unsaid = [
        name
        for name, run in runs.items()
        if run.max_norm_multiple is None and "max_norm_multiple" not in saes[name].source
    ]
    first = next((name for name in runs if name not in unsaid), None)
    if first is None or (multiple := runs[first].max_norm_multiple) is None:
        return runs
    for name in unsaid:
        logger.info("%s: using max_norm_multiple=%g, from %s", name, multiple, first)
        runs[name] = replace(runs[name], max_norm_multiple=multiple)
    return runs


def _found_in_files(sae: SAEFolder, given: dict[str, Any]) -> dict[str, Any]:
    """The model, hook and text in the files of a folder without a run, if they are not given."""
    if "hook" not in sae.source and sae.form is None:
        return {}
    measured = former_evaluation(sae.results).get("measured_on", {})
    # The model of an evaluation is there. Another library's text may only be on the machine of its training.
    measured_names = ("model",) if sae.form is None else ("model", "data")
    names = ("model", "hook", "data", "max_norm_multiple")
    measured = {n: measured.get(n) for n in names if n in measured_names or n not in sae.source}
    named = {name: sae.source.get(name) for name in ("model", "hook")}
    found: dict[str, Any] = {}
    for file, values in {EVALUATION: measured, "settings": named}.items():
        known = given | found
        taken = {n: v for n, v in values.items() if n not in known and v is not None}
        if taken:
            words = " ".join(f"{name}={value}" for name, value in taken.items())
            logger.info("%s: using %s, from its %s", sae.name, words, file)
        found |= taken
    return found


_HOOKS = " (`vsae hooks --model NAME` lists a model's hook points)"


def _run_from_buffer(sae: SAEFolder, known: dict[str, Any]) -> RunConfig:
    """The run of a folder of upstream or another library, from the "buffer" in its config.

    Upstream's buffers don't save their packing: each context is a truncated document.

    Arguments:
        known: the model, the hook point, and other settings that are given or in its files.
    """
    if missing := [name for name in ("model", "hook") if name not in known]:
        named = {"model": "lm_name", "hook": "submodule_name"}
        unknown = {"model": "which language model", "hook": "which hook point"}
        for name in missing:
            if (only := sae.config["trainer"].get(named[name])) is not None:
                unknown[name] += f" (only {str(only)!r})"
        raise ConfigError(
            f"{sae.name}: its files don't say {' and '.join(unknown[name] for name in missing)}",
            instead=f"give {' and '.join(missing)}{_HOOKS if 'hook' in missing else ''}",
        )
    named = {"text_packing": "truncate", "max_norm_multiple": None} | sae.source
    if "data" not in named and "data" not in known:
        logger.warning(
            "%s: its settings don't say which text it was trained on; measuring on --data %s. --data FILE names another.",
            *(sae.name, RunConfig.data),
        )
    changes = {name: known[name] for name in ("model", "hook")}
    changes["eval_tokens"] = 0  # it has no evaluation of its own
    return TrainConfig().with_settings(named | changes, sae.name).run


def _require_its_place(sae: SAEFolder, model: str | None, hook: str | None) -> None:
    """Warn if an SAE was trained on another language model than `model`, which may be the same under another name: its width
    is checked when it is loaded. Raise a CheckpointError if it was trained at another hook point than `hook`."""
    trainer, folder = sae.config["trainer"], sae.name
    was_model, was_hook = (trainer.get(name) for name in ("lm_name", "submodule_name"))
    if model is not None and was_model not in (None, UNKNOWN) and not same_model(model, was_model):
        logger.warning("%s: trained on the model %s, now used with %s", folder, was_model, model)
    if options := sae.config.get("foreign", {}).get("model_options"):
        logger.warning(
            "%s: trained on a model that TransformerLens loaded with %s; here it is loaded by transformers, and "
            "its activations may differ",
            folder,
            options,
        )
    if hook is None or was_hook == UNKNOWN:
        return
    if str(was_hook).startswith("blocks."):
        if not same_setting("hook", hook, was_hook):
            raise CheckpointError(
                f"{folder}: trained on hook {was_hook}, not on {hook}; leave out the hook point or give "
                "another folder"
            )
        return
    _require_layer(sae, hook)  # upstream's name may be e.g. resid_post_layer_3
    if not sae.is_run:
        logger.warning(
            "%s: its settings don't say which module it was trained on; trusting --hook %s",
            *(folder, hook),
        )


def _require_layer(sae: SAEFolder, hook: str) -> None:
    """Raise a CheckpointError if the layer in a folder of upstream is not that of a hook point."""
    layer, io = sae.config["trainer"].get("layer"), sae.config.get("buffer", {}).get("io")
    named = hook_name(hook)
    if named is None or type(layer) is not int:
        return  # `find_hook` names the hook points there are
    was_hook = str(HookName(layer, RESID_PRE if io == "in" else RESID_POST))
    if io in ("in", "out") and named.kind in (RESID_PRE, RESID_POST):
        fits = same_setting("hook", hook, was_hook)
    else:
        fits = named.block == layer
    if not fits:
        side = {"in": "the input of ", "out": "the output of "}.get(str(io), "")
        raise CheckpointError(
            f"{sae.name}: trained on {side}layer {layer}, not on {hook}",
            instead=f"use hook={was_hook!r}",
        )
