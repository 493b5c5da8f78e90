"""The arguments of our constructors, for type checkers. Written by tests/helpers/written_arguments.py from config/sae.py
and base.py."""

from typing import TypedDict

from torch import Tensor

from ..config.run import Dtype
from ..config.sae import KLSchedule, KLScope, NoiseOn, Posterior, SelectBy
from .parts import Part


class TrainerArguments(TypedDict, total=False):
    dtype: Dtype
    seed: int | None
    device: str | None
    wandb_name: str | None
    submodule_name: str | None
    first_fill: Tensor | None


class TopKTrainerArguments(TrainerArguments, total=False):
    threshold_beta: float
    threshold_start_step: int
    mean_squared_norm: float
    part: Part


class PosteriorArguments(TypedDict, total=False):
    posterior: Posterior
    log_var_init: float
    noise_on: NoiseOn
    rectify: bool
    select_by: SelectBy
    prior_std: float


class VSAETopKArguments(TopKTrainerArguments, total=False):
    warmup_steps: int
    decay_start: int | None
    auxk_alpha: float
    dead_feature_threshold: int
    beta: float
    kl_scope: KLScope
    kl_schedule: KLSchedule
    kl_warmup_steps: int
    noise_anneal_steps: int | None
    posterior: Posterior
    log_var_init: float
    noise_on: NoiseOn
    rectify: bool
    select_by: SelectBy
    prior_std: float
    sigma: float | None
    noise_to_signal: float


class VAEaseArguments(TypedDict, total=False):
    log_var_init: float
    gamma_init: float
    prior_std: float
    active_gate: float


class VAEaseTrainerArguments(TrainerArguments, total=False):
    warmup_steps: int
    decay_start: int | None
    log_var_init: float
    gamma_init: float
    prior_std: float
    active_gate: float


class VSAEAsPublishedArguments(TrainerArguments, total=False):
    warmup_steps: int
    decay_start: int | None
    beta: float
    kl_warmup_steps: int


class ProbabilisticTopKArguments(TopKTrainerArguments, total=False):
    warmup_steps: int
    decay_start: int | None
    auxk_alpha: float
    dead_feature_threshold: int
    temperature_start: float
    temperature_end: float
