"""Variational TopK sparse autoencoders (vSAEs): the model, and its trainer.

From "Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, on top of upstream's
TopK (Gao et al. 2024, arXiv 2406.04093). Shapes: B batch, D activation_dim, F dict_size, K = k.
"""

import functools
import math
from dataclasses import asdict, replace
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from torch import nn

from ..config.checks import require, require_lr_schedule
from ..config.option_groups import takes
from ..config.options import (
    LOG_VAR_LIMITS,
    NOISE_ON,
    POSTERIORS,
    ObjectiveOptions,
    PosteriorOptions,
)
from ..errors import ConfigError
from .base import FromState, SamplingTrainer, require_scale
from .kernels.loss import loss_and_gradients, variational_loss
from .kernels.objective import LossTerms, StepObjective, Weights
from .kernels.scratch import keep_freed_memory
from .kernels.selection import NOISE_STREAM, draw_code
from .kernels.step_form import StepForm
from .optimizers import UnitNormAdam
from .option_warnings import warn_of_noise, warn_of_unused
from .posterior import GaussianPosterior, kl_scale, noise_scale, noise_to_signal
from .upstream import annealed_k


class VariationalTopKAutoEncoder(FromState, AutoEncoderTopK):
    """A TopK SAE with a Gaussian posterior N(mu, sigma^2) for each feature.

        mu_BF    = W_enc (x - b_dec) + b_enc          # then ReLU if rectify
        z_BF     = mu + sigma * eps,  eps ~ N(0, I)   # z = mu unless sampled
        f_BF     = z on the K largest of z, 0 elsewhere
        x_hat_BD = W_dec f + b_dec                    # decoder columns are unit-norm

    sigma is a constant (posterior "fixed"), 0 ("point"), or exp(log_var / 2) with log_var = W_var
    (x - b_dec) + b_var, clamped ("learned"). A sample changes which features are kept and their
    values (noise_on "both", as above), only the values ("values": f is z on the K largest of mu), or
    only which are kept ("selection": f is mu on the K largest of z).

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: K, the features kept per token. k = dict_size is the purely variational SAE.
        posterior, sigma, log_var_init, noise_on, rectify, prior_std: see `PosteriorOptions`.

    Raises: ConfigError for a value out of range.
    """

    in_state = ("encoder.weight", "k", "posterior_code", "noise_on_code", "rectify_code")

    k: t.Tensor
    sigma: t.Tensor
    prior_std: t.Tensor
    log_var_encoder: nn.Linear
    log_var_limits: t.Tensor

    @takes(PosteriorOptions)
    def __init__(self, activation_dim: int, dict_size: int, k: int, **options):
        require(1 <= k <= dict_size, "k", k, f"between 1 and dict_size={dict_size}")
        chosen = PosteriorOptions.taken(options)
        super().__init__(activation_dim, dict_size, k)
        # Stored feature by feature: the step's products read one feature's weights at a time.
        self.decoder.weight.data = self.decoder.weight.data.t().contiguous().t()
        self.encoder.weight.data = self.encoder.weight.data.contiguous()

        self.posterior_kind, self.noise_on = chosen.posterior, chosen.noise_on
        self.rectify = chosen.rectify
        sigma = chosen.sigma if chosen.posterior == "fixed" else 0.0
        self.register_buffer("posterior_code", t.tensor(POSTERIORS.index(chosen.posterior)))
        self.register_buffer("noise_on_code", t.tensor(NOISE_ON.index(chosen.noise_on)))
        self.register_buffer("rectify_code", t.tensor(chosen.rectify))
        self.register_buffer("sigma", t.tensor(float(sigma)))
        self.register_buffer("prior_std", t.tensor(float(chosen.prior_std)))
        if chosen.posterior == "learned":
            # Made without random numbers: the other weights are the same for every posterior.
            log_var_encoder: Any = nn.utils.skip_init(nn.Linear, activation_dim, dict_size)
            log_var_encoder.weight.data.zero_()
            log_var_encoder.bias.data.fill_(chosen.log_var_init)
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
            use_threshold: keep every mean above the running threshold instead of the K largest.
            sample: draw from the posterior instead of taking its mean.
            generator: the source of the sample's noise. Default: torch's own generator.

        Raises: ConfigError for `use_threshold` if the threshold was never set, or with `sample`.
        """
        centred = x.to(self.b_dec.dtype) - self.b_dec
        mu = self._mean(centred)
        if sample:
            noise = 0.0 if self.posterior_kind == "point" else 1.0
            std = (0.5 * self._log_var(centred)).exp() if self._is_learned else self.sigma
            indices, values = draw_code(mu, std, int(self.k), self.noise_on, noise, generator)
        else:
            top = mu.topk(int(self.k), dim=-1, sorted=False)  # nnsight's proxies can't be unpacked
            indices, values = top.indices, top.values
        if use_threshold:
            if sample or self.threshold < 0:
                raise ConfigError(
                    "use_threshold=True: expected sample=False and an SAE whose threshold was set "
                    "(trained past threshold_start_step); encode without use_threshold"
                )
            features = mu * (mu > self.threshold)
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
        kind = self.posterior_kind
        return kind if kind == "point" else f"{kind}_{self.noise_on}"

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
        return {
            "k": int(state["k"]),
            "posterior": POSTERIORS[int(state["posterior_code"])],
            "noise_on": NOISE_ON[int(state["noise_on_code"])],
            "rectify": bool(state["rectify_code"]),
        }


class VariationalTopKTrainer(SamplingTrainer, TopKTrainer):
    """Trains a vSAE as upstream's TopKTrainer trains a TopK SAE, with noise and a KL term.

        loss = mean_B ||x - x_hat||^2 + beta s(t) mean_B sum_{i in S} KL_i + auxk_alpha AuxK

    x_hat comes from one sample of z, with tau(t) sigma for sigma. KL_i is feature i's KL from the
    prior N(0, prior_std^2), in nats. S is all features, or the K selected (`kl_scope`). s(t) is
    `posterior.kl_scale`, tau(t) is `posterior.noise_scale`.

    Everything else is upstream's: initial weights, decoder bias, gradient projection, unit-norm
    decoder, clipping, Adam, learning-rate schedule, AuxK. With posterior="point", rectify=True and
    beta=0 it is upstream's trainer, up to rounding. In addition, a step whose loss or gradient is not
    finite is skipped, and counted in `optimizer.skipped_steps`.

    Arguments beyond upstream's: those of `PosteriorOptions` and `ObjectiveOptions`, by name.
    `dict_class` is VariationalTopKAutoEncoder or a subclass; upstream's AutoEncoderTopK is ignored. With
    dtype="bfloat16" the matmuls are in bf16; parameters, optimiser, sums and KL stay in fp32.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    ae: VariationalTopKAutoEncoder
    optimizer: UnitNormAdam
    form: StepForm

    @takes(PosteriorOptions, ObjectiveOptions, beside=TopKTrainer)
    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        k: int,
        layer: int,
        lm_name: str,
        dict_class: type | None = None,
        lr: float | None = None,
        *,
        warmup_steps: int = 1000,
        decay_start: int | None = None,
        wandb_name: str = "VariationalTopKAutoEncoder",
        **options,
    ):
        self.posterior_options = PosteriorOptions.taken(options)
        self.options = ObjectiveOptions.taken(options).for_steps(steps)
        warn_of_unused(self.posterior_options, self.options, steps)
        require_lr_schedule(steps, lr, warmup_steps, decay_start)
        dict_class = self._dict_class(dict_class, VariationalTopKAutoEncoder)
        super().__init__(
            steps=steps,
            activation_dim=activation_dim,
            dict_size=dict_size,
            k=k,
            layer=layer,
            lm_name=lm_name,
            dict_class=functools.partial(dict_class, **asdict(self.posterior_options)),  # pyright: ignore
            lr=lr,
            warmup_steps=warmup_steps,
            decay_start=decay_start,
            auxk_alpha=self.options.auxk_alpha,
            wandb_name=wandb_name,
            **options,  # upstream's
        )
        self.dead_feature_threshold = self.options.dead_feature_threshold
        self.ae.decoder.weight.requires_grad_(not self.options.freeze_decoder)
        self._start_training(UnitNormAdam(self.ae, self.lr))
        keep_freed_memory()
        self.form = StepForm.of(t.device(self.device))
        if self.posterior_options.posterior != "point":
            self.noise_stream = NOISE_STREAM
        self.num_tokens_since_fired = self.num_tokens_since_fired.to(self.device)
        self.tokens_trained = 0
        self.logging_parameters = ["kl_scale", "noise_scale", "dead_features"]
        self.kl_scale = self.noise_scale = 0.0

    def update(self, step: int, x: t.Tensor) -> t.Tensor:
        """Take one training step on activations (B, D). Returns the loss, without waiting for it."""
        x = self._prepared(x)
        if step == 0:
            self._start_decoder_bias(x)
            warn_of_noise(self._noise_to_signal(x), self.posterior_options, self.options)
        weights = self.ae.weights
        objective = replace(self._objective(x, step, self.generator), ranks=self.ranks)
        with t.autocast(x.device.type, enabled=False):  # the dtype option decides alone
            terms, gradients = loss_and_gradients(x, weights, objective)
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight is not None and weight.requires_grad:
                weight.grad = gradient
        is_finite = self.optimizer.constrained_step(terms.loss, step)
        self.scheduler.step()
        self._count(step, terms, is_finite)
        self.tokens_trained += len(x) * self.ranks.count
        return terms.loss

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> LossTerms:
        x = self._prepared(x)
        with t.autocast(x.device.type, enabled=False):
            return variational_loss(x, self.ae.weights, self._objective(x, step, generator))

    def _logged(self, terms: LossTerms, x: t.Tensor) -> dict[str, t.Tensor]:
        losses = {n: getattr(terms, n) for n in ("loss", "l2_loss", "kl_loss", "auxk_loss")}
        mean_sigma = (0.5 * self.ae.log_var(x)).exp().mean()
        return losses | {"noise_to_signal": self._noise_to_signal(x), "mean_sigma": mean_sigma}

    def _noise_to_signal(self, x: t.Tensor) -> t.Tensor:
        variance, energy = self.ae.log_var(x).detach().exp().mean(), x.square().sum(-1).mean()
        return noise_to_signal(self.k, variance, energy)

    def _objective(self, x: t.Tensor, step: int, generator: t.Generator) -> StepObjective:
        ae, options = self.ae, self.options
        warmup, cycle = options.kl_warmup_steps or 0, options.kl_cycle_steps or 0
        self.kl_scale = kl_scale(step, options.kl_schedule, warmup, cycle)
        self.noise_scale = noise_scale(step, options.noise_anneal_steps)
        no_dead_yet = self.tokens_trained + len(x) * self.ranks.count < self.dead_feature_threshold
        return StepObjective(
            k=annealed_k(self, step),
            posterior=self.posterior_options,
            options=options,
            kl_weight=options.beta * self.kl_scale,
            noise_scale=self.noise_scale,
            auxk_alpha=0.0 if no_dead_yet and x.is_cuda else self.auxk_alpha,
            top_k_aux=self.top_k_aux,
            dead_feature_threshold=self.dead_feature_threshold,
            matmul_dtype=t.bfloat16 if options.dtype == "bfloat16" else x.dtype,
            sigma=ae.sigma,
            prior_std=ae.prior_std,
            log_var_limits=ae.log_var_limits if ae.posterior_kind == "learned" else None,
            tokens_since_fired_F=self.num_tokens_since_fired,
            generator=generator,
            form=self.form,
        )

    @t.no_grad()
    def _count(self, step: int, terms: LossTerms, is_finite: t.Tensor) -> None:
        """Update the dead-feature counters and the threshold, unless the step was skipped."""
        self.num_tokens_since_fired = t.where(
            is_finite, terms.tokens_since_fired_F, self.num_tokens_since_fired
        )
        self.dead_features = (self.num_tokens_since_fired >= self.dead_feature_threshold).sum()
        if step > self.threshold_start_step:
            old, new = self.ae.threshold, terms.mean_threshold
            running = self.threshold_beta * old + (1 - self.threshold_beta) * new
            updated = t.where(old < 0, new, running)
            self.ae.threshold = t.where(is_finite & ~new.isnan(), updated, old)

    @property
    def config(self) -> dict:
        """Upstream's keys and ours: enough to rebuild the trainer."""
        ours = asdict(self.posterior_options) | asdict(self.options)
        return super().config | self._class_names() | ours
