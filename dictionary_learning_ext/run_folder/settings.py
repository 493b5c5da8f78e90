"""What a config.json says, as settings. Imports no torch.

    own_settings        those of its run, as they stand there; empty in upstream's and other libraries' folders
    settings_in         the same; refused where there are none
    settings_of         those that its SAE uses, to compare SAEs by
    settings_named_in   where its activations came from, to measure on
    architecture_of, seeds_of

The first argument is what `read_config` returns.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config.architectures import BY_DICT_CLASS
from ..config.hooks import hook_name
from ..config.run import RunConfig
from ..config.sae import OPTION_NAMES, SAEConfig, in_shares
from ..errors import CheckpointError
from .files import CONFIG
from .sae_names import EXPECTED

SEEDS = ("seed", "data_seed")
"""The settings in which runs of one setting differ."""
_OF_THE_BUFFER = {
    "ctx_len": "ctx_len",
    "text": "data",
    "text_column": "text_column",
    "packing": "text_packing",
    "remove_bos": "remove_bos",
    "max_norm_multiple": "max_norm_multiple",
}
"""A buffer's names of settings, and a run's. Upstream's buffers only write ctx_len."""


def own_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run in a config.json, as they stand there. Empty in folders of upstream's and other
    libraries, which have no run."""
    return config.get("run", {}).get("settings", {})


def settings_in(config: Any, path: Path) -> dict[str, Any]:
    """A run's settings in its config.json.

    Raises: CheckpointError if there are none.
    """
    try:
        settings = config["run"]["settings"]
    except (KeyError, TypeError):
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{path}: has no run.settings, which `vsae train` writes; {EXPECTED}, or its {CONFIG}"
        )
    return settings


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json that its SAE uses, with what was left to the trainer filled in.

    Folders of upstream's `trainSAE` hold what their trainer says of itself, its class included.
    """
    names = [*OPTION_NAMES, *(each.name for each in fields(RunConfig))]
    if not (settings := own_settings(config)):
        trainer = in_shares(config["trainer"])
        return {n: v for n, v in trainer.items() if n in ("trainer_class", *names)}
    which = {name: settings.get(name) for name in ("architecture", "posterior")}
    sae = SAEConfig().switch_architecture(**which)
    unused = {*OPTION_NAMES} - vars(sae).keys() | {*sae.unused()}
    trainer = {n: v for n, v in config["trainer"].items() if n in names}
    filled = {n: trainer.get(n) if value is None else value for n, value in settings.items()}
    return {name: value for name, value in in_shares(filled).items() if name not in unused}


def architecture_of(config: dict[str, Any]) -> str:
    """What a config.json says that was trained; of upstream's folders, the row of its class."""
    if architecture := own_settings(config).get("architecture"):
        return architecture
    dict_class = config["trainer"]["dict_class"]
    row = BY_DICT_CLASS.get(dict_class)
    return row.name if row else dict_class


def settings_named_in(config: dict[str, Any]) -> dict[str, Any]:
    """The model, hook and text that a config.json names, and how the text was read, by a run's names."""
    if "run" in config:
        return settings_of(config)
    trainer, buffer = config["trainer"], config.get("buffer", {})
    names_hook = hook_name(str(trainer.get("submodule_name"))) is not None
    is_certain = names_hook or "foreign" in config  # upstream's lm_name is free
    found = {
        "model": trainer.get("lm_name") if is_certain else None,
        "hook": trainer["submodule_name"] if names_hook else None,
        **{name: buffer.get(theirs) for theirs, name in _OF_THE_BUFFER.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def seeds_of(config: dict[str, Any]) -> tuple[Any, ...]:
    """The values of SEEDS in a config.json; None for one that it doesn't name."""
    settings = settings_of(config)
    return tuple(settings.get(name) for name in SEEDS)
