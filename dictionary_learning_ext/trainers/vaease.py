"""VAEase: a variational autoencoder whose posterior's standard deviations gate its features.

"Sparse Autoencoders, Again?" (Lu, Zhu, He & Wipf 2025, arXiv 2506.04859), with linear encoder and
decoder.
"""

import math
from dataclasses import fields
from typing import Any, NamedTuple

import torch as t
from dictionary_learning.trainers.trainer import set_decoder_norm_to_unit_norm
from torch import nn
from torch.nn import functional

from ..config.checks import require_sizes
from ..config.sae import VAEaseConfig, VAEaseOptions
from .base import SamplingTrainer
from .dictionaries import OwnDictionary, nonzero_norms, require_scale, require_width
from .matmuls import product
from .posterior import GatedPosterior


class VAEase(OwnDictionary):
    """A VAE whose features are multiplied by 1 - sigma/p, so that each token has its own sparsity.

        mu_BF    = W_enc (x - b_dec) + b_enc
        sigma_BF = p sqrt(sigmoid(raw)),  raw = W_var (x - b_dec) + b_var      # at most p
        z_BF     = mu + sigma * eps,  eps ~ N(0, I)           # z = mu unless sampled
        f_BF     = (1 - sigma/p) z
        x_hat    = W_dec f + b_dec

    Where a feature says nothing about a token, its posterior is the prior and its gate 1 - sigma/p is 0. In
    floating point it is only nearly 0. So a feature counts as *active* on a token if its gate exceeds
    `active_gate`; otherwise `encode` returns an exact 0. (A gate of 0.05 means 0.90 of the prior's variance. The
    paper, too, counts dimensions whose variance is not near 1.) The training loss uses all features.

    Activations may be negative. As in the paper, decoder columns are not constrained: the KL fixes the scale of mu,
    so a small code with a large decoder gains nothing. `normalize_decoder` makes the columns unit-norm after
    training.

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        others: see `VAEaseOptions`. With log_var_init = -0.5 the gates start at 0.22: open, but not so far that F > D
            features overshoot x at first. gamma, which only the trainer's loss uses, should start near its final
            value.

    Raises: ConfigError for a value out of range.
    """

    prior_std: t.Tensor
    active_gate: t.Tensor

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        *,
        log_var_init: float = VAEaseOptions.log_var_init,
        gamma_init: float = VAEaseOptions.gamma_init,
        prior_std: float = VAEaseOptions.prior_std,
        active_gate: float = VAEaseOptions.active_gate,
    ):
        super().__init__()
        require_sizes(activation_dim=activation_dim, dict_size=dict_size)
        given = VAEaseOptions(
            log_var_init=log_var_init,
            gamma_init=gamma_init,
            prior_std=prior_std,
            active_gate=active_gate,
        )
        self.activation_dim, self.dict_size = activation_dim, dict_size
        # Weights start as upstream's TopK: random unit columns, and the encoder their transpose.
        self.decoder = nn.Linear(dict_size, activation_dim, bias=False)
        set_decoder_norm_to_unit_norm(self.decoder.weight, activation_dim, dict_size)  # pyright: ignore
        self.encoder = nn.Linear(activation_dim, dict_size)
        self.encoder.weight.data = self.decoder.weight.data.T.clone()
        self.encoder.bias.data.zero_()
        self.b_dec = nn.Parameter(t.zeros(activation_dim))
        self.variance_encoder = nn.Linear(activation_dim, dict_size)
        self.variance_encoder.weight.data.zero_()
        logit = given.log_var_init - math.log(-math.expm1(given.log_var_init))
        self.variance_encoder.bias.data.fill_(logit)
        self.log_gamma = nn.Parameter(t.tensor(math.log(given.gamma_init)))
        self.register_buffer("prior_std", t.full((dict_size,), float(given.prior_std)))
        self.register_buffer("active_gate", t.tensor(float(given.active_gate)))

    def posterior(self, x: t.Tensor, matmul_dtype: t.dtype | None = None) -> GatedPosterior:
        """The posterior of each feature: (…, D) -> (…, F).

        Arguments:
            x: activations of any float dtype, in the model's units.
            matmul_dtype: the dtype of matmuls. Default: the parameters'.
        """
        centred = self._centred(x)
        mu, raw = (
            product(centred, linear.weight, matmul_dtype) + linear.bias
            for linear in (self.encoder, self.variance_encoder)
        )
        return GatedPosterior(mu, functional.logsigmoid(raw), self.prior_std)

    def encode(
        self, x: t.Tensor, *, sample: bool = False, generator: t.Generator | None = None
    ) -> t.Tensor:
        """The gated features of `x`, 0 if not active: (B, D) -> (B, F), (B, L, D) -> (B, L, F).

        Arguments:
            x: see `posterior`.
            sample: use a sample of the posterior instead of its mean.
            generator: for the sample's noise. Default: torch's own generator.
        """
        require_width(x, self.activation_dim)
        posterior = self.posterior(x)
        gate = posterior.gate
        z = posterior.sample(generator) if sample else posterior.mu
        return gate * z * (gate > self.active_gate)

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        """Change the units of activations by a factor.

        Afterwards encode(scale * x) is scale times the former encode(x), sampled or not. Gates and KL stay the same.
        The loss grows by D log(scale^2).

        Raises: ConfigError unless `scale` is positive.
        """
        require_scale(scale)
        for quantity in (self.encoder.bias, self.b_dec, self.prior_std):
            quantity.mul_(scale)
        self.variance_encoder.weight.div_(scale)
        self.log_gamma.add_(2 * math.log(scale))

    @t.no_grad()
    def normalize_decoder(self) -> None:
        """Make the decoder's columns unit-norm. Reconstructions, gates and KL stay the same.

        A feature's activations and prior_std are multiplied by its column's former norm. Zero columns stay.
        """
        norm_F = nonzero_norms(self.decoder.weight)
        self.decoder.weight.div_(norm_F)
        self.encoder.weight.mul_(norm_F[:, None])
        for quantity_F in (self.encoder.bias, self.prior_std):
            quantity_F.mul_(norm_F)


class ELBOTerms(NamedTuple):
    """The loss of a batch and its parts, means over tokens."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """||x - x_hat||^2"""
    kl_loss: t.Tensor
    """nats over all features"""


class VAEaseTrainer(SamplingTrainer):
    """Trains a VAEase with the paper's loss, which has no weight to tune.

        loss = mean_B( ||x - x_hat||^2 / gamma + D log gamma + 2 sum_j KL_j )
        2 KL_j = sigma_j^2/p^2 + mu_j^2/p^2 - 1 - log(sigma_j^2/p^2)

    This is -2 times the evidence lower bound, without its constant D log(2 pi). x_hat comes from one
    sample per token. gamma > 0 is learned; its optimum is mean ||x - x_hat||^2 / D.

    What the paper leaves open is as in upstream's TopK trainer: initial weights, decoder bias
    (the geometric median of the first batch), clipping to 1, Adam, learning-rate schedule. A step
    whose loss or gradient is not finite is skipped, and counted in `optimizer.skipped_steps`.

    Arguments beyond upstream's:
        options: the others of `VAEaseConfig`, and those below. None: the default, except where none is a value.
        dict_class: VAEase or a subclass. Upstream's AutoEncoderTopK is ignored, with a warning.
        dtype: "float32", or "bfloat16" for matmuls in bf16. Parameters, optimiser, sums and KL stay
            in fp32. An autocast around the call changes nothing.
        first_fill: activations (N, D) to start from, see `start_from_data`. Default: random weights.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    settings_class = VAEaseConfig
    dictionary_class = VAEase
    draws_noise_seed = True
    ae: VAEase

    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        layer: int,
        lm_name: str,
        dict_class: type | None = None,
        lr: float | None = None,
        **options: Any,
    ):
        options |= {"dict_size": dict_size, "lr": lr}
        super().__init__(steps, activation_dim, layer, lm_name, dict_class, **options)

    def _built_with(self) -> dict[str, Any]:
        return {each.name: getattr(self.settings, each.name) for each in fields(VAEaseOptions)}

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> ELBOTerms:
        ae = self.ae
        posterior = ae.posterior(x, self._matmul_dtype)
        f_BF = posterior.gate * posterior.sample(generator)
        x_hat = product(f_BF, ae.decoder.weight, self._matmul_dtype) + ae.b_dec
        l2_loss = (x - x_hat).square().sum(-1).mean()
        kl_loss = posterior.kl.sum(-1).mean()
        log_scale = ae.activation_dim * ae.log_gamma
        loss = l2_loss * (-ae.log_gamma).exp() + log_scale + 2 * kl_loss
        return ELBOTerms(loss, l2_loss, kl_loss)

    def _logged(self, terms: ELBOTerms, x: t.Tensor) -> dict[str, t.Tensor]:
        posterior = self.ae.posterior(x)
        is_active_BF = posterior.gate > self.ae.active_gate
        return super()._logged(terms, x) | {
            "gamma": self.ae.log_gamma.exp(),
            "active_dims": is_active_BF.sum(-1).to(x.dtype).mean(),
            "mean_sigma": posterior.std.mean(),
        }
