"""What several experiments read from the SAEs that they trained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext import load_dictionary

FIGURES = {
    "fve": "FVE",
    "frac_recovered": "CE recovered",
    "cossim": "cosine",
    "alive": "alive",
    "near_dead_0.1": "near-dead < 0.1",
    "near_dead_0.5": "near-dead < 0.5",
    "stability_rms": "selection stability",
    "dispersion": "dispersion",
    "agreement": "agreement of seeds",
}
"""By the names of metrics.json, and of `dictionary_learning_ext.geometry`: what the tables say."""


def folder_name(model: str, *rest: object) -> str:
    """A model's name as a table shows it, and what tells its runs apart, fit for a folder."""
    return "_".join([model.replace(", ", "_").replace(" ", ""), *map(str, rest)])


def directions_of(folder: Path) -> np.ndarray:
    """Unit decoder directions of all features, dead ones too: (F, D)."""
    sae: Any = load_dictionary(folder)[0]
    return t.nn.functional.normalize(sae.decoder.weight.detach().t().float(), dim=1).numpy()
