"""How well the seeds of a setting agree: what tables of many run folders show of reproducibility."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..run_folder.matching import SEEDS, settings_of
from ..run_folder.reading import read_config
from ..run_folder.weights import load_dictionary
from .directions import decoder_directions
from .reproducibility import RETURNING, reproducibility
from .reproducibility_of_folders import means_over_pairs

logger = logging.getLogger(__name__)

SAME_BATCHES = "* some of these seeds saw the same batches, and features may return for that reason"


@dataclass(frozen=True)
class SeedMetric:
    """A number that says how well seeds agree."""

    key: str
    label: str
    definition: str
    form: str
    """How tables show it."""

    def text(self, scores: "SeedScores | None") -> str:
        """Its value, with a star if seeds saw the same batches; a dash if it was not measured."""
        if scores is None:
            return "-"
        star = " *" if scores.share_batches else ""
        return f"{scores.values[self.key]:{self.form}}{star}"


SEED_METRICS = (
    SeedMetric(
        "pw_mcc_less_null",
        "PW-MCC less null",
        "mean absolute cosine of the features of two seeds, matched one to one by their decoder "
        "directions, less that of random directions of the same covariance",
        ".4f",
    ),
    SeedMetric(
        "returning",
        f"returning > {RETURNING[0]:g}",
        "share of features whose match in another seed has an absolute cosine of at least "
        f"{RETURNING[0]:g}",
        ".1%",
    ),
)


@dataclass(frozen=True)
class SeedScores:
    """How the SAEs of one setting agree, on average over all pairs."""

    values: dict[str, float]
    """By the keys of SEED_METRICS."""
    n: int
    """How many SAEs were compared."""
    share_batches: bool
    """Whether two of them have one data seed."""


def of_seeds(folders: Sequence[Path]) -> SeedScores | None:
    """Compare the SAEs of run folders of one setting.

    Of several with the same seed and data seed, the first is taken.

    Returns: None if fewer than two remain, or if one can't be read, of which a warning is logged.
    """
    try:
        different: dict[tuple[Any, ...], Path] = {}
        for folder in folders:
            settings = settings_of(read_config(folder))
            different.setdefault(tuple(settings.get(name) for name in SEEDS), folder)
        if len(different) < 2:
            return None
        measured = reproducibility(
            {
                str(folder): decoder_directions(load_dictionary(folder)[0])
                for folder in different.values()
            }
        )
    except UserError as error:
        logger.warning("which features come back was not measured: %s", error)
        return None
    returning = [measured.returning(name)[RETURNING[0]] for name in measured.names]
    data_seeds = [seeds[SEEDS.index("data_seed")] for seeds in different]
    known = [seed for seed in data_seeds if seed is not None]  # upstream's folders name none
    return SeedScores(
        values={
            "pw_mcc_less_null": means_over_pairs(measured)["PW-MCC less null"],
            "returning": float(np.mean(returning)),
        },
        n=len(different),
        share_batches=len(set(known)) < len(known),
    )
