"""The signals that were tried: those of the package, and those that did not earn their place in it."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch as t

from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.directions import alignment
from dictionary_learning_ext.features.return_score import (
    Selections,
    SignalCollector,
    has_noise,
    margins,
)

TOKENS = 50_000
NOISE = "kept_under_noise"
OWN_MARGIN = "margin_of_threshold"
_EDGE = 1.2


class CandidateCollector(SignalCollector):
    """All signals of PROTOCOL.md. An SAE with thresholds has both margins of PROTOCOL_THRESHOLD.md: that which was chosen,
    and is the package's, has its own name here."""

    def _values(self, found: Selections) -> dict[str, t.Tensor]:
        values = super()._values(found)
        if self._threshold_F is not None:
            values[OWN_MARGIN] = values["margin"]
            values["margin"] = margins(found)
        values["near_edge"] = (values["margin"] < math.log(_EDGE)).double()
        if has_noise(self.dictionary):
            generator = t.Generator().manual_seed(self.tokens)
            sampled_NF = self.dictionary.encode(found.x_ND, sample=True, generator=generator)
            values[NOISE] = (sampled_NF[found.token_M, found.feature_M] != 0).double()
        return values

    def _signals(self) -> dict[str, t.Tensor]:
        signals, sums = super()._signals(), self._sums
        signals["error_per_firing"] = sums["rise"] / self._count_F
        signals["size"] = sums["size"] / self._count_F
        signals["near_edge"] = sums["near_edge"] / self._count_F
        signals["encoder_decoder"] = alignment(self.dictionary)
        if OWN_MARGIN in sums:
            signals[OWN_MARGIN] = sums[OWN_MARGIN] / self._count_F
        if NOISE in sums:
            signals[NOISE] = sums[NOISE] / self._count_F
        return signals


def measured(folders: Sequence[Path]) -> dict[Path, CandidateCollector]:
    """The signals of SAEs, on the same held-out tokens."""
    opened = open_folders(folders)
    collectors = {Path(name): CandidateCollector(sae) for name, (sae, _) in opened.saes.items()}
    for x_ND in opened.held_out(TOKENS):
        for collector in collectors.values():
            collector.add(x_ND)
    return collectors
