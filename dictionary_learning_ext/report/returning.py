"""Which features of a report's SAE come back in SAEs of other seeds: the numbers as a page shows them."""

from dataclasses import dataclass

import numpy as np

from ..evaluation.metrics import METRICS
from ..features.reproducibility import RETURNING
from ..features.reproducibility_of_folders import ReproducibilityOfFolders, means_over_pairs

HEADER = ("FVE", *(f"returning > {least:g}" for least in RETURNING), "within")
"""The columns of `Returning.saes`."""


@dataclass(frozen=True)
class FeatureScores:
    """The features of one SAE, against those of its other seeds."""

    match_F: np.ndarray
    """The mean absolute cosine with the matches."""
    returns_F: np.ndarray
    """In how many of the others the match is at least 0.7."""
    of: int
    """How many others there are."""

    def words(self, feature: int) -> str:
        """Whether a feature comes back, in words."""
        returns, seeds = int(self.returns_F[feature]), "seed" if self.of == 1 else "seeds"
        return (
            f"comes back in {returns} of {self.of} {seeds}, mean match {self.match_F[feature]:.2f}"
        )


@dataclass(frozen=True)
class Returning:
    """What `vsae report --seeds` measured. The first SAE is the report's."""

    found: ReproducibilityOfFolders

    @property
    def scores(self) -> FeatureScores:
        """Of the report's SAE."""
        measured = self.found.measured
        name = measured.names[0]
        return FeatureScores(
            measured.match_SF[name], measured.returns_SF[name], len(measured.names) - 1
        )

    @property
    def share(self) -> str:
        """The share of the report's SAE's features that return, on average over the other seeds."""
        measured = self.found.measured
        return f"{measured.returning(measured.names[0])[RETURNING[0]]:.1%}"

    @property
    def null(self) -> float:
        """The mean match of random directions: the mean null of the report's SAE's pairs."""
        measured = self.found.measured
        own = [pair.null for names, pair in measured.pairs.items() if measured.names[0] in names]
        return float(np.mean(own))

    @property
    def saes(self) -> list[tuple[str, list[str]]]:
        """A row of cells for each SAE, in the order of HEADER."""
        measured, fve = self.found.measured, METRICS["fve"]
        return [
            (
                name,
                [
                    fve.text(self.found.fve[name], missing="–"),
                    *(f"{share:.1%}" for share in measured.returning(name).values()),
                    f"{measured.within[name]:.4f}",
                ],
            )
            for name in measured.names
        ]

    @property
    def means(self) -> dict[str, str]:
        """The means over all pairs, by the names of the measures."""
        return {
            name: f"{value:.4f}" for name, value in means_over_pairs(self.found.measured).items()
        }

    @property
    def pairs(self) -> list[tuple[str, list[str]]]:
        """A row of cells for each pair, in the order of `means`."""
        return [
            (
                " – ".join(names),
                [
                    f"{value:.4f}"
                    for value in (pair.pw_mcc, pair.null, pair.pw_mcc - pair.null, pair.agreement)
                ],
            )
            for names, pair in self.found.measured.pairs.items()
        ]
