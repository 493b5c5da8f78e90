"""How an SAE matches the true features of a synthetic model, by SAELens's own functions.

Shapes: F features of the SAE, T true features, D = activation_dim, B rows.
"""

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.inputs import Truth
from ..trainers.decoder_directions import decoder_directions
from .totals import TruthScores


class TruthMatch:
    """One SAE's match with the truth, counted over batches.

    Arguments:
        dictionary: takes raw activations.
        truth: the true features, and which of them fired in the last batch. Its model was drawn with
            SAELens, so SAELens is there.
    """

    def __init__(self, dictionary: Dictionary, truth: Truth):
        from sae_lens.synthetic import (  # pyright: ignore[reportMissingImports]
            ClassificationMetricsCalculator,
        )

        self._truth = truth
        self._directions_FD = decoder_directions(dictionary)
        self._firing = ClassificationMetricsCalculator(self._directions_FD, truth.vectors_TD)

    def add(self, f_BF: t.Tensor) -> None:
        """Count the features' activations on the batch that the truth has handed out last."""
        self._firing.add_batch(f_BF.cpu(), self._truth.firing_BT)

    def scores(self) -> TruthScores:
        """Of what was added."""
        from sae_lens.synthetic import (  # pyright: ignore[reportMissingImports]
            feature_uniqueness,
            mean_correlation_coefficient,
        )

        directions_FD, vectors_TD = self._directions_FD, self._truth.vectors_TD
        uniqueness = feature_uniqueness(directions_FD, vectors_TD)
        return TruthScores(
            mcc=mean_correlation_coefficient(directions_FD, vectors_TD),
            firing_f1=self._firing.compute().f1_score,
            uniqueness=uniqueness,
            coverage=uniqueness * len(directions_FD) / len(vectors_TD),
        )
