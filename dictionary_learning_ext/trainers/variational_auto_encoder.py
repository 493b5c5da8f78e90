"""The dictionary of a variational TopK sparse autoencoder (vSAE): its parameters and its encoder.

From "Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, on top of upstream's
TopK (Gao et al. 2024, arXiv 2406.04093). Shapes: B batch, D activation_dim, F dict_size, K = k. It is
trained by `variational_top_k.VariationalTopKTrainer`.
"""

import math
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import nn

from ..config.checks import require_sizes, require_type
from ..config.sae import (
    LOG_VAR_LIMITS,
    NOISE_ON,
    POSTERIORS,
    SELECT_BY,
    NoiseOn,
    Posterior,
    PosteriorOptions,
    SelectBy,
)
from ..errors import CheckpointError, ConfigError
from .base import FromState, require_scale
from .kernels.select import compared, draw_code
from .kernels.step import Weights
from .posterior import GaussianPosterior


class VariationalTopKAutoEncoder(FromState, AutoEncoderTopK):
    """A TopK SAE with a Gaussian posterior N(mu, sigma^2) for each feature.

        mu_BF    = W_enc (x - b_dec) + b_enc          # then ReLU if rectify
        z_BF     = mu + sigma * eps,  eps ~ N(0, I)   # z = mu unless sampled
        f_BF     = z on the K largest of z, 0 elsewhere
        x_hat_BD = W_dec f + b_dec                    # decoder columns are unit-norm

    sigma is a constant (posterior "fixed"), 0 ("point"), or exp(log_var / 2) with log_var = W_var
    (x - b_dec) + b_var, clamped ("learned"). A sample changes which features are kept and their
    values (noise_on "both", as above), only the values ("values": f is z on the K largest of mu), or
    only which are kept ("selection": f is mu on the K largest of z). With select_by "magnitude" the K
    largest of |z| or |mu| are kept, with their signs.

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: K, the features kept per token. k = dict_size is the purely variational SAE.
        posterior, sigma, log_var_init, noise_on, rectify, select_by, prior_std: see
            `PosteriorOptions`.

    Raises: ConfigError for a value out of range.
    """

    in_state = (
        "encoder.weight",
        "k",
        "posterior_code",
        "noise_on_code",
        "rectify_code",
        "select_by_code",
    )

    k: t.Tensor
    sigma: t.Tensor
    prior_std: t.Tensor
    select_by_code: t.Tensor
    log_var_encoder: nn.Linear
    log_var_limits: t.Tensor

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        k: int,
        *,
        posterior: Posterior = "fixed",
        sigma: float = 1.0,
        log_var_init: float = -2.0,
        noise_on: NoiseOn = "both",
        rectify: bool = False,
        select_by: SelectBy = "value",
        prior_std: float = 1.0,
    ):
        require_sizes(activation_dim=activation_dim, dict_size=dict_size, k=k)
        require_type("sigma", sigma, float)
        PosteriorOptions(
            posterior=posterior,
            sigma=sigma,
            log_var_init=log_var_init,
            noise_on=noise_on,
            rectify=rectify,
            select_by=select_by,
            prior_std=prior_std,
        )  # checks them
        super().__init__(activation_dim, dict_size, k)
        # Stored feature by feature: the step's products read one feature's weights at a time.
        self.decoder.weight.data = self.decoder.weight.data.t().contiguous().t()
        self.encoder.weight.data = self.encoder.weight.data.contiguous()

        self.posterior_kind: Posterior = posterior
        self.noise_on: NoiseOn = noise_on
        self.rectify = rectify
        self.select_by: SelectBy = select_by
        sigma = sigma if posterior == "fixed" else 0.0
        self.register_buffer("posterior_code", t.tensor(POSTERIORS.index(posterior)))
        self.register_buffer("noise_on_code", t.tensor(NOISE_ON.index(noise_on)))
        self.register_buffer("rectify_code", t.tensor(rectify))
        self.register_buffer("select_by_code", t.tensor(SELECT_BY.index(select_by)))
        self.register_buffer("sigma", t.tensor(float(sigma)))
        self.register_buffer("prior_std", t.tensor(float(prior_std)))
        if posterior == "learned":
            # Made without random numbers: the other weights are the same for every posterior.
            log_var_encoder: Any = nn.utils.skip_init(nn.Linear, activation_dim, dict_size)
            log_var_encoder.weight.data.zero_()
            log_var_encoder.bias.data.fill_(log_var_init)
            self.log_var_encoder = log_var_encoder
            self.register_buffer("log_var_limits", t.tensor(LOG_VAR_LIMITS))

    def encode(
        self,
        x: t.Tensor,
        return_topk: bool = False,
        use_threshold: bool = False,
        *,
        sample: bool = False,
        generator: t.Generator | None = None,
    ):
        """The features of `x`, dense: (B, D) -> (B, F), (B, L, D) -> (B, L, F).

        Arguments:
            x: activations of any float dtype, in the units that the SAE was trained in or scaled to.
            return_topk: return `(features, values_BK, indices_BK, mu_BF)` instead.
            use_threshold: keep every mean above the running threshold instead of the K largest. By
                magnitude: every mean whose magnitude is above it. The threshold is a running average
                of what the smallest kept one of a token is, in value or magnitude.
            sample: draw from the posterior instead of taking its mean.
            generator: the source of the sample's noise. Default: torch's own generator.

        Raises: ConfigError for `use_threshold` if the threshold was never set, or with `sample`.
        """
        centred = x.to(self.b_dec.dtype) - self.b_dec
        mu = self._mean(centred)
        if sample:
            noise = 0.0 if self.posterior_kind == "point" else 1.0
            std = (0.5 * self._log_var(centred)).exp() if self._is_learned else self.sigma
            drawn = (mu, std, int(self.k), self.noise_on, noise, generator)
            indices, values = draw_code(*drawn, select_by=self.select_by)
        else:  # nnsight's proxies can't be unpacked
            indices = compared(mu, self.select_by).topk(int(self.k), dim=-1, sorted=False).indices
            values = mu.gather(-1, indices)
        if use_threshold:
            if sample or self.threshold < 0:
                raise ConfigError(
                    "use_threshold=True: expected sample=False and an SAE whose threshold was set "
                    "(trained past threshold_start_step); encode without use_threshold"
                )
            features = mu * (compared(mu, self.select_by) > self.threshold)
        else:
            features = t.zeros_like(mu).scatter_(dim=-1, index=indices, src=values)
        return (features, values, indices, mu) if return_topk else features

    def decode(self, x: t.Tensor) -> t.Tensor:
        """The reconstruction from features: (…, F) -> (…, D)."""
        return self.decoder(x.to(self.b_dec.dtype)) + self.b_dec

    def log_var(self, x: t.Tensor) -> t.Tensor:
        """log sigma^2: (…, D) -> (…, F) if it is learned, otherwise 0-dim (-inf for a point)."""
        if self._is_learned:
            return self._log_var(x.to(self.b_dec.dtype) - self.b_dec)
        return 2 * self.sigma.log()

    def posterior(self, x: t.Tensor) -> GaussianPosterior:
        """The distribution of each feature of activations: (…, D) -> (…, F)."""
        mu = self._mean(x.to(self.b_dec.dtype) - self.b_dec)
        log_var = None if self.posterior_kind == "point" else self.log_var(x)
        return GaussianPosterior(mu, log_var, self.prior_std)

    @property
    def weights(self) -> Weights:
        """The parameters, as the training step takes them."""
        weights = Weights(self.encoder.weight, self.encoder.bias, self.decoder.weight, self.b_dec)
        if not self._is_learned:
            return weights
        log_var = self.log_var_encoder
        return weights._replace(W_var_FD=log_var.weight, b_var_F=log_var.bias)

    @property
    def variant(self) -> str:
        """Its kind among vSAEs, e.g. fixed_both, or point."""
        parts = [self.posterior_kind]
        parts += [self.noise_on] if self.posterior_kind != "point" else []
        parts += [self.select_by] if self.select_by != PosteriorOptions.select_by else []
        return "_".join(parts)

    @property
    def _is_learned(self) -> bool:
        return self.posterior_kind == "learned"

    def _mean(self, centred: t.Tensor) -> t.Tensor:
        mu = self.encoder(centred)
        return mu.relu() if self.rectify else mu

    def _log_var(self, centred: t.Tensor) -> t.Tensor:
        return self.log_var_encoder(centred).clamp(self.log_var_limits[0], self.log_var_limits[1])

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        """Change the units of the activations: multiply all that has their unit by `scale`.

        Afterwards encode(scale * x) is scale times what encode(x) was, sampled or not. The KL stays
        the same. Raises ConfigError unless `scale` is positive.
        """
        require_scale(scale)
        super().scale_biases(scale)
        self.sigma *= scale
        self.prior_std *= scale
        if self._is_learned:
            shift = 2 * math.log(scale)
            self.log_var_encoder.weight.div_(scale)
            self.log_var_encoder.bias.add_(shift)
            self.log_var_limits += shift

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        if state["prior_std"].dim():
            raise CheckpointError(
                f"prior_std has shape {tuple(state['prior_std'].shape)}, expected a single number: the SAE "
                "was trained with a learned prior, which is no longer supported"
            )
        return {
            "k": int(state["k"]),
            "posterior": POSTERIORS[int(state["posterior_code"])],
            "noise_on": NOISE_ON[int(state["noise_on_code"])],
            "rectify": bool(state["rectify_code"]),
            "select_by": SELECT_BY[int(state["select_by_code"])],
        }
