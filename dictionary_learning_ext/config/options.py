"""The options of SAEs: each one's default, help text and check, in one place. Imports no torch.

Models and trainers read their signatures' defaults from these classes, the command line its flags
and help, and all of them their checks, so that a mistake gets the same message everywhere.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .checks import require
from .option_groups import Options, RunSize

Posterior = Literal["fixed", "learned", "point"]
NoiseOn = Literal["both", "values", "selection"]
SelectBy = Literal["value", "magnitude"]
KLScope = Literal["all", "selected"]
KLSchedule = Literal["constant", "linear", "cosine"]
Dtype = Literal["float32", "bfloat16"]
Normalize = Literal["sqrt_d", "unit", "none"]
Packing = Literal["pack", "truncate"]
Split = Literal["train", "heldout"]
MapSpace = Literal["profiles", "directions"]
WandbMode = Literal["online", "offline", "disabled"]
ExportFormat = Literal[
    "sae-bench", "dictionary-learning", "sae-lens", "sparsify", "safetensors", "neuronpedia"
]
BenchEvaluation = Literal["core", "scr", "tpp", "sparse_probing", "sae_probes", "absorption"]

POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)
NOISE_ON: tuple[NoiseOn, ...] = get_args(NoiseOn)
SELECT_BY: tuple[SelectBy, ...] = get_args(SelectBy)

LOG_VAR_LIMITS = (-10.0, 4.0)
"""What a learned posterior's log-variance is clamped to, in training units."""
MUCH_NOISE = 0.2
"""The noise_to_signal above which noise that stays to the end drowns the activations. Noise that falls
to 0 does not: the preset recommended starts from more."""
SCALE_LIMITS = (1e-18, 1e18)
"""Between them the square of a number, and the square's inverse, are numbers in float32."""

UNUSED_BY: dict[Posterior, tuple[str, ...]] = {
    "fixed": ("log_var_init",),
    "learned": ("sigma", "noise_to_signal"),
    "point": ("sigma", "noise_to_signal", "log_var_init", "noise_on", "noise_anneal_steps"),
}
"""The options of a variational SAE that a posterior does not use."""
UNUSED_BY_SCHEDULE: dict[KLSchedule, tuple[str, ...]] = {
    "constant": ("kl_warmup_steps",),
    "linear": (),
    "cosine": (),
}
"""The options that a schedule of the KL's weight does not use."""


def training_energy(normalize: Normalize, activation_dim: int) -> int:
    """E||x||^2 of activations that are normalised, to "sqrt_d" or "unit"."""
    return activation_dim if normalize == "sqrt_d" else 1


@dataclass(frozen=True)
class TopKOptions(Options):
    """What keeps k features per token."""

    k: int = 32
    """Features kept per token. Paper: 64, 128, 256, 512."""
    k_anneal_steps: int | None = None
    """Steps over which k falls linearly, from the width of the activations (or dict_size, if that is
    less) to k. Only training steps keep more than k; logs and checkpoints keep k. none: k stays."""

    @classmethod
    def run_defaults(cls, size: RunSize) -> dict[str, Any]:
        return {"k": min(cls.k, size.dict_size)}

    def require_fit(self, steps: int) -> None:
        given = self.k_anneal_steps
        fits = given is None or given <= max(steps, 2)
        require(fits, "k_anneal_steps", given, f"at most steps={steps}")

    def __post_init__(self):
        super().__post_init__()
        require(self.k >= 1, "k", self.k, "at least 1")
        given = self.k_anneal_steps
        expected = "above 0, or none for a k that stays"
        require(given is None or given > 0, "k_anneal_steps", given, expected)


@dataclass(frozen=True)
class AuxKOptions(Options):
    """Upstream's auxiliary loss, AuxK (Gao et al. 2024, A.2)."""

    auxk_alpha: float = 1 / 32
    """Weight of the auxiliary loss that revives dead features. 0 turns it off."""
    dead_feature_threshold: int = 10_000_000
    """Tokens without firing after which a feature counts as dead. On the command line a tenth of
    the run's tokens, if that is less."""

    @classmethod
    def run_defaults(cls, size: RunSize) -> dict[str, Any]:
        return {
            "dead_feature_threshold": max(1, min(cls.dead_feature_threshold, size.tokens // 10))
        }

    def __post_init__(self):
        super().__post_init__()
        require(self.auxk_alpha >= 0, "auxk_alpha", self.auxk_alpha, "at least 0")
        threshold = self.dead_feature_threshold
        require(threshold > 0, "dead_feature_threshold", threshold, "above 0")


@dataclass(frozen=True)
class PosteriorOptions(Options):
    """What `VariationalTopKAutoEncoder` takes beyond upstream's arguments."""

    posterior: Posterior = "fixed"
    """fixed (paper): sigma is a constant. learned: sigma depends on the token. point: sigma = 0, a
    TopK SAE with an L2 penalty on its activations."""
    sigma: float = 1.0
    """The fixed posterior's standard deviation, in training units. Paper: 1. Where noise_to_signal has a
    value, sigma follows from that."""
    log_var_init: float = -2.0
    """The learned posterior's initial log-variance."""
    noise_on: NoiseOn = "both"
    """What the sample changes in training: both (paper), the values of the features that the mean
    selects, or only the selection."""
    rectify: bool = False
    """Apply a ReLU to the mean, as upstream's TopK does. Paper: no."""
    select_by: SelectBy = "value"
    """Keep the k largest activations (value; paper), or the k of largest magnitude with their signs
    (magnitude: AbsTopK, arXiv 2510.00404)."""
    prior_std: float = 1.0
    """The standard deviation of the prior, in training units."""

    def __post_init__(self):
        super().__post_init__()
        _require_scale("sigma", self.sigma, "; for no noise use posterior=point")
        _require_scale("prior_std", self.prior_std)
        low, high = LOG_VAR_LIMITS
        is_inside = low <= self.log_var_init <= high
        require(is_inside, "log_var_init", self.log_var_init, f"between {low} and {high}")


@dataclass(frozen=True)
class NoiseLevelOptions(Options):
    """Another way to give the fixed posterior's sigma, which transfers between k, D and models."""

    noise_to_signal: float | None = None
    """Gives sigma as r = k sigma^2 / E||x||^2, the noise energy that sampling adds to a
    reconstruction, relative to the activations' energy. Instead of sigma; needs --normalize sqrt_d
    or unit."""

    def __post_init__(self):
        super().__post_init__()
        given = self.noise_to_signal
        require(given is None or given > 0, "noise_to_signal", given, "a number above 0")


@dataclass(frozen=True)
class ObjectiveOptions(AuxKOptions):
    """What `VariationalTopKTrainer` takes beyond the model's and upstream's arguments."""

    beta: float = 1.0
    """Weight of the KL (nats per token) beside the squared error, in training units. Paper: not
    stated."""
    kl_scope: KLScope = "all"
    """The KL is summed over all features (paper) or the k selected."""
    kl_schedule: KLSchedule = "linear"
    """How beta is annealed. Paper: annealed, form not stated."""
    kl_warmup_steps: int | None = None
    """Steps over which beta rises (linear, cosine). 0: no warm-up. Default: a tenth of the run."""
    noise_anneal_steps: int | None = None
    """Steps over which the noise falls linearly to 0. none: the noise stays."""
    freeze_decoder: bool = False
    """Train the encoder and the biases alone: the decoder's directions stay random. A baseline: what
    scores as well does not need learned directions."""
    dtype: Dtype = "float32"
    """float32, or bfloat16 for the matmuls."""

    @classmethod
    def run_defaults(cls, size: RunSize) -> dict[str, Any]:
        return super().run_defaults(size) | cls._schedule_defaults(size.steps)

    @classmethod
    def _schedule_defaults(cls, steps: int) -> dict[str, int]:
        return {"kl_warmup_steps": max(1, steps // 10)}

    def require_fit(self, steps: int) -> None:
        for name in ("kl_warmup_steps", "noise_anneal_steps"):
            given = getattr(self, name)
            is_used = name not in UNUSED_BY_SCHEDULE[self.kl_schedule]
            fits = given is None or not is_used or given <= max(steps, 2)
            require(fits, name, given, f"at most steps={steps}")

    def for_steps(self, steps: int) -> "ObjectiveOptions":
        """With the warm-up of a run of `steps`, where it is not given.

        Raises: ConfigError for a schedule that is longer than the run.
        """
        self.require_fit(steps)
        defaults = self._schedule_defaults(steps)
        return replace(self, **{n: v for n, v in defaults.items() if getattr(self, n) is None})

    def __post_init__(self):
        super().__post_init__()
        require(self.beta >= 0, "beta", self.beta, "at least 0")
        warmup, anneal = self.kl_warmup_steps, self.noise_anneal_steps
        require(warmup is None or warmup >= 0, "kl_warmup_steps", warmup, "0 (no warm-up) or more")
        expected = "above 0, or none for noise that stays; for no noise use posterior=point (--posterior point)"
        require(anneal is None or anneal > 0, "noise_anneal_steps", anneal, expected)


@dataclass(frozen=True)
class VAEaseOptions(Options):
    """What `VAEase` takes beyond upstream's arguments."""

    log_var_init: float = -0.5
    """The initial log-variance, relative to the prior's."""
    gamma_init: float = 0.1
    """Initial variance of the reconstruction's error, per dimension, in training units. It is
    learned; its logarithm moves by up to lr a step."""
    prior_std: float = 1.0
    """The standard deviation of the prior, in training units."""
    active_gate: float = 0.05
    """The gate, 1 - sigma/p, at or below which a feature counts as off in encoding. Training does
    not use it."""

    def __post_init__(self):
        super().__post_init__()
        low = LOG_VAR_LIMITS[0]
        is_inside = low <= self.log_var_init < 0
        require(is_inside, "log_var_init", self.log_var_init, f"{low} or more, and below 0")
        for name in ("gamma_init", "prior_std"):
            _require_scale(name, getattr(self, name))
        is_inside = 0 <= self.active_gate < 1
        require(is_inside, "active_gate", self.active_gate, "0 or more, and below 1")


@dataclass(frozen=True)
class GateOptions(Options):
    """The random gates of Probabilistic TopK."""

    temperature_start: float = 5.0
    """The gates' temperature at the first step: the higher, the less a gate says."""
    temperature_end: float = 1e-3
    """The same at the last step. Between them it falls geometrically. Near 0, gates are open or shut."""

    def __post_init__(self):
        super().__post_init__()
        start, end = self.temperature_start, self.temperature_end
        low, high = 1e-6, 1e6
        require(low <= end, "temperature_end", end, f"at least {low:g}")
        limits = f"between temperature_end={end:g} and {high:g}"
        require(end <= start <= high, "temperature_start", start, limits)


@dataclass(frozen=True)
class SparsityWarmupOptions(Options):
    """How upstream's penalties begin."""

    sparsity_warmup_steps: int | None = None
    """Steps over which the sparsity loss rises. Default: 2000 or a fifth of the run, whichever is
    less."""

    @classmethod
    def run_defaults(cls, size: RunSize) -> dict[str, Any]:
        return {"sparsity_warmup_steps": min(2000, size.steps // 5)}


@dataclass(frozen=True)
class L1Options(SparsityWarmupOptions):
    """Upstream's ReLU SAE."""

    l1_penalty: float = 0.1
    """Weight of the L1 norm."""

    def __post_init__(self):
        super().__post_init__()
        require(self.l1_penalty >= 0, "l1_penalty", self.l1_penalty, "at least 0")


@dataclass(frozen=True)
class JumpReLUOptions(SparsityWarmupOptions):
    """Upstream's JumpReLU SAE."""

    sparsity_penalty: float = 1.0
    """Weight of the sparsity loss."""
    target_l0: float = 20.0
    """The number of active features aimed at."""
    threshold_twice: bool = False
    """Let thresholds learn from upstream's sparsity loss, which applies them twice, instead of the
    JumpReLU paper's (dictionary_learning's issue 55)."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("sparsity_penalty", "target_l0"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


@dataclass(frozen=True)
class MatryoshkaOptions(Options):
    """Upstream's Matryoshka BatchTopK SAE."""

    group_fractions: tuple[float, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Each nested group's share of the dictionary. They sum to 1."""

    def __post_init__(self):
        super().__post_init__()
        shares = self.group_fractions
        is_whole = abs(sum(shares) - 1) < 1e-6 and min(shares) > 0
        require(is_whole, "group_fractions", shares, "positive shares that sum to 1")


def _require_scale(name: str, given: float, instead: str = "") -> None:
    low, high = SCALE_LIMITS
    require(low <= given <= high, name, given, f"above 0 ({low:g} to {high:g}){instead}")
