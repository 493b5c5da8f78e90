"""The sizes and the vSAEs that better_vsae.py searches."""

from typing import Any

from dictionary_learning_ext.sae_config import SAEConfig

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
    "TopK without AuxK": TOP_K | {"auxk_alpha": 0.0},
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
    "values 0.01, free bits 0.5": {
        "noise_on": "values",
        "ratio": 0.01,
        "beta": 0.03,
        "free_bits": 0.5,
    },
}
STRONGER = ("selection 0.1, KL 0.1", "selection 0.03, KL 0.3")
FIRST = tuple(name for name in CANDIDATES if name not in STRONGER)
SECOND = (
    "TopK",
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
    *STRONGER,
)
THIRD = (
    "TopK",
    "point, KL 0.01",
    "selection 0.01",
    "selection 0.03",
    "selection 0.01, KL 0.01",
    "selection 0.03, KL 0.01",
    "selection 0.03, KL 0.1",
    "selection 0.1, KL 0.1",
)
SEARCHED = dict(zip(SIZES, (FIRST, SECOND, THIRD), strict=True))
"""What is searched at each size, fewer where a run takes longer."""


def sae_of(settings: dict[str, Any], size: str, seed: int) -> SAEConfig:
    """A candidate at a size: its ratio becomes sigma, by noise_to_signal = k sigma^2 / D."""
    dict_size, k, steps = SIZES[size]
    own = dict(settings)
    if (ratio := own.pop("ratio", None)) is not None:
        own["sigma"] = (ratio * D / k) ** 0.5
    if (until := own.pop("until", None)) is not None:
        own["noise_anneal_steps"] = int(until * steps)
    return SAEConfig(
        k=k, dict_size=dict_size, lr=2e-3, decay_start=steps * 3 // 4, seed=seed, **own
    )


def is_sampled(settings: dict[str, Any]) -> bool:
    """Whether it counts for the goal: noise_to_signal of 0.01 or more."""
    return settings.get("ratio", 0.0) >= 0.01


def without_noise(settings: dict[str, Any]) -> dict[str, Any]:
    """Point with the same penalty."""
    kept = {name: v for name, v in settings.items() if name in ("beta", "kl_scope", "auxk_alpha")}
    return {"posterior": "point"} | kept
