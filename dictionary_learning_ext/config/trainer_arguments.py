"""The options that trainers and dictionaries take as `**options`, for type checkers.

Each option's default, check and help are at its field in sae.py. A test holds the names and types here
against those.
"""

from typing import Any, TypedDict

from .sae import KLSchedule, KLScope, NoiseOn, Posterior, SelectBy


class PosteriorArguments(TypedDict, total=False):
    """See `PosteriorOptions`."""

    posterior: Posterior
    sigma: float | None
    log_var_init: float
    noise_on: NoiseOn
    rectify: bool
    select_by: SelectBy
    prior_std: float


class TopKArguments(TypedDict, total=False):
    """What our trainers of SAEs with a k take beyond upstream's."""

    k_anneal_steps: int | None
    dead_feature_threshold: int | None


class VSAEArguments(PosteriorArguments, TopKArguments, total=False):
    """See `VSAETopKConfig`."""

    beta: float
    kl_scope: KLScope
    kl_schedule: KLSchedule
    kl_warmup_steps: int | None
    noise_anneal_steps: int | None
    freeze_decoder: bool


class ProbabilisticTopKArguments(TopKArguments, total=False):
    """See `ProbabilisticTopKConfig`."""

    temperature_start: float
    temperature_end: float


class VAEaseArguments(TypedDict, total=False):
    """See `VAEaseConfig`."""

    log_var_init: float
    gamma_init: float
    prior_std: float
    active_gate: float


def require_known(options: Any, arguments: type, caller: str) -> None:
    """Raise a TypeError, as Python does, for an option that isn't one of these arguments."""
    for name in options.keys() - arguments.__annotations__.keys():
        raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")
