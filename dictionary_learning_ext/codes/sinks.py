"""Attention sinks: tokens whose activations are so large that they would be on every feature's page.

Models such as Llama, Qwen and SmolLM2 have them at the first token of each context. `Inputs.contexts` leaves them out; this
file says in words which they were.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch as t

from ..activations.inputs import Inputs
from ..activations.positions import at, norms
from ..activations.rows import ContextBatch
from .codes import Reading

logger = logging.getLogger(__name__)

_SINKS_NAMED = 3
"""The most positions and tokens that are named."""


@dataclass(frozen=True)
class Sinks:
    """The attention sinks of a text."""

    tokens: int
    """How many there are."""
    where: str
    """Their positions and tokens, in words."""
    norm_ratio: float | None = None
    """The largest of their norms over the median norm of all tokens, if it was measured."""


def sinks_of(reading: Reading, tokenizer: Any) -> Sinks | None:
    """The sinks that were left out of an encoded text; None if there are none."""
    finder = SinkFinder(tokenizer)
    ids_CL, sink_CL, wanted_CL = map(
        t.from_numpy, (reading.ids_CL, reading.sink_CL, reading.wanted_CL)
    )
    finder.note(ids_CL, sink_CL, sink_CL | wanted_CL)
    return finder.sinks()


def warn_of_sinks(inputs: Inputs, hooks: Iterable[str], tokens: int) -> None:
    """Warn of attention sinks among the first `tokens` tokens of the training text. Without a language model: nothing."""
    if inputs.language_model is None:
        return
    for hook in hooks:
        finder = SinkFinder(inputs.language_model.tokenizer)
        for batch in inputs.contexts(hook, "train", tokens):
            finder.add(batch)
        if sinks := finder.sinks():
            logger.warning(
                "%s: some activations are far larger than the rest, up to %s times the median norm: %s."
                " They dominate the loss and FVE. Use max_norm_multiple=10 to leave them out (the preset"
                " recommended does).",
                *(hook, f"{sinks.norm_ratio:,.0f}", sinks.where),
            )


class SinkFinder:
    """Collects the tokens that were left out of batches as attention sinks.

    Arguments:
        tokenizer: the language model's.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._norm_ratio: float | None = None
        self._at_position: Counter[int] = Counter()
        self._sinks: list[tuple[int, int]] = []

    def add(self, batch: ContextBatch) -> None:
        """Collect a batch's sinks, and their norms."""
        read_BL = batch.wanted_BL | batch.is_sink_BL
        self.note(batch.input_ids_BL.cpu(), batch.is_sink_BL, read_BL)
        if batch.is_sink_BL.any():
            norms_BL = norms(batch.x_BLD).cpu()
            ratio = float(norms_BL[batch.is_sink_BL].max() / at(norms_BL, read_BL).median())
            self._norm_ratio = max(self._norm_ratio or 0.0, ratio)

    def note(self, ids_BL: t.Tensor, is_sink_BL: t.Tensor, read_BL: t.Tensor) -> None:
        """Collect the sinks of some contexts, of which the tokens `read_BL` were read."""
        position_BL = t.arange(read_BL.shape[1]).expand_as(read_BL)
        counts = position_BL[read_BL].bincount(minlength=read_BL.shape[1]).tolist()
        self._at_position.update(dict(enumerate(counts)))
        pairs = position_BL[is_sink_BL].tolist(), ids_BL[is_sink_BL].tolist()
        self._sinks += zip(*pairs, strict=True)

    def sinks(self) -> Sinks | None:
        """The sinks found; None if there are none."""
        if not self._sinks:
            return None
        words = _in_words(self._sinks, self._at_position, self._tokenizer)
        return Sinks(len(self._sinks), words, self._norm_ratio)


def _in_words(far: list[tuple[int, int]], at_position: Counter[int], tokenizer: Any) -> str:
    """The positions and tokens of most sinks, the most frequent first, in words.

    Arguments:
        far: each sink's position in its context and its token id.
        at_position: how many tokens were read at each position.
    """
    parts = []
    while far and len(parts) < _SINKS_NAMED:
        position, n_there = Counter(position for position, _ in far).most_common(1)[0]
        token, n_such = Counter(token for _, token in far).most_common(1)[0]
        if n_there >= n_such:
            is_always = n_there >= 0.9 * at_position[position]
            parts.append(f"position {position} of {'each context' if is_always else 'contexts'}")
            far = [each for each in far if each[0] != position]
        else:
            parts.append(f"token {tokenizer.decode([token])!r}")
            far = [each for each in far if each[1] != token]
    return ", ".join(parts) + (f" and {len(far):,} others" if far else "")
