"""The metrics and the codes of an SAE on batches of activations."""

from typing import Any

import torch as t

from dictionary_learning_ext.codes.codes import Codes, encode
from dictionary_learning_ext.codes.encoding import Encoder
from dictionary_learning_ext.evaluation.measure import TruthMatch, contexts_of_rows
from dictionary_learning_ext.evaluation.metrics import computed


class Measurement:
    """Sums over batches what the metrics need, as `measure` does."""

    def __init__(self, sae: Any, norm_factor: float = 1.0, truth: Any = None):
        self.encoder = Encoder(sae, norm_factor, with_all=True, keep=False)
        self.totals = self.encoder.totals
        self._match = truth and TruthMatch(sae, truth)

    def add(self, x_BD: t.Tensor) -> None:
        code_BF = self.encoder.add(x_BD)
        if self._match:
            self._match.add(t.from_numpy(code_BF.toarray()))

    def metrics(self) -> dict[str, Any]:
        if self._match:
            self.totals.truth = self._match.scores()
        return computed(self.totals)


def codes_of_rows(sae: Any, *parts: t.Tensor) -> Codes:
    """Codes on rows of activations, one batch after the other."""
    (codes,) = encode([sae], contexts_of_rows(iter(parts)))
    return codes
