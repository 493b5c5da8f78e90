"""One SAE's settings, which of them each architecture uses, and their checks. Imports no torch.

The docstring under a field is its help text on the command line. A field that an architecture or a
posterior does not use stays None.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from ..errors import ConfigError
from .options import (
    KLSchedule,
    KLScope,
    NoiseOn,
    ObjectiveOptions,
    Posterior,
    PosteriorOptions,
    VAEaseOptions,
    require,
    require_choice,
)

Architecture = Literal[
    "vsae_top_k", "vsae", "vaease", "top_k", "batch_top_k", "relu", "jump_relu", "matryoshka"
]

_VARIATIONAL = (
    *(option.name for option in fields(PosteriorOptions) if option.name != "prior_std"),
    *(option.name for option in fields(ObjectiveOptions) if option.name != "dtype"),
)
_TOP_K = ("k", "auxk_alpha", "dead_feature_threshold")
USES: dict[Architecture, tuple[str, ...]] = {
    "vsae_top_k": ("k", *_VARIATIONAL),
    "vsae": _VARIATIONAL,
    "vaease": ("log_var_init", "gamma_init", "active_gate"),
    "top_k": _TOP_K,
    "batch_top_k": _TOP_K,
    "matryoshka": (*_TOP_K, "group_fractions"),
    "relu": ("l1_penalty", "sparsity_warmup_steps"),
    "jump_relu": ("sparsity_penalty", "sparsity_warmup_steps", "target_l0"),
}
"""The options each architecture uses, beyond those that all use."""
_SPECIFIC = {name for names in USES.values() for name in names}

UNUSED_BY: dict[Posterior, tuple[str, ...]] = {
    "fixed": ("log_var_init",),
    "learned": ("sigma",),
    "point": ("sigma", "log_var_init", "noise_on", "noise_anneal_steps"),
}
"""The options of a variational SAE that a posterior does not use."""


@dataclass(frozen=True)
class SAEConfig:
    """One SAE and how it is trained."""

    architecture: Architecture = "vsae_top_k"
    """vsae_top_k: variational TopK. vsae: purely variational (k = dict_size). vaease: a VAE whose
    sigma gates its features (Lu et al. 2025), which has no sparsity weight. The others are
    upstream's trainers: top_k, batch_top_k, relu (L1), jump_relu, matryoshka (BatchTopK)."""
    k: int | None = None
    """Features kept per token; 32 unless told. Paper: 64, 128, 256, 512."""
    dict_size: int = 1024
    """Features in the dictionary. Paper: 2048."""
    lr: float | None = None
    """Adam's learning rate. Unless told, upstream's: 2e-4 / sqrt(dict_size / 16384) for the TopK
    family, 1e-3 for relu and vaease, 7e-5 for jump_relu. Paper: not stated."""
    warmup_steps: int | None = None
    """Steps over which lr rises from 0; 1000 or a tenth of the run, whichever is less."""
    decay_start: int | None = None
    """The step from which lr falls linearly to 0 at the end; unless told it does not fall."""
    beta: float | None = None
    """Weight of the KL (nats per token) beside the squared error, in training units; 1 unless
    told. Paper: not stated."""
    posterior: Posterior | None = None
    """fixed (paper, default): sigma is a constant. learned: sigma depends on the token. point:
    sigma = 0, a TopK SAE with an L2 penalty on its activations."""
    sigma: float | None = None
    """The fixed posterior's standard deviation, in training units; 1 unless told, as the paper."""
    log_var_init: float | None = None
    """The initial log-variance of the learned posterior, -2 unless told, or of vaease, -0.5."""
    gamma_init: float | None = None
    """vaease: initial variance of the reconstruction's error, per dimension, in training units; 0.1
    unless told. It is learned, its logarithm by up to lr a step."""
    active_gate: float | None = None
    """vaease: the gate, 1 - sigma/p, at or below which a feature counts as off in encoding; 0.05 unless
    told. Training does not use it."""
    noise_on: NoiseOn | None = None
    """What the sample changes in training: both (paper, default), the values of the features that
    the mean selects, or only the selection."""
    noise_anneal_steps: int | None = None
    """Steps over which the noise falls linearly to 0; unless told it stays."""
    kl_scope: KLScope | None = None
    """The KL is summed over all features (paper, default) or the k selected."""
    kl_schedule: KLSchedule | None = None
    """How beta is annealed; linear unless told. Paper: annealed, form not stated."""
    kl_warmup_steps: int | None = None
    """Steps over which beta rises (linear, cosine); a tenth of the run unless told."""
    kl_cycle_steps: int | None = None
    """Period of the cyclical schedule in steps; a quarter of the run unless told."""
    free_bits: float | None = None
    """Nats per feature below which the KL does not pull; 0 (off) unless told, as the paper."""
    rectify: bool | None = None
    """Apply a ReLU to the mean, as upstream's TopK does; False unless told, as the paper."""
    auxk_alpha: float | None = None
    """Weight of the auxiliary loss that revives dead features; 1/32 unless told, 0 is off."""
    dead_feature_threshold: int | None = None
    """Tokens without firing after which a feature is dead; 10,000,000 or a tenth of the run's
    tokens, whichever is less, unless told."""
    l1_penalty: float | None = None
    """relu: weight of the L1 norm; 0.1 unless told."""
    sparsity_penalty: float | None = None
    """jump_relu: weight of the sparsity loss; 1 unless told."""
    sparsity_warmup_steps: int | None = None
    """relu, jump_relu: steps over which the sparsity loss rises; 2000 or a fifth of the run,
    whichever is less, unless told."""
    target_l0: float | None = None
    """jump_relu: the number of active features aimed at; 20 unless told."""
    group_fractions: tuple[float, ...] | None = None
    """matryoshka: each nested group's share of the dictionary, summing to 1; 1/16 1/16 1/8 1/4 1/2
    unless told."""
    seed: int = 0
    """Seeds the initial weights and the noise."""

    def changed_to(self, architecture: str | None, posterior: str | None) -> "SAEConfig":
        """Another architecture or posterior, without the options that it does not use."""
        changed: Any = self
        if architecture is not None:
            require_choice("architecture", architecture, Architecture)
            changed = replace(changed, architecture=architecture)
        if posterior is not None and posterior != "None":
            require_choice("posterior", posterior, Posterior)
            changed = replace(changed, posterior=posterior)
        return replace(changed, **dict.fromkeys(changed._unused()))

    def _unused(self) -> list[str]:
        """The options that this architecture and posterior do not use."""
        used = USES[self.architecture]
        unused = _SPECIFIC - set(used)
        if "posterior" in used:
            unused |= set(UNUSED_BY[self.posterior or "fixed"])
        return sorted(unused)

    def resolve(self, steps: int, batch_size: int) -> "SAEConfig":
        """Every default filled in for a run of `steps`, and checked. Raises ConfigError."""
        require_choice("architecture", self.architecture, Architecture)
        if self.posterior is not None:
            require_choice("posterior", self.posterior, Posterior)
        unused, architecture = self._unused(), self.architecture
        used = [name for name in USES[architecture] if name not in unused]
        for name in unused:
            if getattr(self, name) is not None:
                kind = f"posterior {self.posterior or 'fixed'}"
                who = kind if name in USES[architecture] else f"architecture {architecture}"
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: {who} does not use it; leave out {flag} "
                    f"(it uses {', '.join(used)})"
                )
        ours = (PosteriorOptions, ObjectiveOptions)
        if architecture == "vaease":
            ours = (VAEaseOptions,)
        variational = {option.name: option.default for cls in ours for option in fields(cls)}
        defaults = variational | {
            "k": min(32, self.dict_size),
            "dead_feature_threshold": max(1, min(10_000_000, steps * batch_size // 10)),
            "kl_warmup_steps": max(1, steps // 10),
            "kl_cycle_steps": max(1, steps // 4),
            "l1_penalty": 0.1,
            "sparsity_penalty": 1.0,
            "sparsity_warmup_steps": min(2000, steps // 5),
            "target_l0": 20.0,
            "group_fractions": (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
        }
        filled: dict[str, Any] = {
            name: defaults[name] for name in used if getattr(self, name) is None
        }
        if self.warmup_steps is None:
            filled["warmup_steps"] = min(1000, steps // 10)
        resolved = replace(self, **filled)
        resolved._check(steps)
        return resolved

    def _check(self, steps: int) -> None:
        require(self.dict_size >= 1, "dict_size", self.dict_size, "at least 1")
        if self.k is not None:
            require(1 <= self.k <= self.dict_size, "k", self.k, f"1 to dict_size={self.dict_size}")
        if self.lr is not None:
            require(self.lr > 0, "lr", self.lr, "above 0")
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            given = getattr(self, name)
            is_legal = given is None or 0 <= given < steps
            require(is_legal, name, given, f"0 or more, and less than steps={steps}")
        if self.decay_start is not None:
            after = max(self.warmup_steps or 0, self.sparsity_warmup_steps or 0)
            is_legal = after < self.decay_start < steps
            require(is_legal, "decay_start", self.decay_start, f"between {after} and steps={steps}")
        for name in ("l1_penalty", "sparsity_penalty", "target_l0"):
            given = getattr(self, name)
            require(given is None or given >= 0, name, given, "at least 0")
        if self.group_fractions is not None:
            is_whole = abs(sum(self.group_fractions) - 1) < 1e-6 and min(self.group_fractions) > 0
            require(is_whole, "group_fractions", self.group_fractions, "shares that sum to 1")
        if self.posterior is not None:
            given = {name: value for name, value in asdict(self).items() if value is not None}
            PosteriorOptions(**{n: v for n, v in given.items() if n in _POSTERIOR})
            ObjectiveOptions(**{n: v for n, v in given.items() if n in _OBJECTIVE})
        if self.architecture == "vaease":
            VAEaseOptions(**{name: getattr(self, name) for name in USES["vaease"]})

    @property
    def name(self) -> str:
        """What tells this SAE from others of a run, fit for a folder's name."""
        parts = [self.architecture]
        short = {"beta": "beta", "sigma": "sigma", "lr": "lr", "free_bits": "bits"}
        if self.k is not None:
            parts.append(f"k{self.k}")
        parts.append(f"F{self.dict_size}")
        parts += [str(v) for v in (self.posterior, self.noise_on) if v is not None]
        parts += ["kl-selected"] if self.kl_scope == "selected" else []
        parts += ["annealed"] if self.noise_anneal_steps is not None else []
        parts += ["rectified"] if self.rectify else []
        parts += [
            f"{label}{getattr(self, name):g}"
            for name, label in short.items()
            if getattr(self, name) is not None
        ]
        return "_".join([*parts, f"seed{self.seed}"])


_POSTERIOR = {option.name for option in fields(PosteriorOptions)} & {
    f.name for f in fields(SAEConfig)
}
_OBJECTIVE = {option.name for option in fields(ObjectiveOptions)} & {
    f.name for f in fields(SAEConfig)
}
