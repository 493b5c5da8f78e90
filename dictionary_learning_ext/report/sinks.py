"""Attention sinks: tokens whose activations are so large that they would be on every feature's page.

Models such as Llama, Qwen and SmolLM2 have them at the first token of each context. A report names
them once and leaves them out of everything else. They are told by the norms of their activations,
not by how many features they activate most strongly: in a small dictionary, an ordinary token
easily does so for over 1% of the features.

Shapes: B contexts of L tokens, N sinks, D = activation_dim, F features.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.contexts import ContextBatch
from ..activations.outliers import FAR, where
from ..activations.position_rule import PositionRule, at, norms
from ..features.collector import FeatureStatistics
from ..trainers.dictionary_inputs import as_input


@dataclass(frozen=True)
class Sinks:
    """The sinks of a text."""

    tokens: int
    where: str
    """Which they are, in words."""
    norm_ratio: float
    """The largest norm over the median."""
    strongest: list[float]
    """For each SAE, the share of its features that have their activation of the largest magnitude at
    a sink."""


class SinkFinder:
    """Takes the sinks out of batches, and notes how strongly they activate each feature.

    A sink is a token whose activation has a norm above FAR times the batch's median.

    Arguments:
        dictionaries: the SAEs.
        tokenizer: the language model's.
    """

    def __init__(self, dictionaries: list[Dictionary], tokenizer: Any):
        self.tokens = 0
        self._dictionaries: list[Any] = dictionaries
        self._tokenizer = tokenizer
        self._rule = PositionRule(tokenizer, max_norm_multiple=FAR)
        self._norm_ratio = 0.0
        self._at_position: Counter[int] = Counter()
        self._sinks: list[tuple[int, int]] = []
        self._largest_F = [t.zeros(one.dict_size) for one in dictionaries]  # magnitudes

    @t.no_grad()
    def without_sinks(self, batch: ContextBatch) -> ContextBatch:
        """The batch with its sinks marked as not wanted."""
        norms_BL = norms(batch.x_BLD).cpu()
        median = at(norms_BL, batch.wanted_BL).median()
        if not median > 0:
            return batch
        kept_BL = self._rule.by_norm(norms_BL, batch.wanted_BL)
        is_sink_BL = batch.wanted_BL & ~kept_BL
        position_BL = t.arange(kept_BL.shape[1]).expand_as(kept_BL)
        self._at_position.update(position_BL[batch.wanted_BL].tolist())
        if is_sink_BL.any():
            self.tokens += int(is_sink_BL.sum())
            ids_BL = batch.input_ids_BL.cpu()
            pairs = position_BL[is_sink_BL].tolist(), ids_BL[is_sink_BL].tolist()
            self._sinks += zip(*pairs, strict=True)
            self._norm_ratio = max(self._norm_ratio, float(norms_BL[is_sink_BL].max() / median))
            x_ND = batch.x_BLD[is_sink_BL.to(batch.x_BLD.device)]
            for dictionary, largest_F in zip(self._dictionaries, self._largest_F, strict=True):
                f_NF = dictionary.encode(as_input(dictionary, x_ND)).float().cpu()
                t.maximum(largest_F, f_NF.abs().amax(0), out=largest_F)
        return batch._replace(wanted_BL=kept_BL)

    def sinks(self, statistics: list[FeatureStatistics]) -> Sinks | None:
        """The sinks found; None if there are none.

        Arguments:
            statistics: each SAE's, without the sinks.
        """
        if not self.tokens:
            return None
        strongest = [
            float((largest_F > one.max_F.abs().nan_to_num(nan=0.0)).double().mean())
            for largest_F, one in zip(self._largest_F, statistics, strict=True)
        ]
        words = where(self._sinks, self._at_position, self._tokenizer)
        return Sinks(self.tokens, words, self._norm_ratio, strongest)
