"""What SAEs in training take of a machine's memory, found before the language model is loaded."""

from collections.abc import Iterable

import psutil
import torch as t

from ..activations.language_models import width_of
from ..activations.stored import open_stored
from ..config.checks import in_words
from ..config.run import RunConfig
from ..config.sae import SAEConfig
from ..config.synthetic_models import is_synthetic, synthetic_settings
from ..errors import ConfigError, Setting


def sae_bytes(sae: SAEConfig, activation_dim: int) -> int:
    """What an SAE in training takes at least: weights, gradients and Adam's averages, float32."""
    copies_of_encoder = 4  # weights, gradients, and two averages
    copies_of_decoder = 1 if sae.to_flat()["freeze_decoder"] else 4
    return 4 * (copies_of_encoder + copies_of_decoder) * sae.dict_size * activation_dim


def free_bytes(device: str) -> int:
    """The free memory of the machine, or of its GPU."""
    if t.device(device).type == "cuda":
        return t.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def require_memory(run: RunConfig, saes: Iterable[SAEConfig], processes: int = 1) -> None:
    """Refuse SAEs that are larger than all memory of the device, which must be there.

    Arguments:
        processes: how many train on this machine. On its CPU each has SAEs of its own.

    Raises: ConfigError; LanguageModelError or ActivationsError if there is no such model or folder.
    """
    width, on_cpu = row_width(run), t.device(run.device).type == "cpu"
    needed = (processes if on_cpu else 1) * sum(sae_bytes(each, width) for each in saes)
    if on_cpu:
        there = psutil.virtual_memory().total
    else:
        there = t.cuda.get_device_properties(run.device).total_memory
    if needed > there:
        raise ConfigError(
            f"the weights, gradients and optimizer of the SAEs need {in_words(needed)} of memory, and"
            f" {'this machine' if on_cpu else run.device} has {in_words(there)}",
            instead=("lower ", Setting("dict_size")),
        )


def row_width(run: RunConfig) -> int:
    """D, the largest if there are several hook points, found without loading a language model.

    Raises: LanguageModelError or ActivationsError if there is no such model or folder.
    """
    if is_synthetic(run.model):
        return synthetic_settings(run.model).width
    if run.activations is None:
        return width_of(run.model)
    return max(hook.width for hook in open_stored(run.activations).hooks.values())
