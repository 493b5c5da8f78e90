"""Synthetic models: `--model synthetic:NAME` draws activations whose true features are known.

To add one, add a row to SYNTHETIC_MODELS. Imports no torch.
"""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from .checks import require_choice

_PREFIX = "synthetic:"
NO_HOOK = "none"
"""The hook point of a run on a synthetic model, which has none."""


@dataclass(frozen=True)
class SyntheticSettings:
    """What a model of SAELens's `sae_lens.synthetic` is made from.

    An activation is the sum of the directions of the features that fire, each times its magnitude,
    plus a bias and Gaussian noise.
    """

    features: int
    """True features. Their directions are random unit vectors."""
    width: int
    """D, the width of an activation."""
    most_often: float
    """The probability of the most frequent feature."""
    least_often: float
    """The probability of the rarest."""
    zipf_exponent: float
    """Probabilities fall with the rank's power of this."""
    trees: int
    """Features in a tree fire only if their parent does. Their own probability is raised to make up
    for it."""
    children: int
    """Of each parent."""
    depth: int
    """Of each tree, below its root."""
    exclusive: float
    """The share of parents whose children exclude each other."""
    correlation_rank: int
    """Of the correlation between firings."""
    correlation_scale: float
    magnitude_std: float
    """Of a firing feature's magnitude, whose mean is 1."""
    noise_std: float
    """Of the Gaussian noise, in each dimension."""
    bias: float
    """The norm of what is added to every activation."""
    seed: int
    """Makes the model. A run's seeds don't change it."""


_SMALL = SyntheticSettings(
    features=1024,
    width=128,
    most_often=0.2,
    least_often=2e-3,
    zipf_exponent=0.5,
    trees=32,
    children=4,
    depth=2,
    exclusive=0.5,
    correlation_rank=16,
    correlation_scale=0.1,
    magnitude_std=0.3,
    noise_std=0.06,
    bias=1.0,
    seed=0,
)
SYNTHETIC_MODELS = {
    "small": _SMALL,
    "large": replace(
        _SMALL,
        features=4096,
        width=512,
        least_often=5e-4,
        trees=128,
        correlation_rank=32,
        noise_std=0.03,
    ),
}
"""By the name after `synthetic:`."""


def is_synthetic(model: str) -> bool:
    """Whether a --model is a synthetic one."""
    return model.startswith(_PREFIX)


def synthetic_settings(model: str) -> SyntheticSettings:
    """The row of `synthetic:NAME`. Raises ConfigError if there is none."""
    require_choice("model", model, [_PREFIX + name for name in SYNTHETIC_MODELS])
    return SYNTHETIC_MODELS[model.removeprefix(_PREFIX)]


def settings_of_run(model: str) -> dict[str, Any]:
    """The settings of a run that follow from its synthetic model. Raises ConfigError.

    run = RunConfig(**settings_of_run("synthetic:small"), steps=1000)
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
    """Raise a ConfigError if a run on a synthetic model has a setting that it has no use for.

    Arguments:
        run: a RunConfig.
    """
    for name, expected in settings_of_run(run.model).items():
        if (given := getattr(run, name)) != expected:
            raise ConfigError(
                f"{run.model} has no text, tokens or hook points",
                name=name,
                value=given,
                instead=f"leave it out, or in Python start from settings_of_run({run.model!r})",
            )
