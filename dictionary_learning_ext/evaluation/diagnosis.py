"""What is wrong with a trained SAE, by its metrics, and which flag to change. Imports no torch.

To add a symptom, add a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config.sae_config import SAEConfig


@dataclass(frozen=True)
class Symptom:
    """One row. `is_there` looks at a value of metrics.json, which is not null, and the settings."""

    metric: str
    """Its key in metrics.json."""
    is_there: Callable[[float, SAEConfig], bool]
    text: str
    """What it means and what to change. {value} stands for the metric's value."""


_ROWS = (
    Symptom(
        "noise_to_signal",
        lambda ratio, sae: ratio > 0.3 and sae.noise_anneal_steps is None,
        "The sampling noise has {value:.2f} of the activations' energy and stays on. Use "
        "--posterior fixed with --noise-to-signal 0.1, and --noise-anneal-steps.",
    ),
    Symptom(
        "fve",
        lambda fve, sae: fve < 0.5,
        "FVE is {value:.2f}: the reconstruction explains less than half of the variance. Start from "
        "--preset recommended, or raise --steps or --k.",
    ),
    Symptom(
        "frac_recovered",
        lambda recovered, sae: recovered < 0.5,
        "CE recovered is {value:.2f}: with the reconstruction the language model loses more than "
        "half of what this layer gives it. Raise --steps or --k, or try --max-norm-multiple 10.",
    ),
    Symptom(
        "alive",
        lambda alive, sae: alive <= 0.75,
        "Only {value:.0%} of the features were selected in the held-out tokens. Lower --dict-size or "
        "--lr, or raise --steps or --auxk-alpha.",
    ),
)


def symptoms(metrics: Mapping[str, Any], sae: SAEConfig) -> list[str]:
    """A sentence or two on everything that is wrong; empty for a good SAE."""
    return [
        row.text.format(value=metrics[row.metric])
        for row in _ROWS
        if metrics.get(row.metric) is not None and row.is_there(metrics[row.metric], sae)
    ]
