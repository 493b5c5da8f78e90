"""One SAE's settings: those of every architecture, and the options of some. Imports no torch.

The options come from the groups in options.py by way of the table of architectures: their defaults,
help texts and checks stand there alone. Here an option is None until it is given or resolved; one
that an architecture or a posterior does not use stays None.
"""

import math
from dataclasses import dataclass, field, fields, make_dataclass, replace
from inspect import get_annotations
from typing import Any, Literal, get_type_hints

from ..errors import ConfigError
from .architectures import TRAINED
from .checks import require, require_choice, require_lr_schedule, require_seed
from .help_texts import help_texts
from .option_groups import Options, RunSize
from .options import (
    UNUSED_BY,
    UNUSED_BY_SCHEDULE,
    KLSchedule,
    Normalize,
    ObjectiveOptions,
    Posterior,
    PosteriorOptions,
    training_energy,
)

ArchitectureName: Any = Literal[tuple(TRAINED)]  # pyright: ignore[reportInvalidTypeForm]
_SCHEDULES = (
    "warmup_steps",
    "decay_start",
    "sparsity_warmup_steps",
    "kl_warmup_steps",
    "noise_anneal_steps",
    "k_anneal_steps",
)
"""The settings that are counted in steps."""
DERIVED = (*_SCHEDULES, "dead_feature_threshold")
"""The settings whose defaults follow from the run's length."""
_NAMED_IN_FOLDERS = {
    "beta": "beta",
    "sigma": "sigma",
    "noise_to_signal": "noise",
    "lr": "lr",
}


def _architecture_help() -> str:
    return ". ".join(f"{name}: {row.description}" for name, row in TRAINED.items()) + "."


def _lr_help() -> str:
    by_lr: dict[str, list[str]] = {}
    for name, row in TRAINED.items():
        by_lr.setdefault(row.default_lr, []).append(name)
    defaults = "; ".join(f"{lr} for {', '.join(names)}" for lr, names in by_lr.items())
    return f"Adam's learning rate. Paper: not stated. With --lr none: {defaults}."


def _option_fields() -> list[tuple[str, Any, Any]]:
    """Every architecture's options, each once and optional, with its help text and its default."""
    users: dict[str, dict[type[Options], list[str]]] = {}
    for row in TRAINED.values():
        for group in row.options:
            for option in fields(group):  # pyright: ignore[reportArgumentType]
                owners = users.setdefault(option.name, {})
                owners.setdefault(_owner(group, option.name), []).append(row.name)
    found = []
    for name, owners in users.items():
        if name == "dtype":  # the run's
            continue
        by_text: dict[str, list[str]] = {}
        defaults = {getattr(group, name) for group in owners}
        for group, architectures in owners.items():
            text = help_texts(group)[name]
            text += f" Default: {_shown(getattr(group, name))}." if len(defaults) > 1 else ""
            by_text.setdefault(text, []).extend(architectures)
        is_the_defaults = len(by_text) == 1 and next(iter(TRAINED)) in next(iter(by_text.values()))
        texts = [
            text if is_the_defaults else f"{', '.join(architectures)}: {text}"
            for text, architectures in by_text.items()
        ]
        hint = next(get_type_hints(group)[name] for group in owners)
        described: dict[str, Any] = {"help": " ".join(texts)}
        if len(defaults) == 1:
            described["default"] = defaults.pop()
        found.append((name, hint | None, field(default=None, metadata=described)))
    return found


def _owner(group: type, name: str) -> type[Options]:
    """The class that declares an option."""
    return next(cls for cls in group.__mro__ if name in get_annotations(cls))


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(_shown, default))
    return f"{default:,}" if type(default) is int else str(default)


@dataclass(frozen=True)
class _OfEveryArchitecture:
    """What every architecture uses."""

    architecture: ArchitectureName = field(  # pyright: ignore[reportInvalidTypeForm]
        default="vsae_top_k", metadata={"help": _architecture_help()}
    )
    dict_size: int = 1024
    """Features in the dictionary. Paper: 2048."""
    lr: float | None = field(default=None, metadata={"help": _lr_help()})
    warmup_steps: int | None = None
    """Steps over which lr rises from 0. Default: 1000 or a tenth of the run, whichever is less."""
    decay_start: int | None = None
    """The step from which lr falls linearly, to 0 at the end. none: it does not fall."""
    seed: int = 0
    """Seeds the initial weights and the noise."""
    init_from: str | None = None
    """Start from the weights of a trained SAE instead of random ones: a run folder, or a folder of
    dictionary_learning's or SAELens's. Architecture, dict_size and k must be its own; --config
    takes them from a run folder. Default: random weights."""


# Typed as Any: its fields are the options that the table of architectures names.
_Fields: Any = make_dataclass(
    "_Fields", _option_fields(), bases=(_OfEveryArchitecture,), frozen=True
)


class SAEConfig(_Fields):
    """One SAE and how it is trained."""

    def changed_to(
        self, architecture: str | None, posterior: str | None, kl_schedule: str | None = None
    ) -> "SAEConfig":
        """Another architecture, posterior or schedule, without the options that it does not use."""
        changed: Any = self
        if architecture is not None:
            require_choice("architecture", architecture, ArchitectureName)
            changed = replace(changed, architecture=architecture)
            if TRAINED[architecture].is_whole_dictionary and self.noise_on == "selection":
                changed = replace(changed, noise_on=None)  # it selects all features anyway
        if posterior is not None:
            require_choice("posterior", posterior, Posterior)
            changed = replace(changed, posterior=posterior)
        if kl_schedule is not None:
            require_choice("kl_schedule", kl_schedule, KLSchedule)
            changed = replace(changed, kl_schedule=kl_schedule)
        return replace(changed, **dict.fromkeys([*changed.unused(), *changed._unscheduled()]))

    def unused(self) -> list[str]:
        """The options that this architecture and posterior do not use."""
        used = TRAINED[self.architecture].option_names
        unused = {name for row in TRAINED.values() for name in row.option_names} - set(used)
        if "posterior" in used:
            unused |= set(UNUSED_BY[self.posterior or PosteriorOptions.posterior])
        return sorted(unused)

    def for_steps(self, former: int, steps: int, batch_size: int) -> "SAEConfig":
        """These settings of a run of `former` steps, for a run of `steps`.

        What is the default of the former run becomes the default again. Other schedules keep their
        share of the run.
        """
        unset = replace(self, **dict.fromkeys(DERIVED))
        defaults = unset.resolve(former, batch_size)
        changed: dict[str, int | None] = {}
        for name in DERIVED:
            given = getattr(self, name)
            if given is not None and given == getattr(defaults, name):
                changed[name] = None
            elif name in _SCHEDULES and given:
                changed[name] = max(1, given * steps // former)
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            if warmup := changed.get(name):
                changed[name] = min(warmup, steps - 1)
        scaled = replace(self, **changed)
        if scaled.decay_start is None:
            return scaled
        without = replace(scaled, decay_start=None)
        resolved = without.resolve(steps, batch_size)
        warm = max(resolved.warmup_steps, resolved.sparsity_warmup_steps or 0)
        return scaled if warm < scaled.decay_start < steps else without  # a very short run

    def _unscheduled(self) -> tuple[str, ...]:
        """The options that the schedule of the KL's weight does not use. They keep their defaults."""
        if "kl_schedule" not in TRAINED[self.architecture].option_names:
            return ()
        return UNUSED_BY_SCHEDULE[self.kl_schedule or ObjectiveOptions.kl_schedule]

    def resolve(self, steps: int, batch_size: int) -> "SAEConfig":
        """Every default filled in for a run of `steps`, and checked. Raises ConfigError.

        A sigma that is given as a noise_to_signal stays None: see `with_sigma`.
        """
        require_choice("architecture", self.architecture, ArchitectureName)
        if self.posterior is not None:
            require_choice("posterior", self.posterior, Posterior)
        if self.kl_schedule is not None:
            require_choice("kl_schedule", self.kl_schedule, KLSchedule)
        row, unused = TRAINED[self.architecture], self.unused()
        used = [name for name in row.option_names if name not in unused]
        for name in unused:
            if getattr(self, name) is not None:
                who, hint = f"architecture {row.name}", f" (it uses {', '.join(used)})"
                if name in row.option_names:
                    who = f"posterior {self.posterior or PosteriorOptions.posterior}"
                raise self._refusal(name, who, hint)
        require(self.dict_size >= 1, "dict_size", self.dict_size, "at least 1")
        require_seed("seed", self.seed)
        if self.noise_to_signal is not None and self.sigma is not None:
            raise ConfigError(
                f"sigma={self.sigma!r} and noise_to_signal={self.noise_to_signal!r}: expected one "
                "of them; leave out --sigma or --noise-to-signal"
            )
        size = RunSize(steps, steps * batch_size, self.dict_size)
        filled: dict[str, Any] = {}
        for group in row.options:
            names = [option.name for option in fields(group) if option.name in used]  # pyright: ignore
            given = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
            defaults = group.run_defaults(size)
            for name in self._unscheduled():
                if name in given and given[name] != defaults[name]:
                    schedule = self.kl_schedule or ObjectiveOptions.kl_schedule
                    raise self._refusal(name, f"kl_schedule {schedule}")
            options = group(**defaults | given)
            options.require_fit(steps)
            filled |= {name: getattr(options, name) for name in names}
        if self.noise_to_signal is not None:
            filled["sigma"] = None
        if self.warmup_steps is None:
            filled["warmup_steps"] = min(1000, steps // 10)
        resolved = replace(self, **filled)
        resolved._check(steps)
        return resolved

    def _refusal(self, name: str, who: str, hint: str = "") -> ConfigError:
        flag = "--" + name.replace("_", "-")
        if name == "k" and TRAINED[self.architecture].is_whole_dictionary:
            hint = f": its k is dict_size={self.dict_size}"
        return ConfigError(
            f"{name}={getattr(self, name)!r}: {who} does not use it; leave out {flag}{hint}"
        )

    def _check(self, steps: int) -> None:
        """Check what depends on the run or on several settings."""
        if self.k is not None:
            require(self.k <= self.dict_size, "k", self.k, f"1 to dict_size={self.dict_size}")
        require_lr_schedule(
            steps, self.lr, self.warmup_steps, self.decay_start, self.sparsity_warmup_steps
        )

    def require_units(self, normalize: Normalize) -> None:
        """Raise a ConfigError if noise_to_signal is given and activations are not normalised."""
        if self.noise_to_signal is not None and normalize == "none":
            raise ConfigError(
                f"noise_to_signal={self.noise_to_signal!r} with normalize='none': expected "
                "--normalize sqrt_d or unit, or --sigma in the activations' own units"
            )

    def with_sigma(self, activation_dim: int, normalize: Normalize) -> "SAEConfig":
        """With the sigma that a resolved noise_to_signal means: sqrt(r E||x||^2 / k)."""
        if self.noise_to_signal is None:
            return self
        self.require_units(normalize)
        energy = training_energy(normalize, activation_dim)
        sigma = math.sqrt(self.noise_to_signal * energy / (self.k or self.dict_size))
        return replace(self, sigma=sigma)

    @property
    def name(self) -> str:
        """What distinguishes this SAE from others of a run, fit for a folder's name."""
        parts = [self.architecture]
        if self.k is not None:
            parts.append(f"k{self.k}")
        parts.append(f"F{self.dict_size}")
        parts += [str(v) for v in (self.posterior, self.noise_on) if v is not None]
        parts += ["kl-selected"] if self.kl_scope == "selected" else []
        parts += ["annealed"] if self.noise_anneal_steps is not None else []
        parts += ["k-annealed"] if self.k_anneal_steps is not None else []
        parts += ["rectified"] if self.rectify else []
        parts += ["by-magnitude"] if self.select_by == "magnitude" else []
        parts += [
            f"{label}{getattr(self, name):g}"
            for name, label in _NAMED_IN_FOLDERS.items()
            if getattr(self, name) is not None
        ]
        return "_".join([*parts, f"seed{self.seed}"])
