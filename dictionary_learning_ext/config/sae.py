"""The settings of an SAE: a frozen dataclass for each architecture. Imports no torch.

The docstring under a field is its help text on the command line. Its type may hold the range of its values;
`__post_init__` checks what depends on other options. An option that is None follows from the run or from other
options, see `SAEConfig.resolve`. `vsae train` replaces these defaults by those of a preset, see presets.py.

Schedules are shares of the run here. Flags and trainers have them in steps, under the names in `SCHEDULES`. All other
options have the same names everywhere.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict, get_args

from ..errors import ConfigError, shown
from .architectures import TRAINED
from .checks import (
    SCALE,
    Checked,
    Count,
    NotNegative,
    Positive,
    Range,
    Seed,
    annotations_of,
    did_you_mean,
    require,
    require_choice,
    require_type,
)
from .former import former_setting

if TYPE_CHECKING:
    from typing_extensions import Self

# Weights hold these choices by their position: add at the end, and don't reorder.
Posterior = Literal["fixed", "learned", "point"]
NoiseOn = Literal["both", "values", "selection"]
SelectBy = Literal["value", "magnitude"]

KLScope = Literal["all", "selected"]
KLSchedule = Literal["constant", "linear", "cosine"]
Normalize = Literal["sqrt_d", "unit", "none"]

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

NOISES = ("sigma", "noise_to_signal", "survival")
"""Three ways to say how much noise: one takes the place of another."""
NOISE_OF_VALUES = 0.3
"""The noise_to_signal in place of `survival` where noise selects nothing: of a vsae, and with noise_on values."""

_LOWEST, _HIGHEST = LOG_VAR_LIMITS
_NO_NOISE = "for no noise use posterior='point'"
Scale = Annotated[float, SCALE]
Sigma = Annotated[float, SCALE._replace(instead=_NO_NOISE)]
LogVariance = Annotated[
    float, Range(f"between {_LOWEST} and {_HIGHEST}", lambda x: _LOWEST <= x <= _HIGHEST)
]
LogRatio = Annotated[float, Range(f"{_LOWEST} or more, and below 0", lambda x: _LOWEST <= x < 0)]
Gate = Annotated[float, Range("0 or more, and below 1", lambda x: 0 <= x < 1)]


def _share(words: str, holds: Callable[[float], bool], instead: str = "") -> Range:
    """The range of a share of the run. {} in `words` stands for the whole run."""
    return Range(words.format(1), holds, instead, in_steps=words)


Share = Annotated[float, _share("0 to {}", lambda x: 0 <= x <= 1)]
SomeShare = Annotated[float, _share("above 0 and at most {}", lambda x: 0 < x <= 1)]
NoiseShare = Annotated[float, _share("above 0 and at most {}", lambda x: 0 < x <= 1, _NO_NOISE)]
ShareBelow = Annotated[float, _share("at least 0 and less than {}", lambda x: 0 <= x < 1)]
SomeShareBelow = Annotated[float, _share("above 0 and less than {}", lambda x: 0 < x < 1)]

UNUSED_BY: dict[Posterior, tuple[str, ...]] = {
    "fixed": ("log_var_init",),
    "learned": ("sigma", "noise_to_signal", "survival"),
    "point": ("sigma", "noise_to_signal", "survival", "log_var_init", "noise_on", "noise_anneal"),
}
"""The options that each posterior does not use."""


class Schedule(NamedTuple):
    """How a setting that is a share of the run is counted in steps."""

    in_steps: str
    """The name of the flag and of the trainer's argument, e.g. warmup_steps."""
    default: Callable[[int], int] | None = None
    """The default in steps, given the steps of the run."""
    least: int = 0
    """The smallest number of steps that a share is rounded to."""

    def filled(self, share: float | None, steps: int) -> float | None:
        """The share, or its default in a run of `steps`."""
        return self.default(steps) / steps if share is None and self.default else share

    def count(self, share: float | None, steps: int) -> int | None:
        """The share in steps of a run of `steps`."""
        share = self.filled(share, steps)
        if share is None:
            return None
        return max(self.least, math.floor(share * steps + 1e-6))  # n / steps may be just below n

    def share(self, count: int, steps: int) -> float | None:
        """`count` steps as a share of a run of `steps`; None if that is the default."""
        return None if self.default and count == self.default(steps) else count / steps


SCHEDULES = {
    "warmup": Schedule("warmup_steps", lambda steps: min(1000, steps // 10)),
    "decay_start": Schedule("decay_start"),
    "sparsity_warmup": Schedule("sparsity_warmup_steps", lambda steps: min(2000, steps // 5)),
    "kl_warmup": Schedule("kl_warmup_steps", lambda steps: max(1, steps // 10)),
    "noise_anneal": Schedule("noise_anneal_steps", least=1),
    "k_anneal": Schedule("k_anneal_steps", least=1),
}
"""The schedules, by the name of the setting."""
_BEFORE_DECAY = ("warmup", "sparsity_warmup")
_TYPED = {name: row.in_steps for name, row in SCHEDULES.items()}
_SETTINGS = {row.in_steps: name for name, row in SCHEDULES.items()}


PAPER_SIGMA = 1.0
"""The fixed posterior's default sigma."""


def training_energy(normalize: Normalize, activation_dim: int) -> int:
    """E||x||^2 of activations that are normalised by "sqrt_d" or "unit"."""
    return activation_dim if normalize == "sqrt_d" else 1


@dataclass(frozen=True, kw_only=True)
class TopKOptions(Checked):
    """Options of SAEs that keep k features per token."""

    k: Count = 32
    """Features kept per token. Paper: 64, 128, 256, 512."""
    k_anneal: SomeShare | None = None
    """How long k falls linearly, from the width of the activations (or dict_size, if that is less) to k.
    Only training steps keep more than k; logs and checkpoints keep k. none: k stays."""


@dataclass(frozen=True, kw_only=True)
class AuxKOptions(Checked):
    """Upstream's auxiliary loss, AuxK (Gao et al. 2024, A.2)."""

    auxk_alpha: NotNegative = 1 / 32
    """Weight of the auxiliary loss that revives dead features, in units of the activations' E||x||^2, as
    the squared error. 0 turns it off."""
    dead_feature_threshold: Count | None = None
    """Tokens without firing after which a feature counts as dead. Default: 100 times as many as a feature
    of average rate takes to fire once, dict_size / k. Upstream: 10,000,000."""


@dataclass(frozen=True, kw_only=True)
class PosteriorOptions(Checked):
    """The distribution of a vSAE's features, and which of them are kept."""

    posterior: Posterior = "fixed"
    """fixed (paper): sigma is a constant. learned: sigma depends on the token, by a linear map. point:
    sigma = 0, a TopK SAE with an L2 penalty on its activations."""
    sigma: Sigma | None = None
    """The fixed posterior's standard deviation, in training units. Default, unless noise_to_signal or
    survival is given: 1 (paper)."""
    log_var_init: LogVariance = -2.0
    """The learned posterior's initial log-variance."""
    noise_on: NoiseOn = "both"
    """What the sample changes in training: both (paper), the values of the features that the mean
    selects, or only the selection."""
    rectify: bool = False
    """Apply a ReLU to the mean, as upstream's TopK does. Paper: no."""
    select_by: SelectBy = "value"
    """Keep the k largest activations (value; paper), or the k of largest magnitude with their signs
    (magnitude: AbsTopK, arXiv 2510.00404)."""
    prior_std: Scale = 1.0
    """The standard deviation of the prior, in training units."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(AuxKOptions):
    """Weights and schedules of the terms of a vSAE's loss beside the squared error."""

    beta: NotNegative = 1.0
    """Weight of the KL (nats per token) beside the squared error, in training units. Paper: not
    stated."""
    kl_scope: KLScope = "all"
    """The KL is summed over all features (paper) or the k selected."""
    kl_schedule: KLSchedule = "linear"
    """How beta is annealed. Paper: annealed, form not stated."""
    kl_warmup: Share | None = None
    """How long beta rises (linear, cosine). 0: no warm-up. Default: a tenth of the run."""
    noise_anneal: NoiseShare | None = None
    """How long the noise falls linearly to 0, or survival rises to 1. none: the noise stays."""
    survival: SomeShare | None = None
    """The share of a token's noiseless top k that the noise leaves selected at the start, instead of a
    sigma. It has no unit: sigma follows from it in every step. With noise_on selection or both. beta then
    weighs an L2 penalty on the means."""


@dataclass(frozen=True, kw_only=True)
class SparsityWarmupOptions(Checked):
    """The warm-up of upstream's sparsity penalties."""

    sparsity_warmup: ShareBelow | None = None
    """How long the sparsity loss rises. Default: 2000 steps or a fifth of the run, whichever is
    less."""


_ARCHITECTURE = {
    "help": "Each has flags of its own: --architecture NAME --help shows them. "
    + ". ".join(f"{name}: {row.description}" for name, row in TRAINED.items())
    + ".",
    "metavar": "NAME",
}


def _lr_help() -> str:
    by_lr: dict[str, list[str]] = {}
    for name, row in TRAINED.items():
        by_lr.setdefault(row.default_lr, []).append(name)
    defaults = "; ".join(f"{lr} for {', '.join(names)}" for lr, names in by_lr.items())
    return f"Adam's learning rate. Paper: not stated. With --lr none: {defaults}."


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Checked):
    """The settings of an SAE, and those that all architectures share.

    `SAEConfig(architecture="top_k", k=8)` makes a `TopKConfig(k=8)`. The default architecture makes a
    `VSAETopKConfig`. Type checkers know only the options of these classes.
    """

    architecture: str = field(default="vsae_top_k", metadata=_ARCHITECTURE)
    dict_size: Count = 1024
    """Features in the dictionary. Paper: 2048."""
    lr: Positive | None = field(default=None, metadata={"help": _lr_help()})
    warmup: ShareBelow | None = None
    """How long lr rises from 0. Default: 1000 steps or a tenth of the run, whichever is less."""
    decay_start: SomeShareBelow | None = None
    """When lr begins to fall linearly, to 0 at the end: a share of the run in settings, a step as a
    flag. none: it does not fall."""
    seed: Seed = 0
    """Seeds the initial weights and the noise."""
    init_from: str | None = None
    """Start from the weights of a trained SAE instead of random ones: a run folder, or a folder of
    dictionary_learning's or SAELens's. Architecture, dict_size and k must be its own; --config
    takes them from a run folder. Default: random weights."""

    if TYPE_CHECKING:

        def __init__(self, **options: Any) -> None: ...

    else:

        def __new__(cls, **options):
            name = options.get("architecture", cls.architecture)
            if cls is SAEConfig:
                require_choice("architecture", name, TRAINED)
                cls = CONFIGS[name]
            for option in options:
                _require_option(option, cls)
            return object.__new__(cls)

    def __post_init__(self):
        super().__post_init__()
        k = self.kept_per_token
        largest = f"1 to dict_size={self.dict_size!r}"
        require(k is None or k <= self.dict_size, "k", k, largest)

    @property
    def kept_per_token(self) -> int | None:
        """The number of features kept per token; None if it differs between tokens."""
        return vars(self).get("k")

    @property
    def options(self) -> dict[str, Any]:
        """The options that not all architectures have."""
        common = {each.name for each in fields(SAEConfig)}
        return {n: v for n, v in vars(self).items() if n not in common}

    def unused(self) -> dict[str, str]:
        """The options that have no effect because of others, and the choice that makes them so."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The options of all architectures. Those that have no effect here are None."""
        unused = self.unused()
        used = {name: value for name, value in vars(self).items() if name not in unused}
        return {name: used.get(name) for name in OPTION_NAMES}

    def switch_architecture(
        self,
        architecture: str | None = None,
        posterior: str | None = None,
        kl_schedule: str | None = None,
        noise_on: str | None = None,
    ) -> "SAEConfig":
        """The settings with another architecture, posterior, schedule or place of the noise (None: the same).

        Options that then have no effect are dropped; noise_to_signal takes the place of `survival` where noise selects
        nothing. Options at their defaults get those of the new architecture.

        Raises: ConfigError for an unknown architecture, posterior, schedule or place.
        """
        chosen = {"posterior": posterior, "kl_schedule": kl_schedule, "noise_on": noise_on}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        name = self.architecture if architecture is None else architecture
        require_choice("architecture", name, TRAINED)
        names = {each.name for each in fields(CONFIGS[name])} - {"architecture"}
        defaults, unused = _defaults(type(self)), self.unused()
        given = {n: v for n, v in vars(self).items() if v != defaults[n] and n not in unused}
        if posterior not in (None, given.get("posterior", defaults.get("posterior"))):
            given.pop("sigma", None)  # each posterior means something else by it
        kept: dict[str, Any] = {n: v for n, v in (given | chosen).items() if n in names}
        selects_nothing = name == "vsae" or kept.get("noise_on") == "values"
        if selects_nothing and kept.pop("survival", None) is not None:
            kept["noise_to_signal"] = NOISE_OF_VALUES
        return CONFIGS[name](**kept).without_unused()

    def without_noise_for(self, given: Collection[str]) -> "Self":
        """The settings without the noise that one of these settings, which are given, takes the place of."""
        if not set(NOISES) & set(given):
            return self
        none: dict[str, Any] = dict.fromkeys(set(NOISES) & vars(self).keys())
        return replace(self, **none)

    def without_unused(self) -> "Self":
        """The same, with the options that have no effect at their defaults."""
        defaults = _defaults(type(self))
        left_out: dict[str, Any] = {name: defaults[name] for name in self.unused()}
        return replace(self, **left_out)

    def in_steps(self, steps: int) -> dict[str, int | None]:
        """The schedules in steps of a run of `steps`. If lr would fall before it has risen, as in a very short run, it
        does not fall."""
        own = SCHEDULES.keys() & vars(self).keys()
        counts = {name: SCHEDULES[name].count(getattr(self, name), steps) for name in own}
        decay = counts["decay_start"]
        if decay is not None and decay <= max(counts.get(name) or 0 for name in _BEFORE_DECAY):
            counts["decay_start"] = None
        return counts

    def to_flags(self, settings: dict[str, Any], steps: int) -> dict[str, Any]:
        """Settings as flags: schedules in steps of a run of `steps`."""
        counts = self.in_steps(steps)
        return {_TYPED.get(n, n): counts.get(n, value) for n, value in settings.items()}

    def with_flags(self, typed: dict[str, Any], steps: int) -> "Self":
        """The settings changed by flags, which have schedules in steps of a run of `steps`.

        Raises: ConfigError for a wrong value, or a number of steps that doesn't fit the run.
        """
        changes: dict[str, Any] = {}
        for flag, value in typed.items():
            name = _SETTINGS.get(flag, flag)
            if name in SCHEDULES and hasattr(self, name) and value is not None:
                require_type(flag, value, int | None)
                for legal in annotations_of(type(self))[name][1]:
                    words = f"{legal.in_steps.format(f'steps={steps}')}, or none"
                    require(legal.holds(value / steps), flag, value, words, instead=legal.instead)
                value = SCHEDULES[name].share(value, steps)
            changes[name] = value
        return replace(self, **changes)

    def resolve(self, steps: int) -> "Self":
        """Check the settings for a run of `steps`, and fill in the defaults.

        sigma stays None if noise_to_signal gives it: see `with_sigma`.

        Raises: ConfigError for an option that has no effect, or does not fit the run.
        """
        defaults = _defaults(type(self))
        for name, by in self.unused().items():
            if (value := getattr(self, name)) != defaults[name]:
                raise not_used(name, value, by)
        self._require_order(steps)
        return self.with_dead_after()

    def with_defaults(self, steps: int) -> "Self":
        """Fill in upstream's defaults, as a trainer in upstream's `trainSAE` does.

        Raises: ConfigError if lr begins to fall too early.
        """
        self._require_order(steps)
        return self.with_threshold(DEAD_FEATURE_THRESHOLD)

    def with_dead_after(self) -> "Self":
        """Fill in our default of dead_feature_threshold."""
        return self.with_threshold(dead_after(self.dict_size, self.kept_per_token or 1))

    def with_threshold(self, tokens: int) -> "Self":
        """The same with this dead_feature_threshold, if none is set."""
        if vars(self).get("dead_feature_threshold", 0) is not None:
            return self
        threshold: dict[str, Any] = {"dead_feature_threshold": tokens}
        return replace(self, **threshold)

    def _require_order(self, steps: int) -> None:
        """Raise a ConfigError unless lr begins to fall after the warm-ups have ended."""
        own = [name for name in _BEFORE_DECAY if name in vars(self)]
        after = max(SCHEDULES[name].filled(getattr(self, name), steps) or 0 for name in own)
        if self.decay_start is not None and self.decay_start <= after:
            count, most = (
                SCHEDULES["decay_start"].count(x, steps) for x in (self.decay_start, after)
            )
            expected = f"between {most} and steps={steps!r}"
            raise ConfigError(name="decay_start", value=count, expected=expected)

    def require_units(self, normalize: Normalize) -> None:
        """Raise a ConfigError if an option needs normalised activations and `normalize` is none."""

    def with_sigma(self, activation_dim: int, normalize: Normalize) -> "Self":
        """The same settings; a variational SAE's have the sigma that their noise_to_signal gives."""
        return self

    def trainer_arguments(self, steps: int, energy: float = 1.0) -> dict[str, Any]:
        """The trainer's arguments, for settings that were resolved for a run of `steps`.

        Arguments:
            energy: E||x||^2 of the activations that the trainer gets. The squared error is proportional to it. AuxK's
                loss has no unit, so its weight is multiplied by it.
        """
        common = {
            name: getattr(self, name) for name in ("dict_size", "warmup", "decay_start", "seed")
        }
        arguments = self.to_flags(common, steps)
        if self.lr is not None:
            arguments["lr"] = self.lr
        used = {name: v for name, v in self.options.items() if name not in self.unused()}
        for option, value in self.to_flags(used, steps).items():
            if value is not None:
                arguments[option] = list(value) if isinstance(value, tuple) else value
        if "auxk_alpha" in arguments:
            arguments["auxk_alpha"] *= energy
        if self.kept_per_token is not None:
            arguments["k"] = self.kept_per_token
            # Upstream's 1000 is past the end of a short run.
            arguments["threshold_start_step"] = min(1000, steps // 2)
        return arguments


@dataclass(frozen=True, kw_only=True)
class Variational(PosteriorOptions, ObjectiveOptions, SAEConfig):
    """Options that `vsae_top_k` and `vsae` share."""

    noise_to_signal: Positive | None = None
    """Gives sigma as r = k sigma^2 / E||x||^2, the noise energy that sampling adds to a
    reconstruction, relative to the activations' energy. Instead of sigma; needs --normalize sqrt_d or
    unit."""

    def __post_init__(self):
        super().__post_init__()
        if self.survival is not None and self.posterior == "fixed":
            _require_one(self, "survival", "sigma")
            _require_one(self, "survival", "noise_to_signal")
            expected = f"selection or both with survival={self.survival!r}"
            instead = f"or give noise_to_signal, e.g. {NOISE_OF_VALUES}, in place of survival"
            require(self.noise_on != "values", "noise_on", self.noise_on, expected, instead=instead)
            k = self.kept_per_token
            below = f"below dict_size={self.dict_size!r}, so that there is a selection"
            require(k != self.dict_size, "k", k, below, instead=instead)

    def unused(self) -> dict[str, str]:
        by = {name: f"posterior {self.posterior}" for name in UNUSED_BY[self.posterior]}
        return by | (
            {"kl_warmup": "kl_schedule constant"} if self.kl_schedule == "constant" else {}
        )

    def with_defaults(self, steps: int) -> "Self":
        """Fill in upstream's defaults, and a fixed posterior's default sigma."""
        found, sets_noise = (
            super().with_defaults(steps),
            (self.sigma, self.noise_to_signal, self.survival),
        )
        has_default = self.posterior == "fixed" and not any(x is not None for x in sets_noise)
        return replace(found, sigma=PAPER_SIGMA) if has_default else found

    def resolve(self, steps: int) -> "Self":
        _require_one(self, "sigma", "noise_to_signal")
        return super().resolve(steps).with_defaults(steps)

    def trainer_arguments(self, steps: int, energy: float = 1.0) -> dict[str, Any]:
        arguments = super().trainer_arguments(steps, energy)
        if arguments.pop("noise_to_signal", None) is not None:
            assert self.sigma is not None, "call with_sigma(activation_dim, normalize) first"
        return arguments

    def require_units(self, normalize: Normalize) -> None:
        if self.noise_to_signal is not None and normalize == "none":
            raise ConfigError(
                name="noise_to_signal",
                value=self.noise_to_signal,
                expected="normalize='sqrt_d' or unit",
                instead="give sigma in the activations' own units",
            )

    def with_sigma(self, activation_dim: int, normalize: Normalize) -> "Self":
        """The same with the sigma that noise_to_signal gives: sqrt(r E||x||^2 / k)."""
        if self.noise_to_signal is None:
            return self
        self.require_units(normalize)
        energy = training_energy(normalize, activation_dim)
        k = self.kept_per_token or self.dict_size
        return replace(self, sigma=math.sqrt(self.noise_to_signal * energy / k))


@dataclass(frozen=True, kw_only=True)
class VSAETopKConfig(TopKOptions, Variational):
    """The variational TopK SAE."""

    architecture: Literal["vsae_top_k"] = field(default="vsae_top_k", metadata=_ARCHITECTURE)


@dataclass(frozen=True, kw_only=True)
class VSAEConfig(Variational):
    """The purely variational SAE: its k is dict_size."""

    architecture: Literal["vsae"] = field(default="vsae", metadata=_ARCHITECTURE)

    @property
    def kept_per_token(self) -> int:
        return self.dict_size

    def without_unused(self) -> "Self":
        kept = super().without_unused()  # it selects all features anyway
        return replace(kept, noise_on="both") if kept.noise_on == "selection" else kept


@dataclass(frozen=True, kw_only=True)
class VAEaseConfig(SAEConfig):
    """VAEase (Lu et al. 2025)."""

    architecture: Literal["vaease"] = field(default="vaease", metadata=_ARCHITECTURE)
    log_var_init: LogRatio = -0.5
    """The initial log-variance, relative to the prior's."""
    gamma_init: Scale = 0.1
    """Initial variance of the reconstruction's error, per dimension, in training units. It is
    learned; its logarithm moves by up to lr a step."""
    prior_std: Scale = 1.0
    """The standard deviation of the prior, in training units."""
    active_gate: Gate = 0.05
    """The gate, 1 - sigma/p, at or below which a feature counts as off in encoding. Training does
    not use it."""


@dataclass(frozen=True, kw_only=True)
class _UpstreamTopK(TopKOptions, AuxKOptions, SAEConfig):
    """Options that upstream's SAEs with a k share."""


@dataclass(frozen=True, kw_only=True)
class TopKConfig(_UpstreamTopK):
    """Upstream's TopK SAE."""

    architecture: Literal["top_k"] = field(default="top_k", metadata=_ARCHITECTURE)


@dataclass(frozen=True, kw_only=True)
class ProbabilisticTopKConfig(_UpstreamTopK):
    """Probabilistic TopK (Li et al. 2026): random gates that harden."""

    architecture: Literal["probabilistic_top_k"] = field(
        default="probabilistic_top_k", metadata=_ARCHITECTURE
    )
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
class _UpstreamBatchTopK(_UpstreamTopK):
    """Options of upstream's SAEs that keep k features on average, and encode by a threshold."""

    k_anneal: SomeShareBelow | None = None  # the threshold is learned at k itself


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(_UpstreamBatchTopK):
    """Upstream's BatchTopK SAE."""

    architecture: Literal["batch_top_k"] = field(default="batch_top_k", metadata=_ARCHITECTURE)


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(SparsityWarmupOptions, SAEConfig):
    """Upstream's ReLU SAE."""

    architecture: Literal["relu"] = field(default="relu", metadata=_ARCHITECTURE)
    l1_penalty: NotNegative = 0.1
    """Weight of the L1 norm."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SparsityWarmupOptions, SAEConfig):
    """Upstream's JumpReLU SAE."""

    architecture: Literal["jump_relu"] = field(default="jump_relu", metadata=_ARCHITECTURE)
    sparsity_penalty: NotNegative = 1.0
    """Weight of the sparsity loss."""
    target_l0: Positive = 20.0
    """The number of active features aimed at."""
    threshold_twice: bool = False
    """Let thresholds learn from upstream's sparsity loss, which applies them twice, instead of the
    JumpReLU paper's (dictionary_learning's issue 55)."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(_UpstreamBatchTopK):
    """Upstream's Matryoshka BatchTopK SAE."""

    architecture: Literal["matryoshka"] = field(default="matryoshka", metadata=_ARCHITECTURE)
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


# --- the options that trainers and dictionaries take as `**options`, for type checkers. A test compares them with the
# fields above


class PosteriorArguments(TypedDict, total=False):
    """See `PosteriorOptions`."""

    posterior: Posterior
    sigma: float | None
    log_var_init: float
    noise_on: NoiseOn
    rectify: bool
    select_by: SelectBy
    prior_std: float


class TopKArguments(TypedDict, total=False):
    """Arguments of our trainers of SAEs with a k that upstream's trainers lack."""

    k_anneal_steps: int | None
    dead_feature_threshold: int | None


class VSAEArguments(PosteriorArguments, TopKArguments, total=False):
    """See `VSAETopKConfig`."""

    beta: float
    kl_scope: KLScope
    kl_schedule: KLSchedule
    kl_warmup_steps: int | None
    noise_anneal_steps: int | None
    survival: float | None


class ProbabilisticTopKArguments(TopKArguments, total=False):
    """See `ProbabilisticTopKConfig`."""

    temperature_start: float
    temperature_end: float


class VAEaseArguments(TypedDict, total=False):
    """See `VAEaseConfig`."""

    log_var_init: float
    gamma_init: float
    prior_std: float
    active_gate: float


def require_known(options: Any, arguments: type, caller: str) -> None:
    """Raise Python's TypeError for an unexpected keyword argument."""
    for name in options.keys() - arguments.__annotations__.keys():
        raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")


# --- all architectures

CONFIGS: dict[str, type[SAEConfig]] = {
    cls.architecture: cls
    for cls in (
        VSAETopKConfig,
        VSAEConfig,
        VAEaseConfig,
        TopKConfig,
        ProbabilisticTopKConfig,
        BatchTopKConfig,
        ReLUConfig,
        JumpReLUConfig,
        MatryoshkaConfig,
    )
}
"""The class of the settings of each architecture, by its name."""
_GROUPS = (SAEConfig, TopKOptions, PosteriorOptions, Variational, *CONFIGS.values())
OPTION_NAMES = tuple(dict.fromkeys(f.name for cls in _GROUPS for f in fields(cls)))
"""The options of all architectures."""


def from_json(flat: dict[str, Any]) -> SAEConfig:
    """The settings in a config.json, in which options that have no effect are null.

    Raises: ConfigError for an unknown architecture, an option that it does not have, or a wrong value.
    """
    name = flat.get("architecture", SAEConfig.architecture)
    require_choice("architecture", name, TRAINED)
    cls, without_use = CONFIGS[name], {each for names in UNUSED_BY.values() for each in names}
    may_be_left_out = without_use | {*OPTION_NAMES} - _defaults(cls).keys()
    given: dict[str, Any] = {
        n: tuple(v) if isinstance(v, list) else v
        for n, v in flat.items()
        if v is not None or n not in may_be_left_out
    }
    return cls(**given)


def in_shares(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings with the schedules as shares of the run, from those of a trainer, which has them in steps. Defaults
    become None."""
    found = {_SETTINGS.get(name, name): value for name, value in flat.items()}
    size, k = found.get("dict_size"), found.get("k")
    default = dead_after(size, k) if type(size) is int and type(k) is int and k > 0 else None
    if default is not None and found.get("dead_feature_threshold") == default:
        found["dead_feature_threshold"] = None
    steps = flat.get("steps", 0)
    if type(steps) is not int or steps < 1:
        return found
    counts = {n: v for n, v in found.items() if n in SCHEDULES and type(v) is int}
    counts = {name: v for name, v in counts.items() if abs(v) < 2**53}  # what a float holds
    shares = {name: SCHEDULES[name].share(count, steps) for name, count in counts.items()}
    return found | shares


def _require_one(sae: SAEConfig, *names: str) -> None:
    """Raise a ConfigError if more than one of these options is set, as each decides the noise."""
    given = {name: value for name in names if (value := getattr(sae, name)) is not None}
    if len(given) > 1:
        both = " and ".join(f"{name}={shown(value)}" for name, value in given.items())
        raise ConfigError(
            f"{both}: expected one of them", instead=f"leave out {' or '.join(given)}"
        )


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


def _defaults(cls: type[SAEConfig]) -> dict[str, Any]:
    return {each.name: each.default for each in fields(cls)}


def _require_option(name: str, cls: type[SAEConfig]) -> None:
    """Raise a ConfigError unless an architecture has an option of this name."""
    names = [each.name for each in fields(cls)]
    if name in names:
        return
    if name in OPTION_NAMES:
        raise ConfigError(
            f"{cls.architecture} does not use it",
            name=name,
            instead=f"it uses {', '.join(n for n in names if n not in _defaults(SAEConfig))}",
        )
    if (share := _SETTINGS.get(name)) in names:
        instead = f"give {share}=N/steps for N of the run's steps"
        raise ConfigError("settings have shares of the run", name=name, instead=instead)
    hint = (
        former_setting(name) or did_you_mean(name, names) or f"; expected one of {', '.join(names)}"
    )
    raise ConfigError(f"no such option of {cls.architecture}{hint}", name=name)


def dead_after(dict_size: int, k: int) -> int:
    """The default of dead_feature_threshold in tokens: a feature of average rate fires 100 times in so many."""
    return DEAD_AFTER_FIRINGS * dict_size // k
