"""What several experiments read from the SAEs that they trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext import load_dictionary

FIGURES = {
    "fve": "FVE",
    "fve_sampled": "FVE, sampled",
    "frac_recovered": "CE recovered",
    "cossim": "cosine",
    "alive": "alive",
    "near_dead_0.1": "near-dead < 0.1",
    "near_dead_0.5": "near-dead < 0.5",
    "stability_rms": "selection stability",
    "dispersion": "dispersion",
    "agreement": "agreement of seeds",
}
"""By the names of metrics.json, and of `dictionary_learning_ext.features.geometry`: what the tables say."""
TEXTS = 240, 120  # in SAE Bench's training and test sets, of each class


def folder_name(model: str, *rest: object) -> str:
    """A model's name as a table shows it, and what tells its runs apart, fit for a folder."""
    return "_".join([model.replace(", ", "_").replace(" ", ""), *map(str, rest)])


def directions_of(folder: Path) -> np.ndarray:
    """Unit decoder directions of all features, dead ones too: (F, D)."""
    sae: Any = load_dictionary(folder)[0]
    return t.nn.functional.normalize(sae.decoder.weight.detach().t().float(), dim=1).numpy()


def benched(
    folders: dict[str, Path], evals: Sequence[str], tokens: int
) -> dict[str, tuple[Any, Any]]:
    """SAE Bench's results of each model of a seed, plain and size-matched; needs [saebench]."""
    from dictionary_learning_ext.sae_bench.bench_runner import bench

    outcome = bench(
        list(folders.values()),
        evals=("core", *evals),
        tokens=tokens,
        train_size=TEXTS[0],
        test_size=TEXTS[1],
        size_matched=True,
    )
    outcome.check()
    results = outcome.results
    return {
        model: (results[path.name], results[outcome.matched.get(path.name, path.name)])
        for model, path in folders.items()
    }
