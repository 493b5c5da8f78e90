"""What the SAE of a folder was trained on, checked against what a command is asked to measure it on.

Imports no torch.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.run import RunConfig, TrainConfig
from ..errors import CheckpointError, ConfigError, Setting, listed
from .evaluation_files import former_evaluation
from .matching import same_model
from .names import CONFIG, METRICS
from .reading import read_config, settings_in

logger = logging.getLogger(__name__)

NONE = "none"
"""What is given for no stored activations."""
_OF_THE_BUFFER = {
    "ctx_len": "ctx_len",
    "text": "data",
    "packing": "text_packing",
    "remove_bos": "remove_bos",
    "max_norm_multiple": "max_norm_multiple",
}
"""By a buffer's name of a setting: the run's. Upstream's buffers only write ctx_len."""


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
    """A folder's run with what was asked for in its place, once it is certain that both agree.

    A folder that upstream's `trainSAE` wrote has no run. If its submodule_name is a hook point's, that
    is the hook, and the model is that of its metrics.json, or lm_name. Otherwise both must be given. The
    text is its buffer's, or that of its metrics.json.

    Arguments:
        activations: a folder of stored activations, or NONE for those of the language model.

    Raises: ConfigError, CheckpointError.
    """
    config = read_config(folder, step)
    path = folder / CONFIG
    if "run" not in config:
        model, hook, data = _named_by(folder, config, model, hook, data)
    if "run" in config:
        run = TrainConfig().updated(settings_in(config, path), str(path)).run
    elif model is None or hook is None:
        trainer, missing = config["trainer"], []
        if model is None:
            missing.append(f"no certain language model (lm_name={trainer.get('lm_name')!r})")
        if hook is None:
            missing.append(f"no hook point (submodule_name={trainer.get('submodule_name')!r})")
        needed = [Setting(n) for n, v in (("model", model), ("hook", hook)) if v is None]
        raise ConfigError(
            f"{folder}: its {CONFIG} has no settings of a run (upstream's trainSAE writes none), and "
            f"{' and '.join(missing)}",
            instead=("give ", *listed(needed, " and ")),
        )
    else:
        run = _run_of_buffer(folder, config, model, hook, data)
    trainer = config["trainer"]
    trained_on = {"model": trainer.get("lm_name"), "hook": trainer.get("submodule_name")}
    was = trained_on["model"]
    if model is not None and was is not None and not same_model(model, was):
        # It may be the same under another name. Its width is checked once it is loaded.
        logger.warning("%s: trained on the model %s, now used with %s", folder, was, model)
    was = trained_on["hook"]
    if hook is not None and not str(was).startswith("blocks."):
        _require_layer(folder, config, hook)  # upstream's names are free, e.g. resid_post_layer_3
        if "run" not in config:
            logger.warning(
                "%s: %s doesn't say which module it was trained on (submodule_name=%r); trusting "
                "--hook %s",
                folder,
                CONFIG,
                was,
                hook,
            )
    elif hook not in (None, was):
        raise CheckpointError(
            f"{folder}: trained on hook {was}, not on {hook}; leave out the hook point or give another folder"
        )
    changes = {
        "model": model,
        "hook": hook,
        "data": data,
        "device": device,
        "activations": activations,
        "max_norm_multiple": max_norm_multiple,
        "remove_bos": remove_bos,
    }
    run = replace(run, **{name: value for name, value in changes.items() if value is not None})
    return replace(run, activations=None) if run.activations == NONE else run


def _named_by(
    folder: Path,
    config: dict[str, Any],
    model: str | None,
    hook: str | None,
    data: str | None,
) -> tuple[str | None, str | None, str | None]:
    """Model, hook and text of a folder of upstream's: what is given, or else what its files name."""
    trainer, given = config["trainer"], {"model": model, "hook": hook, "data": data}
    named = trainer.get("submodule_name")
    if not re.fullmatch(r"blocks\.\d+\.hook_\w+", str(named)):
        return model, hook, data
    measured = former_evaluation(folder).get("measured_on", {})
    is_known = config.get("buffer", {}).get("text") is not None  # that is what it was trained on
    measured = {n: measured.get(n) for n in ("model", *(() if is_known else ("data",)))}
    chosen = dict(given)
    for source, own in (
        (METRICS, measured),
        (CONFIG, {"model": trainer.get("lm_name"), "hook": named}),
    ):
        taken = {n: v for n, v in own.items() if chosen[n] is None and v is not None}
        if taken:
            flags = " ".join(f"--{name} {value}" for name, value in taken.items())
            logger.info("%s: using %s, from its %s", folder, flags, source)
        chosen |= taken
    return chosen["model"], chosen["hook"], chosen["data"]


def _run_of_buffer(
    folder: Path, config: dict[str, Any], model: str, hook: str, data: str | None
) -> RunConfig:
    """The run of a folder of upstream's, as far as its "buffer" tells.

    Upstream's own buffers, which don't write their packing, read a truncated document per context.
    """
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
