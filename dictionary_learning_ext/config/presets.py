"""Named settings for `vsae train --preset`, and the SAEs that `vsae quickstart` compares.

A preset holds what differs from the classes' defaults, which are the paper's. Flags override it.
Its schedules (`decay_start`, `noise_anneal_steps`) are for its own `steps` and scale with --steps.
"""

from dataclasses import replace
from typing import Any

from .checks import require
from .run_config import TrainConfig
from .sae_config import SAEConfig

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
}

DEFAULT_PRESET = "recommended"
"""What `vsae train` starts from without --preset, --config or --resume."""

PRESETS: dict[str, dict[str, Any]] = {
    # A few minutes on a laptop, on the embedded model.
    "quickstart": {
        "k": 16,
        "dict_size": 512,
        "noise_on": "selection",
        "noise_anneal_steps": 500,
        "noise_to_signal": 1 / 32,
        "beta": 0.0,
        "max_norm_multiple": 10.0,  # as in recommended, so that both are measured the same way
        "lr": 2e-3,
        "steps": 1000,
        "decay_start": 750,
    },
    # Chosen in a study of which features come back with another seed, at TopK's reconstruction.
    # experiments/RESULTS.md says at which hook points and sizes it passed, and where it did not.
    "recommended": {
        "k": 16,
        "dict_size": 512,
        "noise_on": "selection",
        "noise_anneal_steps": 500,
        "noise_to_signal": 0.3,
        "kl_scope": "selected",
        "beta": 0.03,
        "max_norm_multiple": 10.0,  # attention sinks; the embedded model has none
        "lr": 2e-3,
        "steps": 1000,
        "decay_start": 750,
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
    # What the paper's public code ran: it never sampled.
    "paper-as-run": _PAPER
    | {
        "posterior": "point",
        "rectify": True,
        "normalize": "unit",
        "lr": 8e-4,
        "batch_size": 192,
    },
}


def quickstart(steps: int, seed: int) -> dict[str, SAEConfig]:
    """TopK, the vSAE of the paper's equations, and the vSAE whose noise explores the selection.

    Matched: one size, learning rate and schedule, those of the preset quickstart. The paper's
    ratios, F = 4D and k/F = 1/32. The last one's noise is annealed to 0 over the first half.
    """
    annealed = replace(preset("quickstart", steps).sae, seed=seed)
    matched = ("k", "dict_size", "lr", "decay_start", "seed")
    shared = {name: getattr(annealed, name) for name in matched}
    return {
        "top_k": SAEConfig(architecture="top_k", **shared),
        "vsae_paper": SAEConfig(beta=1.0, **shared),
        "vsae_annealed_selection": annealed,
    }


def preset(name: str, steps: int | None = None) -> TrainConfig:
    """The defaults changed by a preset, and its schedules scaled to `steps` if given.

    Raises: ConfigError for an unknown name.
    """
    require(name in PRESETS, "preset", name, "one of " + ", ".join(PRESETS))
    config = TrainConfig().updated(PRESETS[name], f"preset {name}")
    return config if steps is None else config.for_steps(steps)
