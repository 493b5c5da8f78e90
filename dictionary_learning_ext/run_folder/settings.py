"""The settings in a config.json. Imports no torch.

    run_settings            the run's settings; empty for folders of upstream and other libraries
    required_run_settings   the same; an error if there are none
    compared_settings       the settings that the SAE uses, to compare SAEs by
    source_settings         the model, hook point and text that its activations came from, to measure on
    architecture_of, seeds_of

The first argument is a result of `read_config`.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config.architectures import ARCHITECTURES, BY_DICT_CLASS
from ..config.hooks import hook_name
from ..config.run import RunConfig
from ..config.sae import OPTION_NAMES
from ..errors import CheckpointError
from .files import CONFIG
from .sae_names import EXPECTED

SEEDS = ("seed", "data_seed")
"""The settings that may differ between runs that are compared as seeds of one setting."""
_BUFFER_SETTINGS = {
    "ctx_len": "ctx_len",
    "text": "data",
    "text_column": "text_column",
    "packing": "text_packing",
    "remove_bos": "remove_bos",
    "max_norm_multiple": "max_norm_multiple",
}
"""The names of settings in a buffer's config, and in a run. Upstream's buffers only write ctx_len."""


def run_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run in a config.json. Empty for folders of upstream and other libraries, which have no run."""
    return config.get("run", {}).get("settings", {})


def required_run_settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of the run in a config.json. Raises CheckpointError if there are none."""
    if not (settings := run_settings(config)):
        raise CheckpointError(
            f"{path}: has no run.settings, which `vsae train` writes; {EXPECTED}, or its {CONFIG}"
        )
    return settings


def compared_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that the SAE of a config.json uses.

    For folders of upstream's `trainSAE` they are the trainer's own settings and its class.
    """
    if settings := run_settings(config):
        return dict(settings)
    names = ["trainer_class", *OPTION_NAMES, *(each.name for each in fields(RunConfig))]
    return {name: value for name, value in config["trainer"].items() if name in names}


def architecture_of(config: dict[str, Any]) -> str:
    """The architecture in a config.json. For upstream's folders, or a name that isn't known, it follows from the class."""
    architecture = run_settings(config).get("architecture")
    if architecture in ARCHITECTURES:
        return architecture
    dict_class = config["trainer"]["dict_class"]
    row = BY_DICT_CLASS.get(dict_class)
    return row.name if row else dict_class


def source_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The model, hook point and text in a config.json, and how the text was read, as settings of a run."""
    if "run" in config:
        return compared_settings(config)
    trainer, buffer = config["trainer"], config.get("buffer", {})
    names_hook = hook_name(str(trainer.get("submodule_name"))) is not None
    is_certain = names_hook or "foreign" in config  # upstream's lm_name may be any text
    found = {
        "model": trainer.get("lm_name") if is_certain else None,
        "hook": trainer["submodule_name"] if names_hook else None,
        **{name: buffer.get(theirs) for theirs, name in _BUFFER_SETTINGS.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def seeds_of(config: dict[str, Any]) -> tuple[Any, ...]:
    """The values of SEEDS in a config.json; None for a missing one."""
    settings = compared_settings(config)
    return tuple(settings.get(name) for name in SEEDS)
