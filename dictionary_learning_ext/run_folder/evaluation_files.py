"""What an evaluation was measured on, and which file it goes to. Imports no torch."""

from pathlib import Path
from typing import Any

from ..config.run import RunConfig
from ..errors import CheckpointError
from .matching import STORED, same_setting
from .names import evaluation
from .reading import read_metrics_if_any

MEASURED_ON = (
    "model",
    "hook",
    "data",
    "text_packing",
    "ctx_len",
    "dtype",
    "remove_bos",
    "max_norm_multiple",
)
"""The settings that SAEs must share to be measured together."""


def measured_on(run: RunConfig) -> dict[str, Any]:
    """The settings that determine the held-out activations that an SAE is measured on.

    A cache holds other tokens than the language model is given, so where they are read from is one.
    """
    return {name: getattr(run, name) for name in (*MEASURED_ON, STORED)}


def former_evaluation(folder: Path) -> dict[str, Any]:
    """A folder's metrics.json. Empty if there is none, or a damaged one, which is written again."""
    try:
        former = read_metrics_if_any(folder)
    except CheckpointError:
        return {}
    return former if isinstance(former, dict) else {}


def evaluation_file(
    folder: Path, config: dict[str, Any], run: RunConfig, tokens: int, metrics: dict[str, Any]
) -> Path:
    """Where an evaluation is written: metrics.json, or beside it if its settings are others.

    Arguments:
        config: the content of the folder's config.json.
        run: what was measured on.
        tokens: how many were asked for.
        metrics: what was measured. It names the step of a checkpoint.
    """
    of_step = {"step": metrics["step"]} if "step" in metrics else {}
    return evaluation(folder, of_step | _other_settings(folder, config, run, tokens, metrics))


def _other_settings(
    folder: Path, config: dict[str, Any], run: RunConfig, tokens: int, metrics: dict[str, Any]
) -> dict[str, Any]:
    """In which settings an evaluation differs from the folder's own, and how.

    Its own is the one in metrics.json, or else the one that its training would have ended with.
    """
    now = measured_on(run)
    settings = config.get("run", {}).get("settings", {})
    if former := former_evaluation(folder):
        own = former.get("measured_on", {}) | {"tokens": former.get("tokens")}
        # Tokens are rounded up to whole batches.
        same_tokens = own["tokens"] in (None, tokens, metrics["tokens"])
    else:
        own = settings | {"tokens": settings.get("eval_tokens")}
        same_tokens = own["tokens"] in (None, 0, tokens)
    differing = {
        name: "none" if name == STORED and value is None else value
        for name, value in now.items()
        if name in own and not same_setting(name, own[name], value)
    }
    return differing | ({} if same_tokens else {"tokens": metrics["tokens"]})
