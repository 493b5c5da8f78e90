"""Rows of activations out of contexts of tokens, one row a token, each once.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the submodule's width.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from nnsight import LanguageModel
from torch import Tensor

from ..errors import NonFiniteError
from .language_models import read_submodule
from .tokens import ContextStream


class ActivationRows:
    """The activations of the tokens of a stream of contexts, in reading order.

    Padding is left out; so are, on request, the beginning-of-text tokens and the rows of
    outlying norm. Where a read ends inside a context, the next one runs the language model on
    that context again and goes on behind the last row given: so no row has to be kept, and the
    place is known by a few integers.

    Arguments:
        contexts: the contexts.
        model: the language model.
        submodule: nnsight's envoy of the module to read.
        io: "in" or "out", the side of it to read.
        batch_size: contexts that the language model gets at a time.
        skip_token_id: the token whose positions are left out, or None.
        max_norm_multiple: rows are left out whose norm is more than this many times the median
            norm of those read with it, or None.
        before_batch: called before each batch of the language model's.

    Attributes:
        dropped: rows left out by max_norm_multiple.
    """

    def __init__(
        self,
        contexts: ContextStream,
        model: LanguageModel,
        submodule: Any,
        io: Literal["in", "out"],
        *,
        batch_size: int,
        skip_token_id: int | None = None,
        max_norm_multiple: float | None = None,
        before_batch: Callable[[], None] | None = None,
    ):
        self.contexts = contexts
        self.dropped = 0
        self._model = model
        self._submodule = submodule
        self._io: Literal["in", "out"] = io
        self._batch_size = batch_size
        self._skip_token_id = skip_token_id
        self._max_norm_multiple = max_norm_multiple
        # The context that the last read ended in: ids, attention mask, positions still wanted.
        self._before_batch = before_batch
        self._partial: tuple[Tensor, Tensor, Tensor] | None = None

    def fill(self, out_ND: Tensor) -> int:
        """Write the next rows into a tensor; the number of them, less than N if the text ends.

        Raises:
            NonFiniteError: a row is NaN or infinite.
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
        _check_finite(non_finite)  # once a fill, because it makes an accelerator wait
        return filled

    def state_dict(self) -> dict[str, Any]:
        """The place of the next row, fit for JSON; without the text's if that has none."""
        return {
            "contexts": self.contexts.state_dict() if self.contexts.resumable else None,
            "partial": self._partial and [part.int().tolist() for part in self._partial],
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises TextError where the text does."""
        self.contexts.load_state_dict(state["contexts"])
        self.dropped = state["dropped"]
        self._partial = None
        if state["partial"] is not None:
            input_ids, mask, wanted = map(torch.tensor, state["partial"])
            self._partial = input_ids.long(), mask.long(), wanted.bool()

    def _next_contexts(self, limit: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Contexts for at most about `limit` rows, or None if the text has ended.

        They are the ids, the attention mask and whether a position is wanted, (B, L) each, and so
        few that no whole one is left over.
        """
        n = min(self._batch_size, math.ceil(limit / self.contexts.ctx_len))
        parts = [] if self._partial is None else [self._partial]
        self._partial = None
        if n > len(parts):
            try:
                input_ids, mask = self.contexts.next_batch(n - len(parts))
            except StopIteration:
                pass
            else:
                wanted = mask.bool()
                if self._skip_token_id is not None:
                    wanted &= input_ids != self._skip_token_id
                parts.append((input_ids, mask, wanted))
        if not parts:
            return None
        input_ids, mask, wanted = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return input_ids, mask, wanted

    def _read(self, contexts: tuple[Tensor, Tensor, Tensor], limit: int) -> tuple[Tensor, Tensor]:
        """Run the language model: at most `limit` rows, and how many are not finite."""
        input_ids, mask, wanted_BL = contexts
        states_BLD = read_submodule(self._model, self._submodule, self._io, input_ids, mask)
        rows = states_BLD.flatten(0, 1)
        wanted = wanted_BL.flatten()
        places = wanted.nonzero().squeeze(1)  # of the rows in reading order, on the CPU
        if len(places) < len(rows):
            rows = rows[places.to(rows.device)]
        precision = torch.promote_types(rows.dtype, torch.float32)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=precision)
        non_finite = (~norms.isfinite()).sum()
        if self._max_norm_multiple is not None and len(rows):
            _check_finite(non_finite)  # a NaN median would drop every row
            keep = norms <= self._max_norm_multiple * norms.median()
            rows, places = rows[keep], places[keep.cpu()]
        if len(rows) > limit:  # the end of the last context is for the next read
            end = int(places[limit - 1]) + 1
            rows, later = rows[:limit], wanted.clone()
            wanted[end:], later[:end] = False, False
            self._partial = input_ids[-1:], mask[-1:], later.view_as(wanted_BL)[-1:]
        self.dropped += int(wanted.sum()) - len(rows)
        return rows, non_finite


def _check_finite(non_finite: Tensor | int) -> None:
    if count := int(non_finite):
        raise NonFiniteError(
            f"the language model gave {count} activations (rows) that are NaN or infinite, instead"
            " of numbers: load it in float32, or check its weights"
        )
