"""The run of an SAE, also of folders that upstream or another library wrote. Imports no torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..config.hooks import RESID_POST, RESID_PRE, HookName, hook_name
from ..config.run import NONE, UNKNOWN, DeviceMap, RunConfig, TrainConfig
from ..errors import CheckpointError, ConfigError, shown
from .cache_manifest import OF_A_TEXT, read_manifest
from .comparing import former_evaluation
from .files import at_home
from .identity import STORED, same_part
from .sae_folder import SAEFolder

logger = logging.getLogger(__name__)


def trained_on(
    sae: SAEFolder,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = RunConfig.device,
    *,
    device_map: DeviceMap | None = None,
    **others: Any,
) -> RunConfig:
    """The run of an SAE. Arguments that are not None replace its own settings.

    Folders of upstream's `trainSAE` and other libraries have no run. Their model, hook point and text come from
    metrics.json or from the settings in their files. Upstream's `lm_name` and `submodule_name` may be any text. So they
    are used only if the latter is a hook point's name; otherwise model and hook must be given, or stored activations.

    Arguments:
        device_map: None stands, as that of training may be for another machine.
        others: other settings of a run. `activations` may be NONE, to run the language model.

    Raises: ConfigError if model or hook are not known; CheckpointError if the SAE was trained at another hook point.
    """
    arguments = {"model": model, "hook": hook, "data": data, "device": device, **others}
    given = {name: value for name, value in arguments.items() if value is not None}
    run = sae.run if sae.is_run else _run_from_files(sae, given)
    if given.get("activations") == NONE:
        given["activations"] = None
    run = replace(run, **given, device_map=device_map)
    _require_its_hook(sae, run.site)
    _warn_of_its_model(sae, run.model)
    if run.model == UNKNOWN and run.activations is None:
        raise ConfigError(
            f"{sae.name}: trained on batches of your own, whose language model is not known",
            instead="give model, hook and data, or activations",
        )
    return run


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
    said = (run.max_norm_multiple for name, run in runs.items() if name not in unsaid)
    if (multiple := next(said, None)) is not None:
        for name in unsaid:
            logger.info("%s: using max_norm_multiple=%g, as the others", name, multiple)
            runs[name] = replace(runs[name], max_norm_multiple=multiple)
    return runs


_REMEMBERED = ("model", "hook", "data", "max_norm_multiple")
"""What a folder without a run was measured with, and is measured with again."""
_HOOKS = " (`vsae hooks --model NAME` lists a model's hook points)"


def _run_from_files(sae: SAEFolder, given: dict[str, Any]) -> RunConfig:
    """The run of a folder of upstream or another library: the settings in its files, and in an evaluation's. What that was
    measured with is known to be there, where another library's text may only be on the machine of its training.

    Upstream's buffers don't save their packing: each context is a truncated document.

    Arguments:
        given: the settings that take the place of those in the files.
    """
    found = dict(sae.source)
    if "hook" in found or sae.form is not None:
        measured = former_evaluation(sae.results).get("measured_on", {})
        surer = ("model",) if sae.form is None else ("model", "data")
        for name in _REMEMBERED:
            if measured.get(name) is not None and (name in surer or name not in found):
                found[name] = measured[name]
    if given.get(STORED, NONE) != NONE:
        stored = _of_stored(given[STORED], found)
        found, given = found | stored, stored | given  # no need to say what they are
    known = found | given
    whats = {"model": "language model", "hook": "hook point"}
    if unknown := [name for name in whats if name not in known]:
        raise _not_said(sae, whats, unknown)
    if used := [f"{n}={found[n]}" for n in _REMEMBERED if n in found and n not in given]:
        logger.info("%s: using %s, from its files", sae.name, " ".join(used))
    if "data" not in known:
        logger.warning(
            "%s: its settings don't say which text it was trained on; measuring on --data %s. --data FILE names another.",
            *(sae.name, RunConfig.data),
        )
    settings = {"text_packing": "truncate", "max_norm_multiple": None} | found
    settings |= {"model": known["model"], "hook": known["hook"], "eval_tokens": 0}
    return TrainConfig().with_settings(settings, sae.name).run


def _of_stored(folder: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that stored activations decide. A user's own have no known language model.

    Arguments:
        found: those that an SAE's files name.
    """
    if (manifest := read_manifest(at_home(folder))) is None:
        unknown = {"model", "hook"} - found.keys()
        return dict.fromkeys(unknown, UNKNOWN) | {"data": folder}
    settings = {name: getattr(manifest.settings, name) for name in OF_A_TEXT}
    hooks = [*manifest.settings.hooks]
    return settings if "hook" in found or len(hooks) > 1 else settings | {"hook": hooks[0]}


def _not_said(sae: SAEFolder, whats: Mapping[str, str], unknown: Sequence[str]) -> ConfigError:
    """The error for an SAE whose files name no language model or hook point."""
    named = sae.config["trainer"].get("lm_name") if "hook" in unknown and sae.form is None else None
    free = (
        ""
        if named is None
        else f" (lm_name={shown(named)} may be any text: no submodule_name names a hook point)"
    )
    stored = " or, for activations of your own, activations=FOLDER" if sae.form is None else ""
    return ConfigError(
        f"{sae.name}: its files don't say which {' and '.join(whats[name] for name in unknown)} it was trained on{free}",
        instead=f"give {' and '.join(unknown)}{_HOOKS if 'hook' in unknown else ''}{stored}",
    )


def _warn_of_its_model(sae: SAEFolder, model: str) -> None:
    """Warn if an SAE was trained on another language model than `model`, which may be the same under another name: its width
    is checked when it is loaded."""
    was = sae.config["trainer"].get("lm_name")
    if UNKNOWN not in (was, model) and was and not same_part("model", model, was):
        logger.warning("%s: trained on the model %s, now used with %s", sae.name, was, model)
    if options := sae.config.get("foreign", {}).get("model_options"):
        logger.warning(
            "%s: trained on a model that TransformerLens loaded with %s; here it is loaded by transformers, and "
            "its activations may differ",
            sae.name,
            options,
        )


def _require_its_hook(sae: SAEFolder, hook: str) -> None:
    """Raise a CheckpointError if an SAE was trained at another hook point than `hook`."""
    trainer, named = sae.config["trainer"], hook_name(hook)
    was = str(trainer.get("submodule_name"))
    if UNKNOWN in (was, hook):
        return
    if not was.startswith("blocks."):  # upstream's name may be any text, e.g. resid_post_layer_3
        if not sae.is_run:
            logger.warning(
                "%s: its settings don't say which module it was trained on; trusting --hook %s",
                *(sae.name, hook),
            )
        layer, io = trainer.get("layer"), sae.config.get("buffer", {}).get("io")
        # Without a submodule, `layer` is a number that upstream's trainers demand.
        if named is None or type(layer) is not int or trainer.get("submodule_name") is None:
            return
        is_residual = io in ("in", "out") and named.kind in (RESID_PRE, RESID_POST)
        if not is_residual and named.block == layer:
            return
        was = str(HookName(layer, RESID_PRE if io == "in" else RESID_POST))
    if not same_part("hook", hook, was):
        raise CheckpointError(
            f"{sae.name}: trained on {was}, not on {hook}", instead=f"use hook={was!r}"
        )
