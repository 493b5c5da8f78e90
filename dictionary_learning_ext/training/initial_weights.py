"""An SAE's initial weights from a trained SAE's, instead of random ones (`--init-from`)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.hook_points import HookPoint
from ..config.architectures import BY_DICT_CLASS, TRAINED
from ..config.sae import SAEConfig
from ..errors import ConfigError, Setting
from ..run_folder.sae_lens_folder import is_sae_lens_folder, load_sae_lens
from ..run_folder.weights import in_training_units, load_dictionary
from ..trainers.base import Trainer

logger = logging.getLogger(__name__)

_OPTIONAL = "log_var_encoder."
"""The weights that a source may lack: those of a learned log-variance then start as usual."""


def trained_sources(saes: Mapping[str, SAEConfig]) -> dict[str, Dictionary]:
    """The trained SAE that each of these starts from, by name. Those without init_from have none.

    Arguments:
        saes: resolved. init_from is a folder of `vsae train`, of upstream's or of SAELens's.

    Raises: CheckpointError if a folder is damaged or missing; ConfigError if its class, dict_size or
    k is another than the SAE's.
    """
    sources = {}
    for name, sae in saes.items():
        if sae.init_from is not None:
            sources[name] = _loaded(sae.init_from)
            _require_fit(sae, sources[name])
    return sources


def _loaded(folder: str) -> Any:
    """The SAE of a folder, in float32, for raw activations."""
    if is_sae_lens_folder(folder):
        return load_sae_lens(folder)
    dictionary: Any = load_dictionary(folder)[0]
    return dictionary.float()


def _require_fit(sae: SAEConfig, source: Any) -> None:
    """Raise a ConfigError unless an SAE can have the weights of `source`."""
    given = type(source).__name__
    if given not in _fitting_classes(sae.architecture):
        names = [name for name in TRAINED if given in _fitting_classes(name)]
        no_architecture = (
            f"no architecture starts from {'an' if given[0] in 'AEIO' else 'a'} {given}"
        )
        fitting = [Setting("architecture", name) for name in names]
        raise ConfigError(
            f"its class is {given}, not {TRAINED[sae.architecture].dict_class} (architecture "
            f"{sae.architecture})",
            name="init_from",
            value=sae.init_from,
            instead=("give ", fitting[0]) if fitting else no_architecture,
        )
    if source.dict_size != sae.dict_size:
        raise ConfigError(
            f"its dict_size is {source.dict_size}, not {sae.dict_size}",
            name="init_from",
            value=sae.init_from,
            instead=("give ", Setting("dict_size", source.dict_size)),
        )
    k = sae.kept_per_token
    if k is not None and int(source.k) != k:
        own = Setting("k", int(source.k))
        raise ConfigError(
            f"its k is {int(source.k)}, not {k}",
            name="init_from",
            value=sae.init_from,
            instead=("give ", own if "k" in sae.options else Setting("architecture", "vsae_top_k")),
        )


def _fitting_classes(architecture: str) -> set[str]:
    """The classes whose weights are those of an architecture: its own, and upstream's TopK for vSAEs."""
    row = TRAINED[architecture]
    as_upstream = (row.exported_as or row.dictionary).partition(":")[2]
    exported_as_it = {
        each.dict_class for each in BY_DICT_CLASS.values() if each.exported_as == row.dictionary
    }
    return {row.dict_class, as_upstream} | exported_as_it


@t.no_grad()
def start_from(
    trainer: Trainer, source: Dictionary, norm_factor: float, sae: SAEConfig, hook: HookPoint
) -> None:
    """Give a trainer that has taken no step the weights of `source`.

    Its settings (posterior, sigma, …) and its optimiser stay its own.

    Arguments:
        source: see `trained_sources`. It takes raw activations.
        norm_factor: what raw activations are divided by in the new run.
        sae: the trainer's settings.
        hook: where the new run reads its activations.

    Raises: ConfigError if the activations are not as wide as those of `source`.
    """
    if source.activation_dim != hook.activation_dim:
        raise ConfigError(
            f"its activation_dim is {source.activation_dim}, but {hook.name} is "
            f"{hook.activation_dim} wide",
            name="init_from",
            value=sae.init_from,
            instead=("give another ", Setting("model"), " or ", Setting("hook")),
        )
    given = in_training_units(source, norm_factor).state_dict()
    own = trainer.ae.state_dict()  # shares the weights' memory
    names = [name for name, _ in trainer.ae.named_parameters()]
    for name in [*names, *({"threshold"} & own.keys() - set(names))]:
        if name in given or not name.startswith(_OPTIONAL):
            own[name].copy_(given[name])
    logger.info("starting from the weights of %s", Path(sae.init_from or ""))
