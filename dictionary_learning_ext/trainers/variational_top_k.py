"""Trains variational TopK sparse autoencoders (vSAEs).

From "Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, on top of upstream's
TopK (Gao et al. 2024, arXiv 2406.04093). Shapes: B batch, D activation_dim, F dict_size, K = k.
"""

import functools
from dataclasses import asdict, replace

import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from ..config.checks import require_choice, require_lr_schedule, require_sizes, require_type
from ..config.run import Dtype
from ..config.sae import (
    DEAD_FEATURE_THRESHOLD,
    KLSchedule,
    KLScope,
    NoiseOn,
    ObjectiveOptions,
    Posterior,
    PosteriorOptions,
    SelectBy,
    TopKOptions,
)
from .base import SamplingTrainer
from .devices import require_device
from .k_annealing import KAnnealing
from .kernels.products import StepForm, keep_freed_memory
from .kernels.select import NOISE_STREAM
from .kernels.step import LossTerms, StepObjective, loss_and_gradients, variational_loss
from .optimizers import UnitNormAdam
from .option_warnings import warn_of_noise, warn_of_unused
from .posterior import kl_scale, noise_scale, noise_to_signal
from .selection_counts import count_selection
from .variational_auto_encoder import VariationalTopKAutoEncoder


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

    Arguments beyond upstream's: see `PosteriorOptions`, `ObjectiveOptions` and, for k_anneal_steps,
    `TopKOptions`.
        dict_class: VariationalTopKAutoEncoder or a subclass. Upstream's AutoEncoderTopK is replaced by
            it, with a warning.
        dtype: "float32", or "bfloat16" for matmuls in bf16. Parameters, optimiser, sums and KL stay in
            fp32.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    ae: VariationalTopKAutoEncoder
    optimizer: UnitNormAdam
    form: StepForm

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
        posterior: Posterior = "fixed",
        sigma: float = 1.0,
        log_var_init: float = -2.0,
        noise_on: NoiseOn = "both",
        rectify: bool = False,
        select_by: SelectBy = "value",
        prior_std: float = 1.0,
        beta: float = 1.0,
        kl_scope: KLScope = "all",
        kl_schedule: KLSchedule = "linear",
        kl_warmup_steps: int | None = None,
        noise_anneal_steps: int | None = None,
        k_anneal_steps: int | None = None,
        freeze_decoder: bool = False,
        auxk_alpha: float = 1 / 32,
        dead_feature_threshold: int = DEAD_FEATURE_THRESHOLD,
        dtype: Dtype = "float32",
        warmup_steps: int = 1000,
        decay_start: int | None = None,
        threshold_beta: float = 0.999,
        threshold_start_step: int = 1000,
        seed: int | None = None,
        device: str | None = None,
        wandb_name: str = "VariationalTopKAutoEncoder",
        submodule_name: str | None = None,
    ):
        require_sizes(steps=steps, activation_dim=activation_dim, dict_size=dict_size, k=k)
        require_device(device)
        require_choice("dtype", dtype, Dtype)
        require_type("sigma", sigma, float)
        require_type("dead_feature_threshold", dead_feature_threshold, int)
        self.posterior_options = PosteriorOptions(
            posterior=posterior,
            sigma=sigma,
            log_var_init=log_var_init,
            noise_on=noise_on,
            rectify=rectify,
            select_by=select_by,
            prior_std=prior_std,
        )
        self.options = ObjectiveOptions(
            beta=beta,
            kl_scope=kl_scope,
            kl_schedule=kl_schedule,
            kl_warmup_steps=kl_warmup_steps,
            noise_anneal_steps=noise_anneal_steps,
            freeze_decoder=freeze_decoder,
            auxk_alpha=auxk_alpha,
            dead_feature_threshold=dead_feature_threshold,
        ).with_warmup(steps)
        TopKOptions(k=k, k_anneal_steps=k_anneal_steps).require_fit(steps)
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
            auxk_alpha=auxk_alpha,
            warmup_steps=warmup_steps,
            decay_start=decay_start,
            threshold_beta=threshold_beta,
            threshold_start_step=threshold_start_step,
            seed=seed,
            device=device,
            wandb_name=wandb_name,
            submodule_name=submodule_name,
        )
        self.dtype: Dtype = dtype
        self.k_anneal_steps = k_anneal_steps
        self.k_annealing = KAnnealing.of(self.ae, k_anneal_steps)
        self.threshold_start_step = self.k_annealing.threshold_start(self.threshold_start_step)
        self.dead_feature_threshold = dead_feature_threshold
        self.ae.decoder.weight.requires_grad_(not freeze_decoder)
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
            ratio = self._noise_to_signal(x)
            warn_of_noise(ratio, self.posterior_options, self.options, self.steps)
        weights = self.ae.weights
        objective = self._objective(x, step, self.generator)
        objective = replace(objective, ranks=self.ranks, measures_kl=objective.kl_weight != 0)
        with t.autocast(x.device.type, enabled=False):  # the dtype option decides alone
            terms, gradients = loss_and_gradients(x, weights, objective)
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight is not None and weight.requires_grad:
                weight.grad = gradient
        is_finite = self.optimizer.constrained_step(terms.loss, step)
        self.scheduler.step()
        count_selection(self, step, terms, is_finite)
        self.tokens_trained += len(x) * self.ranks.count
        return terms.loss

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> LossTerms:
        x = self._prepared(x)
        with t.autocast(x.device.type, enabled=False):
            return variational_loss(x, self.ae.weights, self._objective(x, step, generator))

    def _logged(self, terms: LossTerms, x: t.Tensor) -> dict[str, t.Tensor]:
        losses = {n: getattr(terms, n) for n in ("loss", "l2_loss", "kl_loss", "auxk_loss")}
        mean_sigma = (0.5 * self.ae.log_var(x)).exp().mean()
        noise = {"noise_to_signal": self._noise_to_signal(x), "mean_sigma": mean_sigma}
        return losses | noise

    def _noise_to_signal(self, x: t.Tensor) -> t.Tensor:
        variance, energy = self.ae.log_var(x).detach().exp().mean(), x.square().sum(-1).mean()
        return noise_to_signal(self.k, variance, energy)

    def _objective(self, x: t.Tensor, step: int, generator: t.Generator) -> StepObjective:
        ae, options = self.ae, self.options
        self.kl_scale = kl_scale(step, options.kl_schedule, options.kl_warmup_steps or 0)
        self.noise_scale = noise_scale(step, options.noise_anneal_steps)
        no_dead_yet = self.tokens_trained + len(x) * self.ranks.count < self.dead_feature_threshold
        return StepObjective(
            k=self.k_annealing.at(step),
            posterior=self.posterior_options,
            options=options,
            kl_weight=options.beta * self.kl_scale,
            noise_scale=self.noise_scale,
            auxk_alpha=0.0 if no_dead_yet and x.is_cuda else self.auxk_alpha,
            top_k_aux=self.top_k_aux,
            dead_feature_threshold=self.dead_feature_threshold,
            matmul_dtype=t.bfloat16 if self.dtype == "bfloat16" else x.dtype,
            sigma=ae.sigma,
            prior_std=ae.prior_std,
            log_var_limits=ae.log_var_limits if ae.posterior_kind == "learned" else None,
            tokens_since_fired_F=self.num_tokens_since_fired,
            generator=generator,
            form=self.form,
        )

    @property
    def config(self) -> dict:
        """Upstream's keys and ours: enough to rebuild the trainer."""
        ours = asdict(self.posterior_options) | asdict(self.options)
        ours |= {"k_anneal_steps": self.k_anneal_steps, "dtype": self.dtype}
        return super().config | self._class_names() | ours
