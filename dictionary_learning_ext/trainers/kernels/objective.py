"""What one training step of a vSAE minimises: its parameters, the objective, and the loss's parts.

    mu_BF = W_enc (x - b_dec) + b_enc                     (then ReLU if rectify)
    I, v  = the K selected features and their values: see `selection.draw_code`
    x_hat = W_dec f + b_dec,  f = v on I, 0 elsewhere
    loss  = mean_B ||x - x_hat||^2 + kl_weight mean_B sum_{i in S} KL_i + auxk_alpha aux

S is all features, or I. `forward.py` computes the loss, `backward.py` its gradients, and `loss.py`
offers both to trainers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch as t

from ...config.sae import ObjectiveOptions, PosteriorOptions
from .ranks import ALONE, Ranks
from .step_form import StepForm


class Weights(NamedTuple):
    """The parameters of a vSAE, in upstream's shapes. Only a learned sigma has the last two."""

    W_enc_FD: t.Tensor
    b_enc_F: t.Tensor
    W_dec_DF: t.Tensor
    b_dec_D: t.Tensor
    W_var_FD: t.Tensor | None = None
    b_var_F: t.Tensor | None = None


@dataclass(frozen=True)
class StepObjective:
    """What one step minimises. Plain numbers are known on the host; tensors stay on the device."""

    k: int
    posterior: PosteriorOptions
    options: ObjectiveOptions
    kl_weight: float
    """beta s(t)"""
    noise_scale: float
    """tau(t)"""
    auxk_alpha: float
    top_k_aux: int
    """how many dead features AuxK takes per row"""
    dead_feature_threshold: int
    """tokens without firing after which a feature is dead"""
    matmul_dtype: t.dtype
    sigma: t.Tensor
    """of the fixed posterior, 0-dim; in the activations' units, like prior_std"""
    prior_std: t.Tensor
    """0-dim"""
    log_var_limits: t.Tensor | None
    """the lower and the upper limit of a learned posterior's log-variance"""
    tokens_since_fired_F: t.Tensor
    """before this batch"""
    generator: t.Generator
    form: StepForm
    """how the step is computed; the numbers do not depend on it, up to rounding"""
    ranks: Ranks = ALONE
    """the processes that share the batch: its statistics are of all rows, the loss of this rank's"""
    measures_kl: bool = True
    """whether the KL is asked for, for the log or the gradient; without it `kl_loss` is 0"""

    @property
    def kl_std(self) -> t.Tensor | None:
        """sigma in the KL, where it is the same for all, 0-dim; else None."""
        return self.sigma if self.posterior.posterior == "fixed" else None


class LossTerms(NamedTuple):
    """The loss and its parts: 0-dim, but those that end in _F are (F,). Only `loss` has a gradient."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """mean over the batch of ||x - x_hat||^2"""
    kl_loss: t.Tensor
    """nats per token, before beta and s(t); see `StepObjective.measures_kl`"""
    auxk_loss: t.Tensor
    """AuxK's loss, relative to the residual's variance, before auxk_alpha"""
    mean_threshold: t.Tensor
    """each row's smallest positive selected mean, or magnitude (see `PosteriorOptions.select_by`),
    averaged over rows; NaN if no row has one. This and what follows is of the rows of all ranks"""
    tokens_since_fired_F: t.Tensor
    """after this batch; a feature fires when it is selected by the mean"""
