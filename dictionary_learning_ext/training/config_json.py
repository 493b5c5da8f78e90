"""What a run writes into its config.json."""

import importlib.metadata
import time
from typing import Any

from .sae_run import SAERun


def config_json(one: SAERun, buffer: dict[str, Any]) -> dict[str, Any]:
    """The config.json: upstream's "trainer" and "buffer", and all that is needed to train it again."""
    return {
        "trainer": one.trainer.config | {"norm_factor": one.norm_factor},
        "buffer": buffer,
        "run": {
            "settings": one.config.to_dict(),
            "norm_factor": one.norm_factor,
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        },
    }


def versions() -> dict[str, str]:
    """The packages whose versions decide the last digits of a result."""
    packages = (
        "dictionary-learning-ext",
        "dictionary-learning",
        "numpy",
        "torch",
        "transformers",
        "nnsight",
    )
    return {name: importlib.metadata.version(name) for name in packages}
