"""Variational TopK sparse autoencoders: TopK SAEs whose activations are samples of a Gaussian.

"Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, on top of upstream's TopK
(Gao et al. 2024, arXiv 2406.04093).
"""

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer, geometric_median
from dictionary_learning.trainers.trainer import get_lr_schedule
from torch import nn

from ..config.options import (
    LOG_VAR_LIMITS,
    NOISE_ON,
    POSTERIORS,
    Dtype,
    KLSchedule,
    KLScope,
    NoiseOn,
    ObjectiveOptions,
    Posterior,
    PosteriorOptions,
    require,
)
from ..errors import CheckpointError, ConfigError
from .base import LossLog, prepared
from .kernels.objective import Objective, Terms, Weights, loss_and_gradients, variational_loss
from .kernels.scratch import keep_freed_memory
from .kernels.selection import draw_code
from .optimizers import UnitNormAdam
from .posterior import kl_scale, noise_scale, noise_to_signal


class VariationalTopKAutoEncoder(AutoEncoderTopK):
    """A TopK SAE whose feature activations are samples of a Gaussian posterior.

        mu_BF = W_enc (x - b_dec) + b_enc                  # then ReLU if rectify
        z_BF  = mu + sigma * eps,  eps ~ N(0, I)           # in training, or when asked for
        f_BF  = z or mu on the K largest of z or of mu, 0 elsewhere: see `noise_on`
        x_hat = W_dec f + b_dec                            # unit-norm decoder columns

    Encoding is deterministic (z = mu) unless a sample is asked for.

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: K, the features kept per token; k = dict_size is the purely variational SAE.
        posterior: "fixed": sigma is a constant (the paper). "learned": sigma = exp(log_var / 2),
            log_var = W_var (x - b_dec) + b_var, clamped; starts at `log_var_init` for every x.
            "point": sigma = 0, a TopK SAE whose KL is an L2 penalty on the activations.
        sigma: the fixed posterior's standard deviation, in the units of the activations.
        log_var_init: the learned posterior's initial log-variance.
        noise_on: what a sample changes. "both" (the paper): the selected set and its values;
            "values": the set is the mean's, its values are drawn; "selection": the set is drawn,
            its values are the mean's.
        rectify: apply a ReLU to mu, as upstream's TopK does.
        prior_std: p, the standard deviation of the prior N(0, p^2).

    Raises: ConfigError for a value out of range.
    """

    k: t.Tensor
    sigma: t.Tensor
    prior_std: t.Tensor
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
        prior_std: float = 1.0,
    ):
        require(1 <= k <= dict_size, "k", k, f"between 1 and dict_size={dict_size}")
        PosteriorOptions(posterior, sigma, log_var_init, noise_on, rectify, prior_std)
        super().__init__(activation_dim, dict_size, k)
        # Both are stored feature by feature: a feature's weights are contiguous for the products.
        self.decoder.weight.data = self.decoder.weight.data.t().contiguous().t()
        self.encoder.weight.data = self.encoder.weight.data.contiguous()

        self.posterior: Posterior = posterior
        self.noise_on: NoiseOn = noise_on
        self.rectify = rectify
        self.register_buffer("posterior_code", t.tensor(POSTERIORS.index(posterior)))
        self.register_buffer("noise_on_code", t.tensor(NOISE_ON.index(noise_on)))
        self.register_buffer("rectify_code", t.tensor(rectify))
        self.register_buffer("sigma", t.tensor(float(sigma) if posterior == "fixed" else 0.0))
        self.register_buffer("prior_std", t.tensor(float(prior_std)))
        if posterior == "learned":
            # Built without drawing, so that the weights are those of the other posteriors.
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
            x: activations, in the units the SAE was trained in or scaled to; any float dtype.
            return_topk: return `(features, values_BK, indices_BK, mu_BF)` instead.
            use_threshold: keep every mean above the running threshold instead of the K largest.
            sample: draw from the posterior instead of taking its mean.
            generator: where the sample's noise comes from; torch's own if None.

        Raises: ConfigError if the threshold is asked for and was never set, or with `sample`.
        """
        centred = x.to(self.b_dec.dtype) - self.b_dec
        mu = self.encoder(centred)
        if self.rectify:
            mu = mu.relu()
        if sample:
            noise = 0.0 if self.posterior == "point" else 1.0
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
        """The reconstruction of features: (…, F) -> (…, D)."""
        return self.decoder(x.to(self.b_dec.dtype)) + self.b_dec

    def log_var(self, x: t.Tensor) -> t.Tensor:
        """log sigma^2 of each feature: (…, D) -> (…, F) if learned, else 0-dim (-inf for a point)."""
        if self._is_learned:
            return self._log_var(x.to(self.b_dec.dtype) - self.b_dec)
        return 2 * self.sigma.log()

    @property
    def _is_learned(self) -> bool:
        return self.posterior == "learned"

    def _log_var(self, centred: t.Tensor) -> t.Tensor:
        return self.log_var_encoder(centred).clamp(self.log_var_limits[0], self.log_var_limits[1])

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        """Make the SAE take activations `scale` times as large, equivariantly.

        Afterwards encode(scale * x) = scale * encode(x) before, sampled or not, and the KL is what
        it was: everything that has the activations' unit is multiplied. Raises ConfigError unless
        `scale` is positive.
        """
        require(scale > 0, "scale", scale, "above 0")
        super().scale_biases(scale)
        self.sigma *= scale
        self.prior_std *= scale
        if self._is_learned:
            shift = 2 * t.tensor(float(scale)).log().to(self.b_dec)
            self.log_var_encoder.weight.div_(scale)
            self.log_var_encoder.bias.add_(shift)
            self.log_var_limits += shift

    @classmethod
    def from_pretrained(
        cls, path: str | Path, k: int | None = None, device: str | None = None
    ) -> "VariationalTopKAutoEncoder":
        """Load an SAE from an `ae.pt`, which holds all that it needs.

        Raises: CheckpointError if the file is not one of this class; ConfigError if `k` is given
        and differs from the file's.
        """
        state = t.load(path, map_location=device or "cpu", weights_only=True)
        needed = {"encoder.weight", "k", "posterior_code", "noise_on_code", "rectify_code"}
        if missing := sorted(needed - set(state)):
            raise CheckpointError(
                f"{path}: expected a {cls.__name__}, but it lacks {', '.join(missing)}; "
                "load_dictionary(FOLDER) reads any class by its config.json"
            )
        saved_k = int(state["k"])
        require(k is None or k == saved_k, "k", k, f"{saved_k}, as in {path}, or not given")
        dict_size, activation_dim = state["encoder.weight"].shape
        sae = cls(
            activation_dim,
            dict_size,
            saved_k,
            posterior=POSTERIORS[int(state["posterior_code"])],
            noise_on=NOISE_ON[int(state["noise_on_code"])],
            rectify=bool(state["rectify_code"]),
        )
        sae = sae.to(state["encoder.weight"])  # its device and dtype
        sae.load_state_dict(state)
        return sae


class VariationalTopKTrainer(TopKTrainer):
    """Trains a vSAE as upstream's TopKTrainer trains a TopK SAE.

    Everything but the posterior and its KL is upstream's: initialisation, decoder bias, gradient
    projection, unit-norm decoder, clipping, Adam, AuxK. With posterior="point", rectify=True and
    beta=0 it *is* upstream's trainer, up to rounding. Noise comes from the trainer's own generator,
    so a run does not depend on what else runs beside it, nor on logging. A step whose loss or
    gradient is not finite is not taken, and counted in `skipped_steps`.

    Arguments beyond the model's and upstream's (`lr`, `warmup_steps`, `decay_start`, `seed`,
    `device`, … are passed on):
        beta: the KL's weight, at least 0; the loss adds beta * s(t) * (KL in nats per token).
        kl_scope: the KL is summed over "all" features (the paper) or the "selected" K.
        kl_schedule, kl_warmup_steps, kl_cycle_steps: s(t), see `posterior.kl_scale`; a tenth and
            a quarter of the run unless told.
        free_bits: nats per feature below which the KL does not pull (kl_scope="all" only).
        noise_anneal_steps: sampling noise falls linearly to 0 over so many steps; None is never.
        auxk_alpha: AuxK's weight; 0 is off.
        dead_feature_threshold: tokens without firing after which a feature is dead.
        dtype: "float32", or "bfloat16" for matmuls in bf16 (parameters, optimiser, sums and KL
            stay in fp32). It decides, not an autocast around the call.

    Raises: ConfigError for a value out of range, or activations of another width.
    """

    ae: VariationalTopKAutoEncoder

    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        k: int,
        layer: int,
        lm_name: str,
        *,
        posterior: Posterior = "fixed",
        sigma: float = 1.0,
        log_var_init: float = -2.0,
        noise_on: NoiseOn = "both",
        rectify: bool = False,
        prior_std: float = 1.0,
        beta: float = 1.0,
        kl_scope: KLScope = "all",
        kl_schedule: KLSchedule = "linear",
        kl_warmup_steps: int | None = None,
        kl_cycle_steps: int | None = None,
        free_bits: float = 0.0,
        noise_anneal_steps: int | None = None,
        auxk_alpha: float = 1 / 32,
        dead_feature_threshold: int = 10_000_000,
        dtype: Dtype = "float32",
        wandb_name: str = "VariationalTopKAutoEncoder",
        **upstream_arguments,
    ):
        tenth, quarter = max(1, steps // 10), max(1, steps // 4)
        self.kl_warmup_steps = tenth if kl_warmup_steps is None else kl_warmup_steps
        self.kl_cycle_steps = quarter if kl_cycle_steps is None else kl_cycle_steps
        self.options = ObjectiveOptions(
            beta=beta,
            kl_scope=kl_scope,
            kl_schedule=kl_schedule,
            kl_warmup_steps=self.kl_warmup_steps,
            kl_cycle_steps=self.kl_cycle_steps,
            free_bits=free_bits,
            noise_anneal_steps=noise_anneal_steps,
            auxk_alpha=auxk_alpha,
            dead_feature_threshold=dead_feature_threshold,
            dtype=dtype,
        )
        self.posterior_options = PosteriorOptions(
            posterior, sigma, log_var_init, noise_on, rectify, prior_std
        )
        super().__init__(
            steps=steps,
            activation_dim=activation_dim,
            dict_size=dict_size,
            k=k,
            layer=layer,
            lm_name=lm_name,
            dict_class=functools.partial(  # pyright: ignore[reportArgumentType]
                VariationalTopKAutoEncoder, **asdict(self.posterior_options)
            ),
            auxk_alpha=auxk_alpha,
            wandb_name=wandb_name,
            **upstream_arguments,
        )
        self.dead_feature_threshold = dead_feature_threshold
        self.optimizer = UnitNormAdam(self.ae, self.lr)
        schedule = get_lr_schedule(steps, self.warmup_steps, decay_start=self.decay_start)
        self.scheduler = t.optim.lr_scheduler.LambdaLR(self.optimizer, lr_lambda=schedule)

        keep_freed_memory()
        noise_seed = t.initial_seed() if self.seed is None else self.seed
        self.generator = t.Generator(self.device).manual_seed(noise_seed)
        self.num_tokens_since_fired = self.num_tokens_since_fired.to(self.device)
        self.tokens_trained = 0
        self.logging_parameters = ["kl_scale", "noise_scale", "dead_features"]
        self.kl_scale = self.noise_scale = 0.0

    def loss(self, x: t.Tensor, step: int, logging: bool = False) -> Any:
        """The loss of activations (B, D) at `step`: a 0-dim tensor, differentiable.

        With `logging`, a `LossLog` of x, its reconstruction and features by the mean, and the
        loss's terms, drawn from a copy of the generator: nothing changes.
        """
        if not logging:
            return self._terms(x, step, self.generator).loss
        generator = t.Generator(self.device)
        generator.set_state(self.generator.get_state())
        with t.no_grad():
            terms = self._terms(x, step, generator)
            x_hat, f = self.ae(x, output_features=True)
        losses = {
            name: getattr(terms, name) for name in ("loss", "l2_loss", "kl_loss", "auxk_loss")
        }
        losses["mean_sigma"] = terms.mean_variance.sqrt()
        losses["noise_to_signal"] = noise_to_signal(
            self.k, terms.mean_variance, x.float().square().sum(-1).mean()
        )
        return LossLog(x, x_hat, f, {name: value.item() for name, value in losses.items()})

    def update(self, step: int, x: t.Tensor) -> t.Tensor:
        """One training step on activations (B, D). Returns the loss, without waiting for it."""
        x = self._prepared(x)
        if step == 0:
            median = geometric_median(x)
            self.ae.b_dec.data.copy_(t.where(median.isfinite().all(), median, self.ae.b_dec.data))
        weights, objective = self._objective(x, step, self.generator)
        with t.autocast(x.device.type, enabled=False):
            terms, gradients = loss_and_gradients(x, weights, objective)
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight is not None:
                weight.grad = gradient
        is_finite = self.optimizer.constrained_step(terms.loss, step)
        self.scheduler.step()
        self._count(step, terms, is_finite)
        self.tokens_trained += len(x)
        return terms.loss

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> Terms:
        x = self._prepared(x)
        with t.autocast(x.device.type, enabled=False):
            return variational_loss(x, *self._objective(x, step, generator))

    def _objective(
        self, x: t.Tensor, step: int, generator: t.Generator
    ) -> tuple[Weights, Objective]:
        ae, options = self.ae, self.options
        k, k_anneal_steps = self.k, getattr(self, "k_anneal_steps", None)
        if k_anneal_steps is not None:  # upstream's main branch has it
            self.update_annealed_k(step, ae.activation_dim, k_anneal_steps)  # pyright: ignore
            k = int(ae.k)
        self.kl_scale = kl_scale(
            step, options.kl_schedule, self.kl_warmup_steps, self.kl_cycle_steps
        )
        self.noise_scale = noise_scale(step, options.noise_anneal_steps)
        weights = Weights(ae.encoder.weight, ae.encoder.bias, ae.decoder.weight, ae.b_dec)
        limits = None
        if ae.posterior == "learned":
            log_var = ae.log_var_encoder
            weights = weights._replace(W_var_FD=log_var.weight, b_var_F=log_var.bias)
            limits = (ae.log_var_limits[0], ae.log_var_limits[1])
        no_dead_yet = self.tokens_trained + len(x) < self.dead_feature_threshold
        objective = Objective(
            k=k,
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
            log_var_limits=limits,
            tokens_since_fired_F=self.num_tokens_since_fired,
            generator=generator,
        )
        return weights, objective

    def _prepared(self, x: t.Tensor) -> t.Tensor:
        return prepared(x, self.ae.b_dec, self.submodule_name)

    @t.no_grad()
    def _count(self, step: int, terms: Terms, is_finite: t.Tensor) -> None:
        """Dead-feature counters, threshold and skipped steps, unless the step was skipped."""
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
        """Upstream's keys and ours: enough to build the trainer again."""
        names = {
            "trainer_class": "VariationalTopKTrainer",
            "dict_class": "VariationalTopKAutoEncoder",
        }
        return super().config | names | asdict(self.posterior_options) | asdict(self.options)
