"""The named choices of a variational SAE and the ranges of its numbers. Imports no torch.

The model, the trainer and the command line all check what they are given by these classes, so that
a mistake gets the same message everywhere.
"""

import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import ConfigError

Posterior = Literal["fixed", "learned", "point"]
NoiseOn = Literal["both", "values", "selection"]
KLScope = Literal["all", "selected"]
KLSchedule = Literal["constant", "linear", "cosine", "cyclical"]
Dtype = Literal["float32", "bfloat16"]
Packing = Literal["pack", "truncate"]
Split = Literal["train", "heldout"]
ExportFormat = Literal["sae-bench", "dictionary-learning", "sae-lens", "safetensors"]

POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)
NOISE_ON: tuple[NoiseOn, ...] = get_args(NoiseOn)

LOG_VAR_LIMITS = (-10.0, 4.0)
"""What a learned posterior's log-variance is clamped to, in training units."""


def require(condition: bool, name: str, given: Any, expected: str) -> None:
    """Raise a ConfigError that says what `name` was and what it should have been."""
    if not condition:
        raise ConfigError(f"{name}={given!r}: expected {expected}")


def require_choice(name: str, given: Any, choices: Any) -> None:
    """Raise a ConfigError unless `given` is a member of the Literal `choices`."""
    require(given in get_args(choices), name, given, "one of " + ", ".join(get_args(choices)))


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value read from a file is of a field's type; a whole number passes as a float."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(is_of_type(value, member) for member in members)
    if origin is Literal:
        return value in members
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of_type(part, members[0]) for part in value)
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, hint)


def described(hint: Any) -> str:
    """A field's type in words."""
    members = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(described, members))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(members)}"
    if get_origin(hint) is tuple:
        return "a list of numbers"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "None")


@dataclass(frozen=True)
class PosteriorOptions:
    """What `VariationalTopKAutoEncoder` takes beyond upstream's arguments; see there."""

    posterior: Posterior = "fixed"
    sigma: float = 1.0
    log_var_init: float = -2.0
    noise_on: NoiseOn = "both"
    rectify: bool = False
    prior_std: float = 1.0

    def __post_init__(self):
        require_choice("posterior", self.posterior, Posterior)
        require_choice("noise_on", self.noise_on, NoiseOn)
        require(self.sigma > 0, "sigma", self.sigma, "above 0 (for no noise: posterior=point)")
        require(self.prior_std > 0, "prior_std", self.prior_std, "above 0")
        low, high = LOG_VAR_LIMITS
        is_inside = low <= self.log_var_init <= high
        require(is_inside, "log_var_init", self.log_var_init, f"between {low} and {high}")


@dataclass(frozen=True)
class VAEaseOptions:
    """What `VAEase` takes beyond upstream's arguments; see there."""

    log_var_init: float = -0.5
    gamma_init: float = 0.1
    prior_std: float = 1.0
    active_gate: float = 0.05

    def __post_init__(self):
        low = LOG_VAR_LIMITS[0]
        is_inside = low <= self.log_var_init < 0
        require(is_inside, "log_var_init", self.log_var_init, f"{low} or more, and below 0")
        for name in ("gamma_init", "prior_std"):
            given = getattr(self, name)
            require(0 < given < math.inf, name, given, "above 0")
        is_inside = 0 <= self.active_gate < 1
        require(is_inside, "active_gate", self.active_gate, "0 or more, and below 1")


@dataclass(frozen=True)
class ObjectiveOptions:
    """What `VariationalTopKTrainer` takes beyond the model's and upstream's; see there."""

    beta: float = 1.0
    kl_scope: KLScope = "all"
    kl_schedule: KLSchedule = "linear"
    kl_warmup_steps: int | None = None
    kl_cycle_steps: int | None = None
    free_bits: float = 0.0
    noise_anneal_steps: int | None = None
    auxk_alpha: float = 1 / 32
    dead_feature_threshold: int = 10_000_000
    dtype: Dtype = "float32"

    def __post_init__(self):
        for name in ("beta", "free_bits", "auxk_alpha"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require_choice("kl_scope", self.kl_scope, KLScope)
        require_choice("kl_schedule", self.kl_schedule, KLSchedule)
        require_choice("dtype", self.dtype, Dtype)
        for name in ("kl_warmup_steps", "kl_cycle_steps", "noise_anneal_steps"):
            given = getattr(self, name)
            require(given is None or given > 0, name, given, "above 0, or not given")
        threshold = self.dead_feature_threshold
        require(threshold > 0, "dead_feature_threshold", threshold, "above 0")
        if self.free_bits > 0:
            require(self.kl_scope == "all", "kl_scope", self.kl_scope, "all, as free_bits > 0")
