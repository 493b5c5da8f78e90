"""The vSAE as an architecture that SAELens trains, and saves as its own `topk`.

    register()                                  adds it to SAELens's registry, as `vsae_top_k`
    runner_options(VSAETopKConfig(...), ...)         our settings as the arguments of SAELens's runners

SAELens provides the loop, the activations, Adam, the learning rate and the files. The loss with its gradients, the
noise, the schedules and the constraint on the decoder are those of `VariationalTopKTrainer`. Shapes: B batch, D d_in,
F d_sae, K = k.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch as t
from torch import nn

from .config.checks import require, require_choice, require_sizes
from .config.sae import (
    LOG_VAR_LIMITS,
    SAEConfig,
    Variational,
    VSAEConfig,
    VSAETopKConfig,
    in_units,
    sae_settings,
)
from .devices import keep_freed_memory
from .errors import ConfigError
from .trainers.base import DeadWatch, set_to_median
from .trainers.optimizers import column_norms, project_out_parallel
from .trainers.posterior import noise_to_signal
from .trainers.step import StepObjective, Weights, variational_loss
from .trainers.variational_top_k import VariationalTopKAutoEncoder, warn_of_noise

try:
    from sae_lens.registry import (  # pyright: ignore[reportMissingImports]
        SAE_TRAINING_CLASS_REGISTRY,
        register_sae_training_class,
    )
    from sae_lens.saes import abstopk_sae, topk_sae  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.sae import (  # pyright: ignore[reportMissingImports]
        TrainingSAE,
        TrainingSAEConfig,
        TrainStepInput,
        TrainStepOutput,
    )
except ImportError as error:
    raise ImportError(
        f"{__name__} needs SAELens ({error}); install it: "
        "pip install 'dictionary-learning-ext[sae-lens]'"
    ) from error

logger = logging.getLogger(__name__)

ARCHITECTURE = VSAETopKConfig.architecture


def register() -> None:
    """Add `vsae_top_k` to SAELens's registry of training architectures. A second call does nothing."""
    if ARCHITECTURE not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(
            ARCHITECTURE, VariationalTopKTrainingSAE, VariationalTopKTrainingSAEConfig
        )


def runner_options(
    sae: SAEConfig,
    *,
    activation_dim: int,
    steps: int,
    batch_size: int,
    normalize_activations: str = "expected_average_only_in",
) -> dict[str, Any]:
    """The settings of a vSAE as arguments of SAELens's runners.

        register()
        options = runner_options(
            VSAETopKConfig(k=16, ...), activation_dim=512, steps=1000, batch_size=1024
        )
        config = LanguageModelSAERunnerConfig(**options, model_name=..., hook_name=..., ...)

    Arguments:
        sae: its architecture must be vsae_top_k or vsae. Defaults are filled in as in `vsae train`.
        activation_dim: D, the width of the activations.
        steps: training steps.
        batch_size: tokens per step.
        normalize_activations: SAELens's, see `VariationalTopKTrainingSAEConfig`.

    Returns: sae, training_tokens, train_batch_size_tokens, lr, lr_warm_up_steps and lr_decay_steps.

    Raises: ConfigError for another architecture, or a value that is out of range.
    """
    if not isinstance(sae, VSAETopKConfig | VSAEConfig):
        name = getattr(sae, "architecture", sae)
        raise ConfigError(name="architecture", value=name, expected="vsae_top_k or vsae")
    require(
        sae.init_from is None,
        "init_from",
        sae.init_from,
        "none: SAELens starts from the folder that its from_pretrained_path names",
    )
    expected = "random: SAELens doesn't hand over the first activations"
    require(sae.start == "random", "start", sae.start, expected)
    require_sizes(activation_dim=activation_dim, steps=steps, batch_size=batch_size)
    if isinstance(sae, VSAEConfig):
        sae = VSAETopKConfig(**vars(sae) | {"architecture": ARCHITECTURE, "k": sae.dict_size})
    sae = sae.resolve(steps)
    config = VariationalTopKTrainingSAEConfig(
        d_in=activation_dim,
        d_sae=sae.dict_size,
        k=sae.k,
        settings=sae.to_dict(),
        steps=steps,
        batch_size=batch_size,
        normalize_activations=normalize_activations,
    )
    return {
        "sae": config,
        "training_tokens": steps * batch_size,
        "train_batch_size_tokens": batch_size,
        "lr": sae.lr,
        "lr_warm_up_steps": sae.warmup_steps,
        "lr_decay_steps": steps - (sae.decay_start or steps),
    }


@dataclass(kw_only=True)
class VariationalTopKTrainingSAEConfig(TrainingSAEConfig):
    """SAELens's configuration of a vSAE. `runner_options` makes one from settings of ours.

    Arguments:
        settings: the options of a `VSAETopKConfig` by name. sigma, prior_std and beta are in the units of the activations
            after normalize_activations. noise_to_signal needs "expected_average_only_in". lr, warmup_steps and
            decay_start are SAELens's own.
        k: the features kept per token.
        steps: training steps, from which defaults follow.
        batch_size: tokens per step.
        d_in, d_sae: D and F.
        normalize_activations: "none", or "expected_average_only_in", which scales activations to
            E||x|| = sqrt(D).

    Raises: ConfigError for a value out of range, an option that has no effect, or a setting of SAELens
    that a vSAE can't have.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    k: int
    steps: int
    batch_size: int
    decoder_init_norm: float | None = None

    rescale_acts_by_decoder_norm: ClassVar[bool] = True  # of the topk that is saved

    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self):
        given = self.normalize_activations
        require_choice("normalize_activations", given, ("none", "expected_average_only_in"))
        require_choice("dtype", self.dtype.removeprefix("torch."), ("float32", "float64"))
        subtracts, init_norm = self.apply_b_dec_to_input, self.decoder_init_norm
        require(subtracts, "apply_b_dec_to_input", subtracts, "True: a vSAE encodes x - b_dec")
        expected = "None: a vSAE's decoder is unit-norm"
        require(init_norm is None, "decoder_init_norm", init_norm, expected)
        self.resolved.require_units("none" if given == "none" else "sqrt_d")
        super().__post_init__()

    @property
    def resolved(self) -> VSAETopKConfig:
        """The settings with all defaults filled in."""
        require_sizes(d_in=self.d_in, steps=self.steps, batch_size=self.batch_size)
        sizes = {"dict_size": self.d_sae, "k": self.k}
        given: Any = sae_settings(
            ARCHITECTURE, {"architecture": ARCHITECTURE, **self.settings, **sizes}
        )
        return given.resolve(self.steps)

    @property
    def keeps_signs(self) -> bool:
        """Whether negative features may be kept, and the saved SAE is SAELens's `abstopk` instead of its `topk`."""
        settings = self.resolved
        keeps_all = settings.select_by == "magnitude" or self.k == self.d_sae
        return keeps_all and not settings.rectify

    def get_inference_config_class(self) -> type[topk_sae.TopKSAEConfig]:
        return abstopk_sae.AbsTopKSAEConfig if self.keeps_signs else topk_sae.TopKSAEConfig


class VariationalTopKTrainingSAE(TrainingSAE):
    """A vSAE in SAELens's training.

    `training_forward_pass` computes the loss of `VariationalTopKTrainer`. Encoding is that of the saved SAE:
    by the mean, and with the ReLU of SAELens's topk.

    SAELens's trainer has no hook after the optimiser's step. So the decoder is made unit-norm when it is next
    used: in the next step, in `decode`, and when it is saved or folded.
    """

    b_enc: nn.Parameter
    W_var: nn.Parameter
    b_var: nn.Parameter

    def __init__(self, cfg: VariationalTopKTrainingSAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.settings = cfg.resolved
        self._is_untrained = True
        self._noise_state = t.empty(0, dtype=t.uint8)
        """Of the noise's generator, before the next step."""
        zeros_F = t.zeros(cfg.d_sae, dtype=t.long, device=self.device)
        self.register_buffer("tokens_since_fired", zeros_F)
        self.register_buffer("mean_squared_norm", t.ones((), device=self.device, dtype=self.dtype))
        self._dead_watch = DeadWatch()

    def initialize_weights(self) -> None:
        """Set the initial weights of `VariationalTopKTrainer` with the same seed. torch's generator is not changed."""
        cfg, settings = self.cfg, self.cfg.resolved
        posterior: Any = {name: getattr(settings, name) for name in ("posterior", "log_var_init")}
        place = "meta" if self.device.type == "meta" else "cpu"
        with t.random.fork_rng(devices=[]), t.device(place):
            t.default_generator.manual_seed(settings.seed)
            ae: Any = VariationalTopKAutoEncoder(cfg.d_in, cfg.d_sae, cfg.k, **posterior)

        def parameter(value: t.Tensor) -> nn.Parameter:
            value = value.detach().to(self.device, self.dtype).contiguous()
            return nn.Parameter(value)

        self.W_enc, self.b_enc = parameter(ae.encoder.weight.t()), parameter(ae.encoder.bias)
        self.W_dec, self.b_dec = parameter(ae.decoder.weight.t()), parameter(ae.b_dec)
        if settings.posterior == "learned":
            log_var = ae.log_var_encoder
            self.W_var, self.b_var = parameter(log_var.weight.t()), parameter(log_var.bias)

    def get_activation_fn(self) -> nn.Module:
        make = abstopk_sae.AbsTopK if self.cfg.keeps_signs else topk_sae.TopK
        return make(self.cfg.k)

    def get_coefficients(self) -> dict[str, Any]:
        """Nothing, as the schedules are our own and follow from the step."""
        return {}

    def encode_with_hidden_pre(self, x: t.Tensor) -> tuple[t.Tensor, t.Tensor]:
        """The features as the mean selects them, and the means: (..., D) -> (..., F)."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    def decode(self, feature_acts: t.Tensor) -> t.Tensor:
        """The reconstruction by a unit-norm decoder: (..., F) -> (..., D)."""
        return super().decode(feature_acts / self._norms_F)

    @t.compiler.disable
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The loss of a step, its terms, and the features of the batch as the mean selects them."""
        step, x = step_input.n_training_steps, step_input.sae_in.to(self.dtype)
        if step == self.cfg.steps:  # SAELens tells an SAE nothing of the run's length
            logger.warning(
                "steps=%d, but SAELens goes on: all schedules have ended. steps is meant to be training_tokens / "
                "train_batch_size_tokens",
                step,
            )
        if self._is_untrained:
            set_to_median(self.b_dec, x)
            self._is_untrained = False
        else:
            self._make_unit_norm()
        if step == 0:
            self._start(x)
        noise = t.Generator(x.device)
        noise.set_state(self._noise_state.cpu())
        objective = self._objective(step, x, noise)
        with t.autocast(x.device.type, enabled=False):
            terms = variational_loss(x, self._weights(), objective)
        self.tokens_since_fired, self._noise_state = terms.tokens_since_fired_F, noise.get_state()
        with t.no_grad():
            feature_acts, hidden_pre = self.encode_with_hidden_pre(x)
            sae_out = self.decode(feature_acts)
        return TrainStepOutput(
            sae_in=x,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=terms.loss,
            losses={
                "mse_loss": terms.l2_loss,
                "kl_loss": objective.kl_weight * terms.kl_loss,
                "auxiliary_reconstruction_loss": objective.auxk_alpha * terms.auxk_loss,
            },
            metrics={
                "kl": terms.kl_loss,
                "noise_scale": objective.noise_scale,
                "k": objective.k,
            },
        )

    def calculate_aux_loss(self, *_: Any, **__: Any) -> dict[str, t.Tensor]:
        """Nothing, as `training_forward_pass` has the whole loss."""
        return {}

    def _start(self, x: t.Tensor) -> None:
        """Check the batch that SAELens gives, and set the noise and the counts of a new run."""
        (rows, width), cfg = x.shape, self.cfg
        expected = f"{rows}, SAELens's train_batch_size_tokens"
        require(rows == cfg.batch_size, "batch_size", cfg.batch_size, expected)
        require(width == cfg.d_in, "d_in", cfg.d_in, f"{width}, the width of the activations")
        self._noise_state = t.Generator(x.device).manual_seed(self.settings.seed).get_state()
        self.tokens_since_fired = t.zeros(cfg.d_sae, dtype=t.long, device=x.device)
        keep_freed_memory()
        energy = float(x.square().sum(-1).mean())
        is_scaled = cfg.normalize_activations != "none"
        self.mean_squared_norm.fill_(cfg.d_in if is_scaled else energy)
        sigma = self.settings.sigma_of(self.cfg.d_in)
        variance = math.exp(self.settings.log_var_init) if self._is_learned else sigma**2
        warn_of_noise(noise_to_signal(cfg.k, variance, energy), self.settings, sigma, cfg.steps)

    def _objective(self, step: int, x: t.Tensor, noise: t.Generator) -> StepObjective:
        settings, device = self.settings, x.device.type
        threshold = settings.dead_feature_threshold
        now = step, len(x), self.tokens_since_fired, threshold
        has_auxk = settings.auxk_alpha > 0 and self._dead_watch.may_be_dead(*now)
        is_autocast = t.is_autocast_enabled(device)
        return StepObjective.at(
            step,
            settings,
            energy=self.cfg.d_in,
            auxk_alpha=settings.auxk_alpha * float(self.mean_squared_norm) if has_auxk else 0.0,
            top_k_aux=max(1, self.cfg.d_in // 2),
            dead_feature_threshold=threshold,
            matmul_dtype=t.get_autocast_dtype(device) if is_autocast else x.dtype,
            sigma=x.new_full((), self.settings.sigma_of(self.cfg.d_in)),
            log_var_limits=x.new_tensor(LOG_VAR_LIMITS) if self._is_learned else None,
            tokens_since_fired_F=self.tokens_since_fired,
            generator=noise,
        )

    def _weights(self) -> Weights:
        """The parameters in our shapes. The decoder's gradient loses its part along the decoder's columns."""
        W_dec_DF = self.W_dec.t()
        if W_dec_DF.requires_grad:
            W_dec_DF.register_hook(self._projected)
        weights = Weights(self.W_enc.t(), self.b_enc, W_dec_DF, self.b_dec)
        if not self._is_learned:
            return weights
        return weights._replace(W_var_FD=self.W_var.t(), b_var_F=self.b_var)

    def _projected(self, grad_DF: t.Tensor) -> t.Tensor:
        projected_DF = grad_DF.clone()
        project_out_parallel(self.W_dec.t(), projected_DF)
        return projected_DF

    @property
    def _is_learned(self) -> bool:
        return self.settings.posterior == "learned"

    @property
    def _norms_F(self) -> t.Tensor:
        """The norms of the decoder's rows."""
        return column_norms(self.W_dec.detach().t())

    @t.no_grad()
    def _make_unit_norm(self) -> None:
        self.W_dec.div_(self._norms_F[:, None])

    @t.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Fold in the normalisation, so that the SAE takes raw activations.

        As in `VariationalTopKAutoEncoder.scale_biases`, the decoder stays unit-norm, and features and settings get
        the units of raw activations. (SAELens's own method keeps the features' units and scales the decoder.)

        Arguments:
            scaling_factor: the number by which activations were multiplied in training.
        """
        self._make_unit_norm()
        self.b_enc.div_(scaling_factor)
        self.b_dec.div_(scaling_factor)
        if self._is_learned:
            self.W_var.mul_(scaling_factor)
            self.b_var.sub_(2 * math.log(scaling_factor))
        self.mean_squared_norm.div_(scaling_factor**2)
        settings = self.settings
        if settings.posterior == "fixed":  # noise_to_signal is in units that are gone
            noise: dict[str, Any] = {"noise_to_signal": Variational.noise_to_signal}
            settings = replace(settings, sigma=self.settings.sigma_of(self.cfg.d_in), **noise)
        self.settings = in_units(settings, 1 / scaling_factor**2)
        self.cfg.settings = self.settings.to_dict()
        self.cfg.normalize_activations = "none"

    # --- files

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_dec"] = state_dict["W_dec"] / self._norms_F[:, None]

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Keep only the weights of SAELens's topk."""
        super().process_state_dict_for_saving_inference(state_dict)
        for name in state_dict.keys() - {"W_enc", "b_enc", "W_dec", "b_dec"}:
            del state_dict[name]

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        self._is_untrained = False

    def get_extra_state(self) -> t.Tensor:
        """The state of the noise's generator, so that a resumed run continues its noise."""
        return self._noise_state

    def set_extra_state(self, state: t.Tensor) -> None:
        self._noise_state = state
