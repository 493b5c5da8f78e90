"""Whether a machine can train a run at all, found before the language model is loaded."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import psutil
import torch as t

from ..activations.language_models import empty_model, width_of
from ..activations.run_inputs import require_positions
from ..activations.stored_activations import open_stored
from ..config.checks import in_words
from ..config.run_config import RunConfig
from ..config.sae_config import SAEConfig
from ..config.synthetic_models import is_synthetic, synthetic_settings
from ..errors import ConfigError, Setting, Text


class _Part(NamedTuple):
    """Something that a run keeps in memory."""

    label: str
    bytes: int
    remedy: Text
    """What to do if this is the largest part."""


def sae_bytes(sae: SAEConfig, activation_dim: int) -> int:
    """What an SAE in training takes at least: weights, gradients and Adam's averages, float32."""
    copies_of_encoder = 4  # weights, gradients, and two averages
    copies_of_decoder = 1 if sae.freeze_decoder else 4
    return 4 * (copies_of_encoder + copies_of_decoder) * sae.dict_size * activation_dim


def free_bytes(device: str) -> int:
    """The free memory of the machine, or of its GPU."""
    if t.device(device).type == "cuda":
        return t.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def require_memory(
    run: RunConfig, saes: Iterable[SAEConfig], hooks: int = 1, processes: int = 1
) -> None:
    """Refuse a run that the device has too little memory for, or contexts that the model can't read.

    The estimate is a lower bound: what can be trained isn't refused.

    Arguments:
        hooks: how many hook points have a buffer.
        processes: how many train on this machine. On its CPU each has SAEs and buffers of its own.

    Raises: ConfigError, which says how much is needed for what; LanguageModelError if there is no
    such model.
    """
    parameters, width = _language_model(run)
    if (available := _all_bytes(run.device)) is None:
        return
    copies = processes if run.device == "cpu" else 1
    size = 2 if run.dtype == "bfloat16" else 4
    parts = [
        _Part(
            "SAE weights, gradients and optimizer",
            copies * sum(sae_bytes(each, width) for each in saes),
            ("lower ", Setting("dict_size")),
        ),
        _Part(
            "buffer",
            copies * hooks * _buffer_rows(run) * width * size,
            ("lower ", Setting("n_ctxs"), " or ", Setting("ctx_len")),
        ),
        _Part("language model", parameters * size, ("use a smaller ", Setting("model"))),
    ]
    if (needed := sum(part.bytes for part in parts)) > available:
        who = f"these {copies} processes need" if copies > 1 else "this run needs"
        where = "this machine" if run.device == "cpu" else run.device
        listed = ", ".join(f"{part.label} {in_words(part.bytes)}" for part in parts)
        raise ConfigError(
            f"{who} at least {in_words(needed)} of memory ({listed}), and {where} has"
            f" {in_words(available)}",
            instead=max(parts, key=lambda part: part.bytes).remedy,
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


def _buffer_rows(run: RunConfig) -> int:
    """Activations that are kept; a synthetic model's are drawn batch by batch."""
    return run.batch_size if is_synthetic(run.model) else run.n_ctxs * run.ctx_len


def _language_model(run: RunConfig) -> tuple[int, int]:
    """How many parameters the run's language model has, if it is needed, and the width of a row.

    Raises what `require_memory` does.
    """
    if is_synthetic(run.model):
        return 0, row_width(run)
    if run.activations is not None:
        is_needed = run.eval_tokens and open_stored(run.activations).manifest is not None
        if not is_needed:
            return 0, row_width(run)
    model: Any = empty_model(run.model)
    config = model.config.get_text_config()
    require_positions(run, config, ("use a shorter ", Setting("ctx_len")))
    is_quantized = getattr(config, "quantization_config", None) is not None
    parameters = 0 if is_quantized else sum(each.numel() for each in model.parameters())
    return parameters, config.hidden_size


def _all_bytes(device: str) -> int | None:
    """The memory of a device, used or not. None if it is of another kind, or isn't there."""
    if device == "cpu":
        return psutil.virtual_memory().total
    there = ["cuda", *(f"cuda:{i}" for i in range(t.cuda.device_count()))]
    if t.cuda.is_available() and device in there:
        return t.cuda.get_device_properties(device).total_memory
    return None
