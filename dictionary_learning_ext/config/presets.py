"""The presets of `vsae train`, and the same for upstream's `trainSAE`.

A preset holds the settings that differ from the defaults. Flags override them. Its schedules are shares of the run,
which become steps once --steps is known.
"""

import math
from dataclasses import replace
from typing import Any, TypeVar

from .architectures import TRAINED, upstream_lr
from .checks import require, require_choice, require_sizes, require_type
from .run import TrainConfig
from .sae import (
    DEAD_FEATURE_THRESHOLD,
    LOG_VAR_LIMITS,
    Posterior,
    SAEConfig,
    Variational,
    follows,
    share_of_run,
    training_energy,
)

Settings = TypeVar("Settings", bound=SAEConfig)

_PAPER = {
    # What the paper states.
    "model": "EleutherAI/pythia-70m",
    "data": "roneneldan/TinyStories",
    "hook": "blocks.0.hook_resid_post",
    "dict_size": 2048,
    "k": 64,
    "steps": 20_000,
    "dtype": "bfloat16",
    "n_ctxs": 2_500,
    "ctx_len": 128,
    # What its code inherits from upstream.
    "dead_feature_threshold": DEAD_FEATURE_THRESHOLD,
}

DEFAULT_PRESET = "recommended"
"""The preset of `vsae train` without --preset, --config or --resume."""

_LR_MULTIPLE, _SMALLEST_TUNED = 3.5, 512


def recommended_lr(dict_size: int) -> float:
    """The learning rate of `recommended`: a multiple of upstream's for this size. Dictionaries below 512 features, the
    smallest size that was tuned, get that of 512."""
    return float(f"{_LR_MULTIPLE * upstream_lr(max(dict_size, _SMALLEST_TUNED)):.2g}")


def _tuned_lr(sae: SAEConfig) -> float:
    return recommended_lr(sae.dict_size)


PRESETS: dict[str, dict[str, Any]] = {
    # Chosen by the rule of experiments/fading/PROTOCOL_FADING.md: of those vSAEs that keep TopK's reconstruction and its
    # true features, the one of which most features come back. A few minutes on a laptop, on the embedded model.
    "recommended": {
        "k": 16,
        "dict_size": 512,
        "noise_on": "selection",
        "noise_to_signal": 0.3,
        "noise_anneal_steps": share_of_run(0.5, least=1),
        "beta": 0.01,
        "kl_scope": "selected",
        "max_norm_multiple": 10.0,  # attention sinks; the embedded model has none
        "batch_size": 256,
        "lr": follows(_tuned_lr),
        "steps": 8000,
        "decay_start": share_of_run(0.75),
    },
    # The paper's equations; beta, lr, batch size, normalisation and form of annealing are ours.
    "paper": _PAPER
    | {
        "posterior": "fixed",
        "sigma": 1.0,
        "noise_on": "both",
        "kl_scope": "all",
        "beta": 1.0,
        "kl_schedule": "linear",
        "lr": 5e-4,
        "batch_size": 2048,
        "normalize": "sqrt_d",
    },
    # The vSAE of the paper's public code:
    # github.com/ZachData/SPAR-Variational-Sparse-Autoencoders at 8e1581a, train_vsae_topk.py, lines 570 to 612
    "paper-as-run": {
        "architecture": "vsae_as_published",
        "model": "EleutherAI/pythia-70m-deduped",
        "data": "roneneldan/TinyStories",
        "hook": "blocks.3.hook_resid_post",
        "dict_size": 8192,
        "k": 256,  # of its figures 8 and 9
        "beta": 1.0,
        "warmup_steps": share_of_run(0.02, least=200),
        "decay_start": share_of_run(0.8),
        "steps": 10_001,
        "batch_size": 192,
        "normalize": "unit",
        "dtype": "bfloat16",
        "n_ctxs": 2_500,
        "ctx_len": 128,
    },
}

_OF_ARCHITECTURES: dict[tuple[str, str], dict[str, Any]] = {
    # The public code's TopK: train_topk.py; top_k.py, line 113
    ("paper-as-run", "top_k"): {"dead_feature_threshold": DEAD_FEATURE_THRESHOLD},
}
"""Settings that a preset has with another architecture alone."""


def preset(name: str, steps: int | None = None, *, architecture: str | None = None) -> TrainConfig:
    """The settings of a preset.

    Arguments:
        steps: the length of the run. Default: the preset's.
        architecture: in place of the preset's, e.g. top_k for the baseline.

    Raises: ConfigError for an unknown name.
    """
    require_choice("preset", name, PRESETS)
    config = TrainConfig().with_settings(PRESETS[name], f"preset {name}")
    if architecture is not None:
        own = _OF_ARCHITECTURES.get((name, architecture), {})
        config = replace(config, sae=replace(config.sae.start_for(architecture), **own))
    return config if steps is None else replace(config, run=replace(config.run, steps=steps))


def trainer_options(
    name: str = DEFAULT_PRESET,
    *,
    activation_dim: int,
    dict_size: int,
    k: int,
    steps: int,
    mean_squared_norm: float = 1.0,
    posterior: Posterior | None = None,
    first_fill: Any = None,
) -> dict[str, Any]:
    """A preset of vSAEs as arguments of `VariationalTopKTrainer`, for upstream's `trainSAE`.

    sigma, log_var_init, prior_std and beta are in the units of the activations that the trainer gets. The four sizes are
    among the arguments returned. Presets also leave out attention sinks. In upstream's loop the buffer
    does that: `ResidualBuffer(..., max_norm_multiple=10)`.

        config = dict(trainer=VariationalTopKTrainer, layer=3, lm_name="…", device="cuda", seed=0)
        config |= trainer_options(
            "recommended", activation_dim=512, dict_size=2048, k=32, steps=10_000
        )
        trainSAE(buffer, [config], steps=10_000, normalize_activations=True, …)

    Arguments:
        name: recommended or paper.
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: features kept per token, in place of the preset's.
        steps: training steps.
        mean_squared_norm: E||x||^2 of the activations (B, D) that the trainer gets, e.g.
            `float(x.square().sum(-1).mean())` of a batch. Default: 1, for `normalize_activations=True`.
        posterior: fixed, learned or point, in place of the preset's.
        first_fill: activations (N, D) to start from, as `--start data`: some ten thousand rows, far more than dict_size.
            Default: random weights.

    Raises: ConfigError for an unknown preset or posterior, a preset of another trainer, or a number out of range.
    """
    sizes = {"activation_dim": activation_dim, "dict_size": dict_size, "k": k, "steps": steps}
    require_sizes(**sizes)
    require_type("mean_squared_norm", mean_squared_norm, float)
    require(mean_squared_norm > 0, "mean_squared_norm", mean_squared_norm, "above 0")
    config = preset(name, steps)
    trainer = TRAINED[config.sae.architecture].trainer_class
    of_ours = [own for own in PRESETS if "architecture" not in PRESETS[own]]
    expected = f"one of {', '.join(of_ours)}, as this one is of {trainer}"
    require(name in of_ours, "preset", name, expected)
    size: dict[str, Any] = {"dict_size": dict_size, "k": k}
    sae = config.sae if posterior is None else config.sae.start_for(posterior=posterior)
    run, sae = config.run, replace(sae, **size).resolve(steps)
    sae = in_units(sae, mean_squared_norm / training_energy(run.normalize, activation_dim))
    arguments = sae.trainer_arguments()
    del arguments["seed"]
    arguments |= {} if first_fill is None else {"first_fill": first_fill}
    return sizes | arguments | {"mean_squared_norm": mean_squared_norm}


def in_units(sae: Settings, energy: float) -> Settings:
    """The settings of the same vSAE for activations whose E||x||^2 is `energy` times as large.

    The squared error grows by `energy` and the KL stays. So beta is multiplied by `energy`, sigma and prior_std
    by its square root, and log_var_init, which stays in its range, gains log(energy).
    """
    factors = {"beta": energy, "prior_std": math.sqrt(energy)}
    changed: dict[str, Any] = {n: getattr(sae, n) * factor for n, factor in factors.items()}
    if isinstance(sae, Variational) and sae.noise.kind == "sigma":
        changed["sigma"] = sae.noise.value * math.sqrt(energy)
    if isinstance(sae, Variational) and sae.posterior == "learned":
        lowest, highest = LOG_VAR_LIMITS
        changed["log_var_init"] = min(max(sae.log_var_init + math.log(energy), lowest), highest)
    return replace(sae, **changed)
