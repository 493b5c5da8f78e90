"""Rows of activations out of contexts of tokens: one row per token, each token once.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the submodule's width.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .activation_reader import ActivationReader
from .outliers import NormRecord
from .tokens import ContextStream


class _ContextsToRead(NamedTuple):
    """Contexts to read."""

    input_ids_BL: Tensor
    mask_BL: Tensor
    """0 at padding."""
    wanted_BL: Tensor
    """False at tokens that are left out or already have a row. Outliers are not known yet."""


class ActivationRows:
    """The activations of the tokens of a stream of contexts, in reading order.

    A read may end inside a context. The next one then runs the language model on that context again
    and continues after the last row handed out. So no row has to be kept, and a few integers say
    where to continue.

    Arguments:
        contexts: the contexts.
        reader: reads the activations and says which tokens get no row.
        batch_size: contexts per batch of the language model.
        before_batch: called before each batch of the language model.

    Attributes:
        dropped: rows left out because of `max_norm_multiple`.
        record: notes the norms of the rows while it is set.
    """

    def __init__(
        self,
        contexts: ContextStream,
        reader: ActivationReader,
        *,
        batch_size: int,
        before_batch: Callable[[], None] | None = None,
    ):
        self.contexts = contexts
        self.dropped = 0
        self.record: NormRecord | None = None
        self._reader = reader
        self._batch_size = batch_size
        self._before_batch = before_batch
        self._partial: _ContextsToRead | None = None  # the context that the last read ended in

    def fill(self, out_ND: Tensor) -> int:
        """Write the next rows into a tensor. Returns their number: below N if the text ends.

        Raises what `filling` does.
        """
        return max(self.filling(out_ND), default=0)  # which rises

    def filling(self, out_ND: Tensor) -> Iterator[int]:
        """`fill`, a batch of the language model at a time: how many rows there are after each.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
            TextError: the text can't be read.
        """
        filled = 0
        non_finite: Tensor | int = 0
        while filled < len(out_ND):
            if self._before_batch is not None:
                self._before_batch()
            contexts = self._next_contexts(len(out_ND) - filled)
            if contexts is None:
                break
            rows_ND, n_non_finite = self._read(contexts, len(out_ND) - filled)
            out_ND[filled : filled + len(rows_ND)] = rows_ND
            filled += len(rows_ND)
            non_finite = non_finite + n_non_finite
            yield filled
        self._reader.require_finite(non_finite)  # once per fill: an accelerator has to wait for it

    def state_dict(self) -> dict[str, Any]:
        """The place of the next row, fit for JSON. Without the text's place if it has none."""
        return {
            "contexts": self.contexts.state_dict() if self.contexts.resumable else None,
            "partial": self._partial and [part.int().tolist() for part in self._partial],
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises TextError where the text does."""
        self.contexts.load_state_dict(state["contexts"])
        self.dropped = state["dropped"]
        self._partial = None
        if state["partial"] is not None:
            input_ids_BL, mask_BL, wanted_BL = map(torch.tensor, state["partial"])
            self._partial = _ContextsToRead(input_ids_BL.long(), mask_BL.long(), wanted_BL.bool())

    def _next_contexts(self, limit: int) -> _ContextsToRead | None:
        """Contexts for about `limit` rows, so few that no whole one is left; None at the end."""
        n = min(self._batch_size, math.ceil(limit / self.contexts.ctx_len))
        parts = [] if self._partial is None else [self._partial]
        self._partial = None
        if n > len(parts):
            try:
                input_ids_BL, mask_BL = self.contexts.next_batch(n - len(parts))
            except StopIteration:
                pass
            else:
                wanted_BL = self._reader.rule.by_token(input_ids_BL, mask_BL)
                parts.append(_ContextsToRead(input_ids_BL, mask_BL, wanted_BL))
        if not parts:
            return None
        return _ContextsToRead(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _read(self, contexts: _ContextsToRead, limit: int) -> tuple[Tensor, Tensor]:
        """Run the language model: at most `limit` rows, and how many are not finite."""
        read = self._reader.read(*contexts)
        rows_ND = rearrange(read.x_BLD, "b l d -> (b l) d")
        place_N = rearrange(read.wanted_BL, "b l -> (b l)").nonzero().squeeze(1)
        if len(place_N) < len(rows_ND):
            rows_ND = rows_ND[place_N.to(rows_ND.device)]
        considered = rearrange(contexts.wanted_BL, "b l -> (b l)")
        if len(rows_ND) > limit:  # the end of the last context is for the next read
            end = int(place_N[limit - 1]) + 1
            later = considered.clone()
            later[:end] = False
            later_BL = rearrange(later, "(b l) -> b l", l=self.contexts.ctx_len)
            self._partial = _ContextsToRead(
                contexts.input_ids_BL[-1:], contexts.mask_BL[-1:], later_BL[-1:]
            )
            rows_ND, considered = rows_ND[:limit], considered[:end]
        self.dropped += int(considered.sum()) - len(rows_ND)
        if self.record is not None:
            place_N = place_N[: len(rows_ND)]
            input_ids = rearrange(contexts.input_ids_BL, "b l -> (b l)")
            self.record.add(rows_ND, input_ids[place_N], place_N % self.contexts.ctx_len)
        return rows_ND, read.non_finite
