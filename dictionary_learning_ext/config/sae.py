"""The settings of an SAE: a frozen dataclass for each architecture. Imports no torch.

The docstring under a field is its help text on the command line. Its type may hold the range of its values;
`__post_init__` checks what depends on other options. All names and units are those of flags, trainers and config.json:
schedules are in steps.

A default may follow from the run or from other settings (`Follows`). `SAEConfig.resolve` replaces it by its value, and
checks what depends on the run. Trainers take resolved settings, config.json holds them, and a run that continues is
compared by them. The defaults are those of `vsae train`, the preset `recommended`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args

from ..errors import ConfigError
from .architectures import TRAINED, upstream_lr
from .checks import (
    SCALE,
    Checked,
    Count,
    Follows,
    Natural,
    NotNegative,
    Positive,
    Range,
    Seed,
    did_you_mean,
    require,
    require_choice,
    require_type,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# Weights hold these choices by their position: add at the end, and don't reorder.
Posterior = Literal["fixed", "learned", "point"]
NoiseOn = Literal["both", "values", "selection"]
SelectBy = Literal["value", "magnitude"]

Start = Literal["random", "data"]
KLScope = Literal["all", "selected"]
KLSchedule = Literal["constant", "linear", "cosine"]
Normalize = Literal["sqrt_d", "unit", "none"]

Settings = TypeVar("Settings", bound="SAEConfig")

POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)
NOISE_ON: tuple[NoiseOn, ...] = get_args(NoiseOn)
SELECT_BY: tuple[SelectBy, ...] = get_args(SelectBy)

LOG_VAR_LIMITS = (-10.0, 4.0)
"""The range to which a learned posterior's log-variance is clamped, in training units."""
MUCH_NOISE = 0.2
"""The noise_to_signal above which constant noise drowns the activations. Noise that fades to 0 may start higher."""
DEAD_FEATURE_THRESHOLD = 10_000_000
"""Upstream's default threshold, in tokens."""
DEAD_AFTER_FIRINGS = 100
"""Our default threshold, in firings of a feature of average rate: m in experiments/results/dose_truth.md."""
PAPER_SIGMA = 1.0
"""The paper's sigma, which a `VariationalTopKAutoEncoder` has by default."""

_LOWEST, _HIGHEST = LOG_VAR_LIMITS
NO_NOISE = "for no noise use posterior='point'"
PositiveScale = Annotated[float, SCALE]
Sigma = Annotated[float, SCALE._replace(instead=NO_NOISE)]
NoiseToSignal = Annotated[float, Range("above 0", lambda x: x > 0, NO_NOISE)]
LogVariance = Annotated[
    float, Range(f"between {_LOWEST} and {_HIGHEST}", lambda x: _LOWEST <= x <= _HIGHEST)
]
LogRatio = Annotated[float, Range(f"{_LOWEST} or more, and below 0", lambda x: _LOWEST <= x < 0)]
Gate = Annotated[float, Range("0 or more, and below 1", lambda x: 0 <= x < 1)]
AnnealSteps = Annotated[int, Range("at least 1", lambda n: n >= 1, NO_NOISE)]


# --- defaults that follow from the run or from other settings


@dataclass(frozen=True)
class ShareOfRun(Follows):
    """A share of the run's steps, rounded down."""

    share: float
    least: int
    most: int | None

    def value(self, sae: "SAEConfig", steps: int) -> int:
        # a warm-up is shorter than the run
        least = self.least if self.least <= 1 else min(self.least, steps - 1)
        count = max(least, math.floor(self.share * steps + 1e-6))
        return count if self.most is None else min(count, self.most)


@dataclass(frozen=True)
class Rule(Follows):
    """A function of the other settings."""

    function: Callable[[Any], Any]

    def __repr__(self) -> str:  # the same in every process
        return f"Rule({self.function.__name__})"

    def value(self, sae: "SAEConfig", steps: int) -> Any:
        return self.function(sae)


def share_of_run(share: float, *, least: int = 0, most: int | None = None) -> Any:
    """A default that is a share of the run's steps."""
    return ShareOfRun(share, least, most)


def follows(function: Callable[[Any], Any]) -> Any:
    """A default that is a function of the other settings."""
    return Rule(function)


def _architectures_lr(sae: "SAEConfig") -> float:
    return TRAINED[sae.architecture].lr(sae.dict_size)


def upstreams_lr(sae: "SAEConfig") -> float:
    """The architecture's own learning rate; for TopK's family, upstream's for this size."""
    own = TRAINED[sae.architecture].default_lr
    return upstream_lr(sae.dict_size) if own is None else own


def dead_after(dict_size: int, k: int) -> int:
    """The default of dead_feature_threshold in tokens: a feature of average rate fires 100 times in so many."""
    return DEAD_AFTER_FIRINGS * dict_size // k


def _dead_after(sae: "SAEConfig") -> int:
    return dead_after(sae.dict_size, sae.kept_per_token or 1)


NOISES = ("sigma", "noise_to_signal")
"""The options that say how much noise a fixed posterior has. Giving one puts it in the other's place."""
UNUSED_BY: dict[Posterior, tuple[str, ...]] = {
    "fixed": ("log_var_init",),
    "learned": NOISES,
    "point": (*NOISES, "log_var_init", "noise_on", "noise_anneal_steps"),
}
"""The options that each posterior does not use."""


CHOICES = ("architecture", "posterior", "kl_schedule", "noise_on", "init_from", *NOISES)
"""The options that decide which others have an effect."""


def training_energy(normalize: Normalize, activation_dim: int) -> int:
    """E||x||^2 of activations that are normalised by "sqrt_d" or "unit"."""
    return activation_dim if normalize == "sqrt_d" else 1


def energy_of_default_units(mean_squared_norm: float, activation_dim: int) -> float:
    """E||x||^2 of activations relative to that of the defaults' units, which are those of normalize="sqrt_d".

    Raises: ConfigError unless `mean_squared_norm` is positive.
    """
    require_type("mean_squared_norm", mean_squared_norm, float)
    require(mean_squared_norm > 0, "mean_squared_norm", mean_squared_norm, "above 0")
    return mean_squared_norm / training_energy("sqrt_d", activation_dim)


# --- options that architectures share


@dataclass(frozen=True, kw_only=True)
class TopKOptions(Checked):
    """Options of SAEs that keep k features per token."""

    k: Count = 16
    """Features kept per token. Paper: 64, 128, 256, 512."""


@dataclass(frozen=True, kw_only=True)
class AuxKOptions(Checked):
    """Upstream's auxiliary loss, AuxK (Gao et al. 2024, A.2)."""

    auxk_alpha: NotNegative = 1 / 32
    """Weight of the auxiliary loss that revives dead features, in units of the activations' E||x||^2, as
    the squared error. 0 turns it off."""
    dead_feature_threshold: Count = field(default=follows(_dead_after))
    """Tokens without firing after which a feature counts as dead. Default: 100 dict_size / k, in which a
    feature of average rate fires 100 times. Upstream's trainers: 10,000,000."""


@dataclass(frozen=True, kw_only=True)
class PosteriorOptions(Checked):
    """The distribution of a vSAE's features."""

    posterior: Posterior = "fixed"
    """fixed (paper): sigma is a constant. learned: sigma depends on the token, by a linear map. point:
    sigma = 0, a TopK SAE with an L2 penalty on its activations."""
    log_var_init: LogVariance = -2.0
    """The learned posterior's initial log-variance."""
    noise_on: NoiseOn = "both"
    """What the sample changes in training: both (paper), the values of the features that the mean
    selects, or only the selection."""
    prior_std: PositiveScale = 1.0
    """The standard deviation of the prior, in training units."""


@dataclass(frozen=True, kw_only=True)
class TokenSelection(Checked):
    """How a vSAE that keeps k features of each token chooses them."""

    rectify: bool = False
    """Apply a ReLU to the mean, as upstream's TopK does. Paper: no."""
    select_by: SelectBy = "value"
    """Keep the k largest activations (value; paper), or the k of largest magnitude with their signs
    (magnitude: AbsTopK, arXiv 2510.00404)."""


@dataclass(frozen=True, kw_only=True)
class TopKPosteriorOptions(TokenSelection, PosteriorOptions):
    """What a `VariationalTopKAutoEncoder` is built of."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(AuxKOptions):
    """Weights and schedules of the terms of a vSAE's loss beside the squared error."""

    beta: NotNegative = 0.01
    """Weight of the KL (nats per token) beside the squared error, in training units."""
    kl_scope: KLScope = "selected"
    """The KL is summed over all features (paper) or the k selected."""
    kl_schedule: KLSchedule = "linear"
    """How beta is annealed."""
    kl_warmup_steps: Natural = field(default=share_of_run(0.1, least=1))
    """Steps over which beta rises (linear, cosine). 0: no warm-up. Default: a tenth of the run."""
    noise_anneal_steps: AnnealSteps | None = field(default=share_of_run(0.5, least=1))
    """Steps over which the noise falls linearly to 0. Default: half of the run. none: the noise
    stays."""


@dataclass(frozen=True, kw_only=True)
class SparsityWarmupOptions(Checked):
    """The warm-up of upstream's sparsity penalties."""

    sparsity_warmup_steps: Natural = field(default=share_of_run(0.2, most=2000))
    """Steps over which the sparsity loss rises. Default: 2000 or a fifth of the run, whichever is less."""


_ARCHITECTURE = {
    "help": "Each has flags of its own: --architecture NAME --help shows them. "
    + ". ".join(f"{name}: {row.description}" for name, row in TRAINED.items())
    + ".",
    "metavar": "NAME",
}


def _named(architecture: Any) -> Any:
    """The field of an architecture's name."""
    return field(default=architecture, metadata=_ARCHITECTURE)


def _lr_help() -> str:
    by_lr: dict[str, list[str]] = {}
    for name, row in TRAINED.items():
        by_lr.setdefault(row.lr_in_words, []).append(name)
    defaults = "; ".join(f"{lr} for {', '.join(names)}" for lr, names in by_lr.items())
    return f"Adam's learning rate. With --lr none: {defaults}."


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Checked):
    """The settings that all architectures share, and the base of each architecture's own: see CONFIGS."""

    architecture: str = _named("vsae_top_k")
    dict_size: Count = 512
    """Features in the dictionary. Paper: 2048."""
    lr: Positive = field(default=follows(_architectures_lr), metadata={"help": _lr_help()})
    warmup_steps: Natural = field(default=share_of_run(0.1, most=1000))
    """Steps over which lr rises from 0. Default: 1000 or a tenth of the run, whichever is less."""
    decay_start: Count | None = field(default=share_of_run(0.75))
    """The step at which lr begins to fall linearly, to 0 at the end. Default: at three quarters of
    the run. none: it does not fall."""
    seed: Seed = 0
    """Seeds the initial weights and the noise."""
    init_from: str | None = None
    """Start from the weights of a trained SAE instead of random ones: a run folder, or a folder of
    dictionary_learning's or SAELens's. Architecture, dict_size and k must be its own; --config
    takes them from a run folder. Default: random weights."""
    start: Start = "random"
    """How encoder and decoder start. random: as upstream. data: as activations of random tokens of the
    buffer's first fill, less their mean, no two of them alike (a cosine of 0.7)."""

    def __post_init__(self, *_: Any):
        super().__post_init__()
        k = self.kept_per_token
        largest = f"1 to dict_size={self.dict_size!r}"
        require(k is None or k <= self.dict_size, "k", k, largest)

    @property
    def kept_per_token(self) -> int | None:
        """The number of features kept per token, on average where a batch shares them; None if it is no setting."""
        return vars(self).get("k")

    def unused(self) -> dict[str, str]:
        """The options that have no effect because of others, and the choice that makes them so."""
        return {} if self.init_from is None else {"start": "init_from"}

    def given_in_vain(self) -> list[tuple[str, Any, str]]:
        """The options that are not at their defaults and have no effect: name, value, and the choice that makes it so."""
        defaults, own = _defaults(type(self)), vars(self)
        unused = self.unused().items()
        return [(name, own[name], choice) for name, choice in unused if own[name] != defaults[name]]

    def to_dict(self) -> dict[str, Any]:
        """The options that have an effect, as flags name them."""
        unused = self.unused()
        return {name: value for name, value in vars(self).items() if name not in unused}

    def given(self) -> dict[str, Any]:
        """`to_dict` without the defaults that are not resolved."""
        return {n: v for n, v in self.to_dict().items() if not isinstance(v, Follows)}

    def start_for(self, architecture: str | None = None, **choices: Any) -> "SAEConfig":
        """The settings to start from for another architecture or other choices (None: the same). With a noise among
        them the noise is left out, and the caller sets it.

        Options that differ from this architecture's defaults are kept if the new one uses them; beta where it is the
        weight of the same penalty.

        Raises: ConfigError for an unknown architecture or choice.
        """
        name = self.architecture if architecture is None else architecture
        require_choice("architecture", name, TRAINED)
        choices = {n: v for n, v in choices.items() if v is not None}
        if name == self.architecture and not choices:
            return self.without_unused()
        defaults, names = _defaults(type(self)), self.shared_with(name) | {"lr"}
        noise = [name for name in NOISES if choices.pop(name, None) is not None]
        left_out = {*self.unused(), *(NOISES if noise else ())}
        used = {n: v for n, v in vars(self).items() if n not in left_out}
        kept = {n: v for n, v in used.items() if n in names and v != defaults[n]}
        kept |= {n: v for n, v in choices.items() if n in names}
        return CONFIGS[name](**kept).without_unused()

    def shared_with(self, architecture: str) -> set[str]:
        """The options that mean the same to another architecture. lr does among those whose default is upstream's for TopK,
        and beta where it is the weight of the same penalty."""
        names = {*_defaults(CONFIGS[architecture])} - {"architecture"}
        rows = TRAINED[self.architecture], TRAINED[architecture]
        if any(row.default_lr is not None for row in rows):
            names.discard("lr")
        if issubclass(CONFIGS[architecture], Variational) != isinstance(self, Variational):
            names.discard("beta")
        return names

    def without_unused(self) -> "Self":
        """The same, with the options that have no effect at their defaults."""
        defaults = _defaults(type(self))
        left_out: dict[str, Any] = {name: defaults[name] for name, _, _ in self.given_in_vain()}
        return replace(self, **left_out) if left_out else self

    def of_steps(self, was: int, now: int) -> "Self":
        """The resolved settings of a run of `was` steps as the start of one of `now` steps. What equals its default follows
        from the run and from other settings again. Other schedules remain the same share of the run."""
        defaults, changed = _defaults(type(self)), dict[str, Any]()
        for name, value in vars(self).items():
            default = defaults[name]
            if isinstance(default, Follows) and value == default.value(self, was):
                changed[name] = default
            elif name in SCHEDULES and isinstance(value, int) and was != now:
                least = 0 if name in (*_WARMUPS, "decay_start") else min(value, 1)
                changed[name] = share_of_run(value / was, least=least)
        return replace(self, **changed)

    def resolve(self, steps: int) -> "Self":
        """The settings with all defaults filled in, checked for a run of `steps`. An option that has no effect stays at its
        default.

        Raises: ConfigError for an option that has no effect, or does not fit the run.
        """
        for name, value, choice in self.given_in_vain():
            raise not_used(name, value, choice)
        used = {n: v for n, v in vars(self).items() if n not in self.unused()}
        following = {n: v for n, v in used.items() if isinstance(v, Follows)}
        values: dict[str, Any] = {n: v.value(self, steps) for n, v in following.items()}
        after = max(values.get(n, vars(self)[n]) for n in _WARMUPS if n in vars(self))
        if values.get("decay_start", steps) <= after:
            values["decay_start"] = None  # so short a run that lr would fall before it has risen
        resolved = replace(self, **values) if values else self
        resolved._require_schedules(steps, after)
        return resolved

    def _require_schedules(self, steps: int, after: int) -> None:
        """Raise a ConfigError unless the schedules fit a run of `steps`, whose warm-ups last `after` steps."""
        for name, least in (("kl_warmup_steps", 0), ("noise_anneal_steps", 1)):
            count = vars(self).get(name)
            fits = not isinstance(count, int) or count <= steps
            require(fits, name, count, f"{least} to steps={steps!r}")
        for name in (n for n in _WARMUPS if n in vars(self)):
            count = vars(self)[name]
            require(count < steps, name, count, f"at least 0 and less than steps={steps!r}")
        start, expected = self.decay_start, f"between {after} and steps={steps!r}"
        fits = start is None or after < start < steps
        require(fits, "decay_start", start, f"{expected}, or none")

    def require_units(self, normalize: Normalize) -> None:
        """Raise a ConfigError if an option needs normalised activations and `normalize` is none."""

    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments of the architecture's trainer, from resolved settings."""
        arguments = self.to_dict()
        for name in ("architecture", "init_from", "start"):
            arguments.pop(name, None)
        if (k := self.kept_per_token) is not None:
            arguments["k"] = k
        return {n: list(v) if isinstance(v, tuple) else v for n, v in arguments.items()}


_WARMUPS = ("warmup_steps", "sparsity_warmup_steps")
SCHEDULES = (*_WARMUPS, "decay_start", "kl_warmup_steps", "noise_anneal_steps")
"""The settings that are numbers of steps."""


@dataclass(frozen=True, kw_only=True)
class Variational(PosteriorOptions, ObjectiveOptions, SAEConfig):
    """Options that all vSAEs share.

    `sigma`, if it is given, takes the place of `noise_to_signal`.
    """

    rectify: ClassVar[bool] = False
    select_by: ClassVar[SelectBy] = "value"
    over_batch: ClassVar[bool] = False
    """Whether a batch of B tokens shares the B k features that are kept, and a ReLU is applied to their values."""

    noise_on: NoiseOn = "selection"
    sigma: Sigma | None = None
    """The fixed posterior's standard deviation, in training units. Paper: 1."""
    noise_to_signal: NoiseToSignal = 0.3
    """Sets sigma = sqrt(noise_to_signal E||x||^2 / k). It is the energy of the noise of k features, relative to
    the activations'. Instead of sigma; needs --normalize sqrt_d or unit."""

    def __post_init__(self, *_: Any):
        super().__post_init__()
        if self.sigma is not None and self.noise_to_signal != Variational.noise_to_signal:
            both = f"sigma={self.sigma!r} and noise_to_signal={self.noise_to_signal!r}"
            instead = "leave out sigma or noise_to_signal"
            raise ConfigError(f"{both}: expected one of them", instead=instead)

    def sigma_of(self, energy: float) -> float:
        """The fixed posterior's standard deviation, 0 for any other. `energy` is E||x||^2 of the activations."""
        if self.posterior != "fixed":
            return 0.0
        k: Any = self.kept_per_token
        return math.sqrt(self.noise_to_signal * energy / k) if self.sigma is None else self.sigma

    def unused(self) -> dict[str, str]:
        by = {name: f"posterior {self.posterior}" for name in UNUSED_BY[self.posterior]}
        by |= super().unused()
        by |= {} if self.sigma is None else {"noise_to_signal": "sigma"}
        is_constant = self.kl_schedule == "constant"
        return by | ({"kl_warmup_steps": "kl_schedule constant"} if is_constant else {})

    def to_dict(self) -> dict[str, Any]:
        return {n: v for n, v in super().to_dict().items() if n != "sigma" or v is not None}

    def require_units(self, normalize: Normalize) -> None:
        if self.posterior == "fixed" and self.sigma is None:
            expected = "sqrt_d or unit, with noise_to_signal"
            instead = "or give sigma in the activations' own units"
            require(normalize != "none", "normalize", normalize, expected, instead=instead)


# --- one class for each architecture


@dataclass(frozen=True, kw_only=True)
class VSAETopKConfig(TopKOptions, TokenSelection, Variational):
    """The variational TopK SAE."""

    architecture: Literal["vsae_top_k"] = _named("vsae_top_k")


@dataclass(frozen=True, kw_only=True)
class VSAEBatchTopKConfig(TopKOptions, Variational):
    """The variational BatchTopK SAE, which keeps k features on average, and encodes by a threshold."""

    architecture: Literal["vsae_batch_top_k"] = _named("vsae_batch_top_k")
    over_batch: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class VSAEConfig(TokenSelection, Variational):
    """The purely variational SAE: its k is dict_size."""

    architecture: Literal["vsae"] = _named("vsae")
    noise_on: NoiseOn = "both"  # it selects all features anyway

    @property
    def kept_per_token(self) -> int:
        return self.dict_size

    def without_unused(self) -> "Self":
        kept = super().without_unused()  # it selects all features anyway
        return replace(kept, noise_on="both") if kept.noise_on == "selection" else kept


@dataclass(frozen=True, kw_only=True)
class VAEaseOptions(Checked):
    """What a VAEase is built of."""

    log_var_init: LogRatio = -0.5
    """The initial log-variance, relative to the prior's."""
    gamma_init: PositiveScale = 0.1
    """Initial variance of the reconstruction's error, per dimension, in training units. It is
    learned; its logarithm moves by up to lr a step."""
    prior_std: PositiveScale = 1.0
    """The standard deviation of the prior, in training units."""
    active_gate: Gate = 0.05
    """The gate, 1 - sigma/p, at or below which a feature counts as off in encoding. Training does
    not use it."""


@dataclass(frozen=True, kw_only=True)
class VAEaseConfig(VAEaseOptions, SAEConfig):
    """VAEase (Lu et al. 2025)."""

    architecture: Literal["vaease"] = _named("vaease")


@dataclass(frozen=True, kw_only=True)
class VSAEAsPublishedConfig(SAEConfig):
    """The vSAE of the paper's public code, as it trains."""

    architecture: Literal["vsae_as_published"] = _named("vsae_as_published")
    k: Count = 16
    """Features kept per token. Its analysed SAEs: 64, 128, 256, 512 of 8,192."""
    beta: NotNegative = 1.0
    """Weight of half the sum of all squared activations, in training units."""
    kl_warmup_steps: Natural = field(default=share_of_run(0.1))
    """Steps over which beta rises linearly. 0: no warm-up. Default: a tenth of the run."""


@dataclass(frozen=True, kw_only=True)
class _UpstreamTopK(TopKOptions, AuxKOptions, SAEConfig):
    """Options that upstream's SAEs with a k share."""


@dataclass(frozen=True, kw_only=True)
class TopKConfig(_UpstreamTopK):
    """Upstream's TopK SAE."""

    architecture: Literal["top_k"] = _named("top_k")


@dataclass(frozen=True, kw_only=True)
class ProbabilisticTopKConfig(_UpstreamTopK):
    """Probabilistic TopK (Li et al. 2026): random gates that harden."""

    architecture: Literal["probabilistic_top_k"] = _named("probabilistic_top_k")
    temperature_start: float = 5.0
    """The gates' temperature at the first step: the higher, the less a gate says."""
    temperature_end: float = 1e-3
    """The same at the last step. Between them it falls geometrically. Near 0, gates are open or shut."""

    def __post_init__(self):
        super().__post_init__()
        start, end = self.temperature_start, self.temperature_end
        low, high = 1e-6, 1e6
        require(low <= end, "temperature_end", end, f"at least {low:g}")
        limits = f"between temperature_end={end!r} and {high:g}"
        require(end <= start <= high, "temperature_start", start, limits)


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(_UpstreamTopK):
    """Upstream's BatchTopK SAE, which keeps k features on average, and encodes by a threshold."""

    architecture: Literal["batch_top_k"] = _named("batch_top_k")


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(SparsityWarmupOptions, SAEConfig):
    """Upstream's ReLU SAE."""

    architecture: Literal["relu"] = _named("relu")
    l1_penalty: NotNegative = 0.1
    """Weight of the L1 norm."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SparsityWarmupOptions, SAEConfig):
    """Upstream's JumpReLU SAE."""

    architecture: Literal["jump_relu"] = _named("jump_relu")
    sparsity_penalty: NotNegative = 1.0
    """Weight of the sparsity loss."""
    target_l0: Positive = 20.0
    """The number of active features aimed at."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(_UpstreamTopK):
    """Upstream's Matryoshka BatchTopK SAE."""

    architecture: Literal["matryoshka"] = _named("matryoshka")
    group_fractions: tuple[float, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Each nested group's share of the dictionary. They sum to 1."""

    def __post_init__(self):
        super().__post_init__()
        shares = self.group_fractions
        is_whole = abs(sum(shares) - 1) < 1e-9 and min(shares, default=0) > 0
        require(is_whole, "group_fractions", shares, "positive shares that sum to 1")
        sizes = [int(share * self.dict_size) for share in shares[:-1]]  # as upstream does
        has_all = min([*sizes, self.dict_size - sum(sizes)]) > 0
        expected = f"so many that each group of group_fractions={shares} has a feature"
        require(has_all, "dict_size", self.dict_size, expected)


CONFIGS: dict[str, type[SAEConfig]] = {
    cls.architecture: cls
    for cls in (
        VSAETopKConfig,
        VSAEBatchTopKConfig,
        VSAEConfig,
        VAEaseConfig,
        VSAEAsPublishedConfig,
        TopKConfig,
        ProbabilisticTopKConfig,
        BatchTopKConfig,
        ReLUConfig,
        JumpReLUConfig,
        MatryoshkaConfig,
    )
}
"""The class of the settings of each architecture, by its name."""
assert CONFIGS.keys() == TRAINED.keys(), "each architecture that is trained has settings"


def option_names(cls: type[SAEConfig]) -> list[str]:
    """The names by which the options of an architecture are given."""
    return [each.name for each in fields(cls)]


OPTION_NAMES = tuple(dict.fromkeys(name for cls in CONFIGS.values() for name in option_names(cls)))
"""The names of the options of all architectures."""


def sae_settings(architecture: str, options: dict[str, Any]) -> SAEConfig:
    """The settings of an architecture, from its options by name.

    Raises: ConfigError for an unknown architecture, an option that it does not have, or a wrong value.
    """
    require_choice("architecture", architecture, TRAINED)
    cls = CONFIGS[architecture]
    for name in options:
        require_option(name, cls)
    return cls(**options)


def require_option(name: str, cls: type[SAEConfig]) -> None:
    """Raise a ConfigError unless an architecture has an option of this name."""
    names = option_names(cls)
    if name in names:
        return
    if name in OPTION_NAMES:
        own = [each for each in names if each not in _defaults(SAEConfig)]
        what = f"{cls.architecture} does not use it"
        raise ConfigError(what, name=name, instead=f"it uses {', '.join(own)}")
    hint = did_you_mean(name, names) or f"; expected one of {', '.join(names)}"
    raise ConfigError(f"no such option of {cls.architecture}{hint}", name=name)


def not_used(name: str, value: Any, who: str) -> ConfigError:
    """The error for an option that has no effect because of another choice.

    Arguments:
        who: that choice, e.g. "posterior point".
    """
    return ConfigError(
        f"{who} does not use it",
        name=name,
        value=value,
        instead=f"leave out {name}",
    )


def in_units(sae: Settings, energy: float) -> Settings:
    """The settings of the same SAE for activations whose E||x||^2 is `energy` times as large."""
    return replace(sae, **rescaled(sae, energy))


def rescaled(sae: SAEConfig, energy: float) -> dict[str, Any]:
    """The options that `in_units` changes.

    The squared error grows by `energy` and the KL stays. So beta is multiplied by `energy`, sigma and prior_std
    by its square root, and log_var_init, which stays in its range, gains log(energy).
    """
    if not isinstance(sae, Variational):
        return {}
    root = math.sqrt(energy)
    changed: dict[str, Any] = {"beta": sae.beta * energy, "prior_std": sae.prior_std * root}
    if sae.sigma is not None:
        changed["sigma"] = sae.sigma * root
    if sae.posterior == "learned":
        changed["log_var_init"] = min(max(sae.log_var_init + math.log(energy), _LOWEST), _HIGHEST)
    return changed


def _defaults(cls: type[SAEConfig]) -> dict[str, Any]:
    return {each.name: each.default for each in fields(cls)}
