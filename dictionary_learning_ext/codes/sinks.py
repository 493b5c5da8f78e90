"""Attention sinks: tokens whose activations are so large that they would be on every feature's page.

Models such as Llama, Qwen and SmolLM2 have them at the first token of each context. `Inputs.contexts` leaves them out; this
file says in words which they were.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..activations.inputs import Inputs
from ..activations.positions import at, norms
from ..config.hooks import sides_of
from .contexts import Reading

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


def sinks_of(reading: Reading, tokenizer: Any) -> Sinks | None:
    """The sinks that were left out of a text; None if there are none.

    Arguments:
        tokenizer: the language model's.
    """
    positions = np.nonzero(reading.sink_CL)[1].tolist()
    if not positions:
        return None
    sinks = [*zip(positions, reading.ids_CL[reading.sink_CL].tolist(), strict=True)]
    read_L = (reading.wanted_CL | reading.sink_CL).sum(0)
    return Sinks(len(sinks), _in_words(sinks, read_L, tokenizer))


def warn_of_sinks(inputs: Inputs, hooks: Iterable[str], tokens: int) -> None:
    """Warn of attention sinks among the first `tokens` tokens of the training text. Without a language model: nothing."""
    if inputs.language_model is None:
        return
    for hook in hooks:
        parts, ratio = [], 0.0
        for batch in inputs.contexts(hook, "train", tokens):
            parts.append(Reading.of(batch))
            if batch.is_sink_BL.any():
                for side_BLD in batch.x_BLD.chunk(len(sides_of(hook)), -1):
                    norms_BL = norms(side_BLD).cpu()
                    median = at(norms_BL, batch.wanted_BL | batch.is_sink_BL).median()
                    ratio = max(ratio, float(norms_BL[batch.is_sink_BL].max() / median))
        if sinks := sinks_of(Reading.joined(parts), inputs.language_model.tokenizer):
            logger.warning(
                "%s: some activations are far larger than the rest, up to %s times the median norm: %s."
                " They dominate the loss and FVE. Use max_norm_multiple=10 to leave them out (the preset"
                " recommended does).",
                *(hook, f"{ratio:,.0f}", sinks.where),
            )


def _in_words(sinks: list[tuple[int, int]], read_L: np.ndarray, tokenizer: Any) -> str:
    """The positions and tokens of most sinks, the most frequent first, in words.

    Arguments:
        sinks: each sink's position in its context and its token id.
        read_L: how many tokens were read at each position.
    """
    parts = []
    while sinks and len(parts) < _SINKS_NAMED:
        position, n_there = Counter(position for position, _ in sinks).most_common(1)[0]
        token, n_such = Counter(token for _, token in sinks).most_common(1)[0]
        if n_there >= n_such:
            is_always = n_there >= 0.9 * read_L[position]
            parts.append(f"position {position} of {'each context' if is_always else 'contexts'}")
            sinks = [each for each in sinks if each[0] != position]
        else:
            parts.append(f"token {tokenizer.decode([token])!r}")
            sinks = [each for each in sinks if each[1] != token]
    return ", ".join(parts) + (f" and {len(sinks):,} others" if sinks else "")
