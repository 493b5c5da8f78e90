"""Whether a machine can train a run at all, found before the language model is loaded."""

from collections.abc import Iterable
from typing import Any

import psutil
import torch as t

from ..activations.language_models import empty_model
from ..activations.run_inputs import require_positions
from ..config.run_config import RunConfig
from ..config.sae_config import SAEConfig
from ..errors import ConfigError

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def sae_bytes(dict_size: int, activation_dim: int) -> int:
    """What an SAE in training takes at least: weights, gradients and Adam's averages, float32."""
    return 4 * 4 * 2 * dict_size * activation_dim


def free_bytes(device: str) -> int:
    """The free memory of the machine, or of its GPU."""
    if t.device(device).type == "cuda":
        return t.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def require_memory(run: RunConfig, saes: Iterable[SAEConfig]) -> None:
    """Refuse a run that the device has too little memory for, or contexts that the model can't read.

    The estimate is a lower bound: what can be trained isn't refused.

    Raises: ConfigError, which says how much is needed for what; LanguageModelError if there is no
    such model.
    """
    model: Any = empty_model(run.model)
    config = model.config.get_text_config()
    require_positions(run, config, "use a shorter --ctx-len")
    if (available := _all_bytes(run.device)) is None:
        return
    width, size = config.hidden_size, 2 if run.dtype == "bfloat16" else 4
    is_quantized = getattr(config, "quantization_config", None) is not None
    parameters = 0 if is_quantized else sum(each.numel() for each in model.parameters())
    parts = {
        "SAE weights, gradients and optimizer": sum(sae_bytes(s.dict_size, width) for s in saes),
        "buffer": run.n_ctxs * run.ctx_len * width * size,
        "language model": parameters * size,
    }
    if (needed := sum(parts.values())) > available:
        where = "this machine" if run.device == "cpu" else run.device
        flag = {
            "SAE weights, gradients and optimizer": "--dict-size",
            "buffer": "--n-ctxs or --ctx-len",
            "language model": "--model or --dtype bfloat16",
        }[max(parts, key=lambda name: parts[name])]
        listed = ", ".join(f"{name} {_in_words(number)}" for name, number in parts.items())
        raise ConfigError(
            f"the run needs at least {_in_words(needed)} of memory ({listed}): expected at most"
            f" {_in_words(available)}, which {where} has; use a smaller {flag}"
        )


def _all_bytes(device: str) -> int | None:
    """The memory of a device, used or not. None if it is of another kind, or isn't there."""
    if device == "cpu":
        return psutil.virtual_memory().total
    there = ["cuda", *(f"cuda:{i}" for i in range(t.cuda.device_count()))]
    if t.cuda.is_available() and device in there:
        return t.cuda.get_device_properties(device).total_memory
    return None


def _in_words(number: float) -> str:
    """Bytes, as 41 TB."""
    for unit in _UNITS:
        if number < 1000 or unit == _UNITS[-1]:
            return f"{number:.{0 if number >= 10 or unit == 'bytes' else 1}f} {unit}"
        number /= 1000
    raise AssertionError
