"""The presets of `vsae train`, and the same for upstream's `trainSAE`.

A preset holds the settings that differ from the defaults, so `recommended` holds none. Flags override them. Its schedules
are shares of the run, which become steps once --steps is known.
"""

from dataclasses import replace
from typing import Any, Literal

from .architectures import TRAINED
from .checks import require, require_choice, require_sizes
from .run import TrainConfig
from .sae import (
    DEAD_FEATURE_THRESHOLD,
    Posterior,
    energy_of_default_units,
    follows,
    in_units,
    share_of_run,
    upstreams_lr,
)

TrainerOptionsOf = Literal["vsae_top_k", "vsae_batch_top_k"]
"""The architectures of `trainer_options`."""

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
    "decay_start": None,
    "max_norm_multiple": None,
}

_EQUATIONS = {
    "posterior": "fixed",
    "sigma": 1.0,
    "noise_on": "both",
    "noise_anneal_steps": None,
    "kl_scope": "all",
    "beta": 1.0,
    "kl_schedule": "linear",
}

DEFAULT_PRESET = "recommended"
"""The preset of `vsae train` without --preset, --config or --resume."""

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults. Chosen by the rule of experiments/fading/PROTOCOL_FADING.md: of those vSAEs that keep TopK's reconstruction and its
    # true features, the one of which most features come back. A few minutes on a laptop, on the embedded model.
    "recommended": {},
    # The paper's equations; beta, lr, batch size, normalisation and form of annealing are ours.
    "paper": _PAPER
    | _EQUATIONS
    | {
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
        "lr": follows(upstreams_lr),
        "warmup_steps": share_of_run(0.02, least=200),
        "decay_start": share_of_run(0.8),
        "steps": 10_001,
        "batch_size": 192,
        "normalize": "unit",
        "dtype": "bfloat16",
        "n_ctxs": 2_500,
        "ctx_len": 128,
        "max_norm_multiple": None,
    },
}

_OF_ARCHITECTURES: dict[tuple[str, str], dict[str, Any]] = {
    # The public code's TopK: train_topk.py; top_k.py, line 113
    ("paper-as-run", "vsae_top_k"): _EQUATIONS,
    ("paper-as-run", "vsae"): _EQUATIONS,
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
    architecture: TrainerOptionsOf | None = None,
    posterior: Posterior | None = None,
    first_fill: Any = None,
) -> dict[str, Any]:
    """A preset of vSAEs as arguments of `VariationalTopKTrainer`, or with architecture="vsae_batch_top_k" of
    `VariationalBatchTopKTrainer`, for upstream's `trainSAE`.

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
        architecture: in place of the preset's.
        posterior: fixed, learned or point, in place of the preset's.
        first_fill: activations (N, D) to start from, as `--start data`: some ten thousand rows, far more than dict_size.
            Default: random weights.

    Raises: ConfigError for an unknown preset, architecture or posterior, a preset of another trainer, or a number out of range.
    """
    sizes = {"activation_dim": activation_dim, "dict_size": dict_size, "k": k, "steps": steps}
    require_sizes(**sizes)
    energy = energy_of_default_units(mean_squared_norm, activation_dim)
    config = preset(name, steps)
    trainer = TRAINED[config.sae.architecture].trainer_class
    require_choice("architecture", architecture or "vsae_top_k", TrainerOptionsOf)
    of_ours = [own for own in PRESETS if "architecture" not in PRESETS[own]]
    expected = f"one of {', '.join(of_ours)}, as this one is of {trainer}"
    require(name in of_ours, "preset", name, expected)
    size: dict[str, Any] = {"dict_size": dict_size, "k": k}
    sae = preset(name, steps, architecture=architecture).sae
    sae = sae if posterior is None else sae.start_for(posterior=posterior)
    arguments = in_units(replace(sae, **size).resolve(steps), energy).trainer_arguments()
    arguments |= {"architecture": sae.architecture}  # which trainer they are of
    del arguments["seed"]
    arguments |= {} if first_fill is None else {"first_fill": first_fill}
    return sizes | arguments | {"mean_squared_norm": mean_squared_norm}
