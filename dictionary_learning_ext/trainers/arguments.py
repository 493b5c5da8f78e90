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
    warmup_steps: int
    decay_start: int | None


class TopKTrainerArguments(TrainerArguments, total=False):
    threshold_beta: float
    threshold_start_step: int
    mean_squared_norm: float
    part: Part
    auxk_alpha: float
    dead_feature_threshold: int


class PosteriorArguments(TypedDict, total=False):
    posterior: Posterior
    log_var_init: float
    noise_on: NoiseOn
    prior_std: float


class TopKPosteriorArguments(PosteriorArguments, total=False):
    rectify: bool
    select_by: SelectBy


class VSAEBatchTopKArguments(TopKTrainerArguments, PosteriorArguments, total=False):
    beta: float
    kl_scope: KLScope
    kl_schedule: KLSchedule
    kl_warmup_steps: int
    noise_anneal_steps: int | None
    sigma: float | None
    noise_to_signal: float


class VSAETopKArguments(VSAEBatchTopKArguments, TopKPosteriorArguments, total=False):
    pass


class VAEaseArguments(TypedDict, total=False):
    log_var_init: float
    gamma_init: float
    prior_std: float
    active_gate: float


class VAEaseTrainerArguments(TrainerArguments, VAEaseArguments, total=False):
    pass


class VSAEAsPublishedArguments(TrainerArguments, total=False):
    beta: float
    kl_warmup_steps: int


class ProbabilisticTopKArguments(TopKTrainerArguments, total=False):
    temperature_start: float
    temperature_end: float
