"""The variational TopK sparse autoencoder (vSAE), and its trainer.

From "Analysis of Variational Sparse Autoencoders" (Baker & Li), section 2.2, on top of upstream's
TopK (Gao et al. 2024, arXiv 2406.04093). Shapes: B batch, D activation_dim, F dict_size, K = k. The
loss of a batch is in `step.py`, the KL and the schedules are in `posterior.py`.
"""

import logging
import math
from abc import abstractmethod
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import nn

from ..config.checks import SCALE, require, require_sizes, require_type
from ..config.sae import (
    LOG_VAR_LIMITS,
    MUCH_NOISE,
    NO_NOISE,
    NOISE_ON,
    PAPER_SIGMA,
    POSTERIORS,
    SELECT_BY,
    NoiseOn,
    Posterior,
    PosteriorOptions,
    SelectBy,
    TokenSelection,
    TopKPosteriorOptions,
    Variational,
    VSAETopKConfig,
)
from ..devices import keep_freed_memory
from ..errors import ConfigError
from .base import SamplingTopKTrainer
from .dictionaries import (
    OwnDictionary,
    TopKCode,
    Transcoder,
    is_transcoder,
    require_scale,
    require_width,
    sides,
)
from .kernels import compiled
from .kernels import step as compiled_step
from .kernels.select import top_k
from .posterior import GaussianPosterior, noise_to_signal
from .step import (
    Draw,
    LossTerms,
    StepObjective,
    Weights,
    code_by_mean,
    draw_code,
    ranking_key,
    schedules_at,
    variational_loss,
)

logger = logging.getLogger(__name__)


class VariationalDictionary(OwnDictionary):
    """What the vSAEs over TopK and over BatchTopK share: each feature's posterior, and all that follows from it.

    A subclass has upstream's dictionary as its second base. Its constructor, which is for people and type checkers, calls
    `_build`.
    """

    options_class: ClassVar[type[PosteriorOptions]]
    over_batch: bool = False
    """Whether a batch of B tokens shares the B k features that are kept in training."""
    rectify: bool = False
    select_by: SelectBy = "value"
    activation_dim: int
    dict_size: int
    k: t.Tensor
    threshold: t.Tensor
    sigma: t.Tensor
    prior_std: t.Tensor
    log_var_encoder: nn.Linear
    log_var_limits: t.Tensor

    def _build(
        self, activation_dim: int, dict_size: int, k: int, sigma: float, given: PosteriorOptions
    ) -> None:
        require_sizes(activation_dim=activation_dim, dict_size=dict_size, k=k)
        if given.posterior == "fixed":
            require_type("sigma", sigma, float)
            require(SCALE.holds(sigma), "sigma", sigma, SCALE.words, instead=NO_NOISE)
        upstreams: Any = super()
        upstreams.__init__(activation_dim, dict_size, k)
        # Stored feature by feature, because the step reads one feature's weights at a time.
        self.decoder.weight.data = self.decoder.weight.data.t().contiguous().t()
        self.encoder.weight.data = self.encoder.weight.data.contiguous()

        self.posterior_kind: Posterior = given.posterior
        self.noise_on: NoiseOn = given.noise_on
        sigma = sigma if given.posterior == "fixed" else 0.0
        self.register_buffer("posterior_code", t.tensor(POSTERIORS.index(given.posterior)))
        self.register_buffer("noise_on_code", t.tensor(NOISE_ON.index(given.noise_on)))
        if isinstance(given, TokenSelection):
            self.rectify, self.select_by = given.rectify, given.select_by
            self.register_buffer("rectify_code", t.tensor(given.rectify))
            self.register_buffer("select_by_code", t.tensor(SELECT_BY.index(given.select_by)))
        self.register_buffer("sigma", t.tensor(float(sigma)))
        self.register_buffer("prior_std", t.tensor(float(given.prior_std)))
        if given.posterior == "learned":
            # Built without random numbers, so that the other weights are the same for every posterior.
            log_var_encoder: Any = nn.utils.skip_init(nn.Linear, activation_dim, dict_size)
            log_var_encoder.weight.data.zero_()
            log_var_encoder.bias.data.fill_(given.log_var_init)
            self.log_var_encoder = log_var_encoder
            self.register_buffer("log_var_limits", t.tensor(LOG_VAR_LIMITS))

    @abstractmethod
    def encode(self, x: t.Tensor) -> Any:
        """The features of `x`, dense: (B, D) -> (B, F)."""

    def drawn_from(self, posterior: GaussianPosterior, generator: t.Generator | None) -> TopKCode:
        """The code of a sample from a posterior, as in `encode(x, sample=True)`."""
        code = draw_code(posterior.mu, posterior.std, self._draw(generator))
        return TopKCode(code.values, code.selection.indices, code.selection.rows)

    def _draw(self, generator: t.Generator | None, noise: float = 1.0) -> Draw:
        noise = 0.0 if self.posterior_kind == "point" else noise
        how = (self.select_by, self.over_batch)
        return Draw(int(self.k), self.noise_on, noise, generator, *how)

    def log_var(self, x: t.Tensor) -> t.Tensor:
        """log sigma^2: (…, D) -> (…, F) if it is learned, otherwise 0-dim (-inf for a point)."""
        if self._is_learned:
            raw = self.log_var_encoder(self._centred(x))
            return raw.clamp(self.log_var_limits[0], self.log_var_limits[1])
        return 2 * self.sigma.log()

    def posterior(self, x: t.Tensor) -> GaussianPosterior:
        """Each feature's posterior, given activations: (…, D) -> (…, F)."""
        return GaussianPosterior(self._mu(x), self.log_var(x), self.prior_std)

    @property
    def weights(self) -> Weights:
        """The parameters, as a training step needs them."""
        weights = Weights(self.encoder.weight, self.encoder.bias, self.decoder.weight, self.b_dec)
        if not self._is_learned:
            return weights
        log_var = self.log_var_encoder
        return weights._replace(W_var_FD=log_var.weight, b_var_F=log_var.bias)

    @property
    def variant(self) -> str:
        """Which variant of the vSAE it is, e.g. fixed_both or point."""
        parts = [self.posterior_kind]
        parts += [self.noise_on] if self.posterior_kind != "point" else []
        parts += [self.select_by] if self.select_by != TokenSelection.select_by else []
        return "_".join(parts)

    @property
    def _is_learned(self) -> bool:
        return self.posterior_kind == "learned"

    def _mu(self, x: t.Tensor) -> t.Tensor:
        mu = self.encoder(self._centred(x))
        return mu.relu() if self.rectify else mu

    def _std(self, x: t.Tensor) -> t.Tensor:
        """sigma, in `log_var`'s shape."""
        return (0.5 * self.log_var(x)).exp() if self._is_learned else self.sigma

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        """Change the units of activations by a factor.

        Afterwards encode(scale * x) is scale times the former encode(x), sampled or not. The KL stays the same.

        Raises: ConfigError unless `scale` is positive.
        """
        require_scale(scale)
        upstreams: Any = super()
        upstreams.scale_biases(scale)
        self.sigma *= scale
        self.prior_std *= scale
        if self._is_learned:
            shift = 2 * math.log(scale)
            self.log_var_encoder.weight.div_(scale)
            self.log_var_encoder.bias.add_(shift)
            self.log_var_limits += shift

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        found: dict[str, Any] = {"k": int(state["k"])}
        choices = {
            "posterior": POSTERIORS,
            "noise_on": NOISE_ON,
            "rectify": (False, True),
            "select_by": SELECT_BY,
        }
        options = {each.name for each in fields(cls.options_class)}
        for name, words in choices.items():
            if name not in options:
                continue
            code = int(state[f"{name}_code"])
            require(0 <= code < len(words), f"{name}_code", code, f"0 to {len(words) - 1}")
            found[name] = words[code]
        numbers = ("prior_std", "sigma") if found["posterior"] == "fixed" else ("prior_std",)
        return found | {name: float(state[name]) for name in numbers}


class VariationalTopKAutoEncoder(VariationalDictionary, AutoEncoderTopK):
    """A TopK SAE with a Gaussian posterior N(mu, sigma^2) for each feature.

        mu_BF    = W_enc (x - b_dec) + b_enc          # then ReLU if rectify
        z_BF     = mu + sigma * eps,  eps ~ N(0, I)   # z = mu unless sampled
        f_BF     = z on the K largest of z, 0 elsewhere
        x_hat_BD = W_dec f + b_dec                    # decoder columns are unit-norm

    sigma is a constant (posterior "fixed"), 0 ("point"), or exp(log_var / 2) with
    log_var = W_var (x - b_dec) + b_var, clamped ("learned"). In a sample, noise acts on both the selection and the
    values (noise_on "both", as above), only on the values ("values": f is z on the K largest of mu), or only on the
    selection ("selection": f is mu on the K largest of z). With select_by "magnitude" features are selected by |z| or
    |mu|, and keep their signs.

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: K, the features kept per token. k = dict_size is the purely variational SAE.
        sigma: the fixed posterior's standard deviation.
        others: see `TopKPosteriorOptions`.

    Raises: ConfigError for a value out of range.
    """

    options_class = TopKPosteriorOptions
    select_by_code: t.Tensor

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        k: int,
        *,
        sigma: float = PAPER_SIGMA,
        posterior: Posterior = PosteriorOptions.posterior,
        log_var_init: float = PosteriorOptions.log_var_init,
        noise_on: NoiseOn = PosteriorOptions.noise_on,
        prior_std: float = PosteriorOptions.prior_std,
        rectify: bool = TokenSelection.rectify,
        select_by: SelectBy = TokenSelection.select_by,
    ):
        options = TopKPosteriorOptions(
            posterior=posterior,
            log_var_init=log_var_init,
            noise_on=noise_on,
            prior_std=prior_std,
            rectify=rectify,
            select_by=select_by,
        )
        self._build(activation_dim, dict_size, k, sigma, options)

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
            x: activations of any float dtype, in the SAE's units.
            return_topk: return `(features, values_BK, indices_BK, mu_BF)` instead.
            use_threshold: keep all means (with select_by "magnitude", all magnitudes) above the threshold instead of
                the K largest. It is a running average over tokens of the smallest one that is kept.
            sample: use a sample of the posterior instead of its mean.
            generator: for the sample's noise. Default: torch's own generator.

        Raises: ConfigError for `x` of another width, or for `use_threshold` if the threshold was never set or with
        `sample`.
        """
        require_width(x, self.activation_dim)
        mu = self._mu(x)
        if sample:
            code = draw_code(mu, self._std(x), self._draw(generator))
            values, indices = code.values, code.selection.indices
        else:
            values, indices, _ = self._top_k(mu, as_upstream=return_topk)
        if use_threshold:
            if sample or self.threshold < 0:
                raise ConfigError(
                    "use_threshold=True: expected sample=False and an SAE whose threshold was set "
                    "(trained past threshold_start_step); encode without use_threshold"
                )
            features = mu * (ranking_key(mu, self.select_by) > self.threshold)
        else:
            # Allocating a second (B, F) would take as long as the selection. A hook, e.g. nnsight's, needs the means.
            is_free = _is_plain(mu) and not self.encoder._forward_hooks and not return_topk
            zeros = mu.zero_() if is_free else t.zeros_like(mu)
            features = zeros.scatter_(dim=-1, index=indices, src=values)
        return (features, values, indices, mu) if return_topk else features

    def sparse_encode(self, x: t.Tensor) -> TopKCode:
        """The K features that `encode` keeps of each token, without the zeros.

        Raises: ConfigError for `x` of another width.
        """
        require_width(x, self.activation_dim)
        return self._top_k(self._mu(x))

    def code_of(self, posterior: GaussianPosterior) -> TopKCode:
        """The code by a posterior's mean: the same as `sparse_encode`, without encoding again."""
        return self._top_k(posterior.mu, as_upstream=True)

    def _top_k(self, mu: t.Tensor, *, as_upstream: bool = False) -> TopKCode:
        """The K largest means of each token.

        Arguments:
            as_upstream: choose among a ReLU's zeros as torch's topk does.
        """
        k = int(self.k)
        by_value = self.select_by == "value" and not (self.rectify and as_upstream)
        if _is_plain(mu) and by_value and compiled.is_available(mu):
            values, indices = top_k(mu.reshape(-1, self.dict_size), k)
            shape = (*mu.shape[:-1], k)
            return TopKCode(values.view(shape), indices.view(shape))
        # nnsight's proxies can't be unpacked.
        indices = ranking_key(mu, self.select_by).topk(k, dim=-1, sorted=False).indices
        return TopKCode(mu.gather(-1, indices), indices)


class VariationalTopKTranscoder(Transcoder, VariationalTopKAutoEncoder):
    """`VariationalTopKAutoEncoder` that reconstructs another activation than it reads: see `Transcoder`."""


def _is_plain(x: t.Tensor) -> bool:
    """Whether it is a tensor that no gradient needs, and no proxy of nnsight's."""
    return isinstance(x, t.Tensor) and not x.requires_grad


class VariationalTopKTrainer(SamplingTopKTrainer):
    """Trains a vSAE as upstream's TopKTrainer trains a TopK SAE, with noise and a KL term.

        loss = mean_B ||x - x_hat||^2 + beta s(t) mean_B sum_{i in S} KL_i + auxk_alpha AuxK

    x_hat comes from one sample of z, with tau(t) sigma for sigma. KL_i is feature i's KL from the
    prior N(0, prior_std^2), in nats. S is all features, or the K selected (`kl_scope`). s(t) is
    `posterior.kl_scale`, tau(t) is `posterior.noise_scale`.

    Everything else is as upstream: initial weights, decoder bias, gradient projection, unit-norm
    decoder, clipping, Adam, learning-rate schedule, AuxK. With posterior="point", rectify=True and
    beta=0 it is upstream's trainer, up to rounding. In addition, a step whose loss or gradient is not
    finite is skipped, and counted in `optimizer.skipped_steps`.

    In float32 on a CPU, `update` uses the compiled step of `kernels/step.py`. Its noise has the same distribution as
    in `loss`, but other values.

    For speed on CPUs, glibc is told to keep freed memory, in the whole process. VSAE_TUNE_PROCESS=0 in the environment
    turns that off.

    The defaults are those of `VSAETopKConfig`, which has the units E||x||^2 = D. The defaults of beta, prior_std and
    log_var_init are converted to those of `mean_squared_norm`. The paper's settings: `trainer_options("paper", …)`.

    Arguments beyond upstream's:
        options: the others of `VSAETopKConfig`, in units of the activations, and those below. None: the default, except where
            none is a value.
        dict_class: VariationalTopKAutoEncoder or a subclass. Upstream's AutoEncoderTopK is replaced, with a warning. With
            VariationalTopKTranscoder, every batch has what is read beside what is reconstructed, (B, 2D).
        dtype: "float32", or "bfloat16" for matmuls in bf16. Parameters, optimiser, sums and KL stay in
            fp32.
        mean_squared_norm: E||x||^2 of the activations. Default: 1, for trainSAE's normalize_activations=True. A first batch
            that differs by more than a factor of 2 gets a warning.
        part: the features of a split dictionary that this process trains; see `split.py`.
        first_fill: activations (N, D) to start from, see `start_from_data`. Default: random weights.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    settings_class = VSAETopKConfig
    dictionary_class: type[VariationalDictionary] = VariationalTopKAutoEncoder
    ae: VariationalDictionary

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
        **options: Any,
    ):
        sizes = (steps, activation_dim, dict_size, k)
        super().__init__(*sizes, layer, lm_name, dict_class, lr, **options)
        self._warn_of_selection()
        keep_freed_memory()

    @property
    def _sigma(self) -> float:
        """The fixed posterior's standard deviation, in the activations' units."""
        return self.settings.sigma_of(self.mean_squared_norm)

    def _built_with(self) -> dict[str, Any]:
        options: type[PosteriorOptions] = self.dictionary_class.options_class
        used, names = self.settings.to_dict(), {each.name for each in fields(options)}
        return {n: v for n, v in used.items() if n in names} | {"sigma": self._sigma}

    @t.no_grad()
    def _start_decoder_bias(self, x: t.Tensor) -> None:
        """See `SamplingTopKTrainer`. Warns of noise that drowns these activations to the end."""
        super()._start_decoder_bias(x)
        ratio = self._noise_to_signal(x, self.ae.log_var(sides(self.ae, x)[0]))
        warn_of_noise(float(ratio), self.settings, float(self.ae.sigma), self.steps)

    def _backward(self, x: t.Tensor, step: int) -> LossTerms:
        """See `SamplingTrainer`. Takes the compiled step where there is one."""
        weights, objective = self.ae.weights, self._objective(x, step, self.generator)
        if not compiled_step.supports(weights, objective):
            return super()._backward(x, step)
        terms, gradients = compiled_step.step(weights, objective, sides(self.ae, x)[0])
        for weight, gradient in zip(weights[:4], gradients, strict=True):
            weight.grad = gradient
        return terms

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> LossTerms:
        objective = self._objective(x, step, generator)
        return variational_loss(sides(self.ae, x)[0], self.ae.weights, objective)

    def _logged(self, terms: LossTerms, x: t.Tensor) -> dict[str, t.Tensor]:
        log_var = self.ae.log_var(sides(self.ae, x)[0])
        ratio, mean_sigma = self._noise_to_signal(x, log_var), (0.5 * log_var).exp().mean()
        found = {"noise_to_signal": ratio, "mean_sigma": self.part.mean(mean_sigma)}
        return super()._logged(terms, x) | found

    def _scheduled(self, step: int) -> dict[str, float]:
        """See `SamplingTrainer`."""
        return schedules_at(step, self.settings)

    def _reconstruction(self, x: t.Tensor, step: int) -> dict[str, float]:
        """See `SamplingTrainer`. Uses the sparse code, and matmuls in float32 as the evaluation does."""
        objective = replace(self._objective(x, step, self.generator), matmul_dtype=x.dtype)
        code = code_by_mean(sides(self.ae, x)[0], self.ae.weights, objective)
        return self._metrics_of_code(x, code.selection, code.values)

    def _noise_to_signal(self, x: t.Tensor, log_var: t.Tensor) -> t.Tensor:
        _, y = sides(self.ae, x)
        variance, energy = self.part.mean(log_var.exp().mean()), y.square().sum(-1).mean()
        return noise_to_signal(self.k, variance, energy)

    def _objective(self, x: t.Tensor, step: int, generator: t.Generator) -> StepObjective:
        ae, settings = self.ae, self.settings
        return StepObjective.at(
            step,
            settings,
            energy=self.mean_squared_norm,
            auxk_alpha=self._auxk_weight(step, x),
            top_k_aux=self.top_k_aux,
            dead_feature_threshold=self.dead_feature_threshold,
            matmul_dtype=self._matmul_dtype,
            sigma=ae.sigma,
            log_var_limits=ae.log_var_limits if ae.posterior_kind == "learned" else None,
            tokens_since_fired_F=self.num_tokens_since_fired,
            generator=generator,
            part=self.part,
            y_BD=sides(ae, x)[1] if is_transcoder(ae) else None,
        )

    @property
    def config(self) -> dict:
        """See `SamplingTrainer`. auxk_alpha, and the sigma that noise_to_signal gives, are in the activations' units."""
        config = super().config
        if config.pop("noise_to_signal", None) is not None:
            config["sigma"] = self._sigma
        return config

    def _warn_of_selection(self) -> None:
        """Warn of noise on a selection of all features."""
        given, selects_all = self.settings, self.k == self.settings.dict_size
        if selects_all and given.noise_on == "selection" and given.posterior != "point":
            logger.warning(
                "noise_on='selection': with k=dict_size every feature is selected, so the noise changes "
                "nothing; set noise_on='both' or 'values', or posterior='point'"
            )


def warn_of_noise(ratio: float, given: Variational, sigma: float, steps: int) -> None:
    """Warn of noise that stays to the end with a large noise_to_signal.

    Arguments:
        ratio: noise_to_signal of the first batch.
        sigma: the fixed posterior's.
        steps: of the run.
    """
    goal = 0.1
    if given.noise_anneal_steps is not None or not MUCH_NOISE < ratio < math.inf:
        return
    if given.posterior == "learned":
        instead = f"log_var_init={given.log_var_init + math.log(goal / ratio):.3g}"
    else:
        instead = f"sigma={sigma * math.sqrt(goal / ratio):.3g}"
    logger.warning(
        f"noise_to_signal={ratio:.3g}: noise that stays to the end drowns the activations above "
        f"{MUCH_NOISE}; set {instead} (noise_to_signal={goal}), or let it fade away by "
        f"noise_anneal_steps={max(1, steps // 2)}"
    )
