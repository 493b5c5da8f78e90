"""Attention sinks: tokens whose activations are so large that they would be on every feature's page.

Models such as Llama, Qwen and SmolLM2 have them at the first token of each context. A report names
them once and leaves them out of everything else. They are told by the norms of their activations,
not by how many features they activate most strongly: in a small dictionary, an ordinary token
easily does so for over 1% of the features.

Shapes: B contexts of L tokens, D = activation_dim.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch as t

from ..activations.inputs import ContextBatch
from ..activations.positions import FAR, PositionRule, at, norms, where


@dataclass(frozen=True)
class Sinks:
    """The sinks of a text."""

    tokens: int
    where: str
    """Which they are, in words."""
    norm_ratio: float
    """The largest norm over the median."""


class SinkFinder:
    """Takes the sinks out of batches, and notes which they are.

    A sink is a token whose activation has a norm above FAR times the batch's median.

    Arguments:
        tokenizer: the language model's.
    """

    def __init__(self, tokenizer: Any):
        self.tokens = 0
        self._tokenizer = tokenizer
        self._rule = PositionRule(tokenizer, max_norm_multiple=FAR)
        self._norm_ratio = 0.0
        self._at_position: Counter[int] = Counter()
        self._sinks: list[tuple[int, int]] = []

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
        return batch._replace(wanted_BL=kept_BL)

    def sinks(self) -> Sinks | None:
        """The sinks found; None if there are none."""
        if not self.tokens:
            return None
        words = where(self._sinks, self._at_position, self._tokenizer)
        return Sinks(self.tokens, words, self._norm_ratio)
