"""The sizes and the vSAEs among which search_and_confirm.py searches."""

from typing import Any

from dictionary_learning_ext.config.sae import SAEConfig
from experiments.trained_saes import sae_config

D = 128
SIZES = {  # F, k, steps
    "F = 4D, k/F = 1/8": (512, 64, 1000),
    "F = 4D, k/F = 1/32": (512, 16, 1000),
    "F = 32D, k/F = 1/256": (4096, 16, 500),
}
TOP_K: dict[str, Any] = {"posterior": "point", "rectify": True, "beta": 0.0}


def selection(ratio: float, until: float = 0.5, beta: float = 0.0) -> dict[str, Any]:
    """Noise on the selection at a noise_to_signal, annealed; KL on the selected."""
    found: dict[str, Any] = {"noise_on": "selection", "ratio": ratio, "until": until, "beta": beta}
    return found | ({"kl_scope": "selected"} if beta else {})


def point(beta: float) -> dict[str, Any]:
    return {"posterior": "point", "beta": beta, "kl_scope": "selected"}


CANDIDATES: dict[str, dict[str, Any]] = {
    "TopK": TOP_K,
    "TopK without ReLU": TOP_K | {"rectify": False},
    "TopK without AuxK": TOP_K | {"auxk_alpha": 0.0},
    "TopK, AuxK after 1,000 tokens": TOP_K | {"dead_feature_threshold": 1000},
    "point, KL 0.01": point(0.01),
    "point, KL 0.03": point(0.03),
    "point, KL 0.1": point(0.1),
    "selection 0.01": selection(0.01),
    "selection 0.03": selection(0.03),
    "selection 0.1": selection(0.1),
    "selection 0.03, without AuxK": selection(0.03) | {"auxk_alpha": 0.0},
    "selection 0.03, until 80%": selection(0.03, until=0.8),
    "selection 0.01, KL 0.01": selection(0.01, beta=0.01),
    "selection 0.03, KL 0.01": selection(0.03, beta=0.01),
    "selection 0.1, KL 0.01": selection(0.1, beta=0.01),
    "selection 0.01, KL 0.03": selection(0.01, beta=0.03),
    "selection 0.03, KL 0.03": selection(0.03, beta=0.03),
    "selection 0.03, KL 0.1": selection(0.03, beta=0.1),
    "selection 0.1, KL 0.1": selection(0.1, beta=0.1),
    "selection 0.03, KL 0.3": selection(0.03, beta=0.3),
    "both 0.03, annealed": {"noise_on": "both", "ratio": 0.03, "until": 0.5, "beta": 0.0},
    "values 0.01": {"noise_on": "values", "ratio": 0.01, "beta": 0.0},
    "values 0.03, KL 0.03": {
        "noise_on": "values",
        "ratio": 0.03,
        "beta": 0.03,
        "kl_scope": "selected",
    },
    "learned sigma on values, KL 0.03": {
        "posterior": "learned",
        "noise_on": "values",
        "beta": 0.03,
        "kl_scope": "selected",
    },
}
"""The search at F = 4D, k/F = 1/8 also had `values 0.01, free bits 0.5`. Its rows are in the raw results;
the package no longer has free bits."""
AT_EVERY_SIZE = ("TopK", "TopK without ReLU", "TopK, AuxK after 1,000 tokens")
"""TopK, and two controls: the vSAEs have no ReLU, and AuxK might only have to start earlier."""
ONLY_AT_SMALL_K = ("selection 0.1, KL 0.1", "selection 0.03, KL 0.3")
SEARCHED: dict[str, tuple[str, ...]] = {
    "F = 4D, k/F = 1/8": tuple(name for name in CANDIDATES if name not in ONLY_AT_SMALL_K),
    "F = 4D, k/F = 1/32": (
        *AT_EVERY_SIZE,
        "point, KL 0.01",
        "point, KL 0.03",
        "selection 0.01",
        "selection 0.03",
        "selection 0.1",
        "selection 0.03, KL 0.01",
        "selection 0.1, KL 0.01",
        "selection 0.01, KL 0.03",
        "selection 0.03, KL 0.03",
        "selection 0.03, KL 0.1",
        *ONLY_AT_SMALL_K,
    ),
    "F = 32D, k/F = 1/256": (
        *AT_EVERY_SIZE,
        "point, KL 0.01",
        "selection 0.01",
        "selection 0.03",
        "selection 0.01, KL 0.01",
        "selection 0.03, KL 0.01",
        "selection 0.03, KL 0.1",
        "selection 0.1, KL 0.1",
    ),
}
"""What is searched at each size, fewer where a run takes longer."""


def partner_of(size: str, seed: int) -> int:
    """The seed whose SAE a seed's is compared with, in agreement.

    In the search that is its only other seed, in the confirmation the next of the eight. At F = 4D,
    k/F = 1/8 the goal depends on agreement, so seeds 8 to 15 are trained for this alone.
    """
    if seed >= 100:
        return 201 - seed
    return seed + 8 if size == "F = 4D, k/F = 1/8" else (seed + 1) % 8


def sae_of(settings: dict[str, Any], size: str, seed: int) -> SAEConfig:
    """A candidate at a size: its ratio becomes sigma, by noise_to_signal = k sigma^2 / D."""
    dict_size, k, _ = SIZES[size]
    own = dict(settings)
    if (ratio := own.pop("ratio", None)) is not None:
        own["sigma"] = (ratio * D / k) ** 0.5
    if (until := own.pop("until", None)) is not None:
        own["noise_anneal"] = until
    return sae_config(k=k, dict_size=dict_size, seed=seed, **own)


def without_noise(settings: dict[str, Any]) -> dict[str, Any]:
    """Point with the same penalty."""
    kept = {name: v for name, v in settings.items() if name in ("beta", "kl_scope", "auxk_alpha")}
    return {"posterior": "point"} | kept
