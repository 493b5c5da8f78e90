"""Synthetic models: `--model synthetic:NAME` draws activations from known features.

NAME is a row of SYNTHETIC_MODELS, or a model that SAELens has saved: a folder, or a repository on the hub. Imports no
torch.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError, first_line
from .checks import did_you_mean

_PREFIX = "synthetic:"
NO_HOOK = "none"
"""The hook point of a run on a synthetic model, which has none."""
_CONFIG = "synthetic_model_config.json"
_SAVED = [_CONFIG, "synthetic_model.safetensors", "hierarchy.json"]
"""The files that SAELens's `SyntheticModel.save` writes; the last one only if features have a hierarchy."""


@dataclass(frozen=True)
class SyntheticSettings:
    """The settings of a synthetic model of SAELens's `sae_lens.synthetic`.

    An activation is the sum of the directions of the features that fire, each times its magnitude,
    plus a bias and Gaussian noise.
    """

    config: dict[str, Any]
    """SAELens's `SyntheticModelConfig` as a dict. Its seed decides the model; a run's seeds don't."""
    noise_std: float = 0.0
    """Standard deviation per dimension of the noise that is added to SAELens's activations."""
    folder: Path | None = None
    """The folder in which SAELens has saved the model. None: the model is drawn."""

    @property
    def features(self) -> int:
        """The number of true features."""
        return self.config["num_features"]

    @property
    def width(self) -> int:
        """D, the width of an activation."""
        return self.config["hidden_dim"]


_SMALL: dict[str, Any] = {
    "num_features": 1024,
    "hidden_dim": 128,
    "firing_probability": {
        "generator_name": "zipfian",
        "exponent": 0.5,
        "max_prob": 0.2,
        "min_prob": 2e-3,
    },
    "hierarchy": {
        "total_root_nodes": 32,
        "branching_factor": 4,
        "max_depth": 2,
        "mutually_exclusive_portion": 0.5,
        "compensate_probabilities": True,
    },
    "correlation": {"rank": 16, "correlation_scale": 0.1},
    "std_firing_magnitudes": 0.3,
    "bias": 1.0,
    "seed": 0,
}
_LARGE = _SMALL | {
    "num_features": 4096,
    "hidden_dim": 512,
    "firing_probability": _SMALL["firing_probability"] | {"min_prob": 5e-4},
    "hierarchy": _SMALL["hierarchy"] | {"total_root_nodes": 128},
    "correlation": {"rank": 32, "correlation_scale": 0.1},
}
_BENCH_16K: dict[str, Any] = {
    # SynthSAEBench-16k (Chanin & Garriga-Alonso 2026, arXiv 2602.14687), version 2, by its published configuration.
    # Version 1 was uploaded without scale_children_by_parent.
    "num_features": 16_384,
    "hidden_dim": 768,
    "firing_probability": {
        "generator_name": "zipfian",
        "exponent": 0.5,
        "max_prob": 0.4,
        "min_prob": 5e-4,
    },
    "hierarchy": {
        "total_root_nodes": 128,
        "branching_factor": 4,
        "max_depth": 3,
        "mutually_exclusive_portion": 1.0,
        "mutually_exclusive_min_depth": 0,
        "compensate_probabilities": True,
        "scale_children_by_parent": True,
    },
    "orthogonalization": {"num_steps": 100, "lr": 3e-4},
    "correlation": {"rank": 25, "correlation_scale": 0.1},
    "mean_firing_magnitudes": {"generator_name": "linear", "start": 5.0, "end": 4.0},
    "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5},
    "bias": 0.5,
    "seed": 42,
}
SYNTHETIC_MODELS = {
    "small": SyntheticSettings(_SMALL, noise_std=0.06),
    "large": SyntheticSettings(_LARGE, noise_std=0.03),
    "bench-16k": SyntheticSettings(_BENCH_16K),
}
"""The synthetic models with a name, by the part after `synthetic:`."""


def is_synthetic(model: str) -> bool:
    """Whether --model names a synthetic model."""
    return model.startswith(_PREFIX)


def synthetic_settings(model: str) -> SyntheticSettings:
    """The settings of `synthetic:NAME`: its row, or those of a model that SAELens has saved.

    Raises: ConfigError if there is no such model.
    """
    name = model.removeprefix(_PREFIX)
    if name in SYNTHETIC_MODELS:
        return SYNTHETIC_MODELS[name]
    folder = Path(name)
    owner, _, repository = name.partition("/")
    is_of_the_hub = repository and "/" not in repository and owner != "runs"
    if is_of_the_hub and not Path(owner).exists():
        folder = _from_hub(model)
    path = folder / _CONFIG
    if not path.is_file():
        known = [_PREFIX + row for row in SYNTHETIC_MODELS]
        raise ConfigError(
            name="model",
            value=model,
            expected=f"one of {', '.join(known)}, or {_PREFIX}PATH of a folder or a repository on the hub that"
            f" SAELens's SyntheticModel.save wrote, with a {_CONFIG}{did_you_mean(model, known)}",
        )
    return SyntheticSettings(json.loads(path.read_text(encoding="utf-8")), folder=folder)


@cache
def _from_hub(model: str) -> Path:
    """Download a model from the hub. Returns its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # Whether the HTTP library's errors are OSErrors depends on huggingface_hub's version.
    unreachable: Any = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        return Path(snapshot_download(model.removeprefix(_PREFIX), allow_patterns=_SAVED))
    except unreachable as error:
        raise ConfigError(
            name="model",
            value=model,
            expected=f"a folder that is there, or a repository that can be reached ({first_line(error)})",
        ) from error


def settings_of_run(model: str) -> dict[str, Any]:
    """The settings that a run on a synthetic model must have.

        run = RunConfig(**settings_of_run("synthetic:small"), steps=1000)

    Raises: ConfigError if there is no such model.
    """
    synthetic_settings(model)
    return {
        "model": model,
        "hook": NO_HOOK,
        "data": model,
        "activations": None,
        "max_norm_multiple": None,
        "remove_bos": False,
    }


def require_synthetic_run(run: Any) -> None:
    """Raise a ConfigError if a RunConfig on a synthetic model has settings of a text or a hook point."""
    for name, expected in settings_of_run(run.model).items():
        if (given := getattr(run, name)) != expected:
            raise ConfigError(
                f"{run.model} has no text, tokens or hook points",
                name=name,
                value=given,
                instead=f"leave it out, or in Python start from settings_of_run({run.model!r})",
            )
