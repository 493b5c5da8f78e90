"""Rows of activations of one hook point: one row per token, each token once, in reading order.

A buffer shuffles a `RowStream`. `ModelRows` runs a language model on contexts of tokens;
stored_rows.py reads activations from the disk. Evaluations and reports use the same `ActivationReader`, so
the same tokens are left out everywhere.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the width of a row.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, NonFiniteError, TextError
from .hook_points import Change, Place, hooked, input_device
from .language_models import CausalLM
from .passes import SharedPasses
from .positions import CONTEXTS_PER_MEDIAN, PositionRule, at, norms
from .tokens import ContextStream


class RowStream(Protocol):
    """The rows of one hook point, in reading order. Reading can be resumed at any row."""

    width: int
    """D."""
    origin: dict[str, Any]
    """The text or folder that the rows come from, as JSON can hold it."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def passes(self) -> int:
        """How many passes over the data are complete."""
        ...

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """Write the next rows into a tensor.

        Yields the number of rows so far, after each batch of the language model, or each read. If the data ends,
        the last number is below N.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
            TextError, ActivationsError: a file can't be read.
        """
        ...

    def order(self, n: int, fill: int) -> Tensor:
        """The random order of a fill: the numbers from 0 to n - 1, int32.

        Arguments:
            fill: the number of the fill, from 1.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place of the next row and the state of the random orders, as JSON can hold them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. Raises TextError if the text has changed."""
        ...

    def restrict_to(self, settings: Mapping[str, Any]) -> None:
        """Read only the data that was there when `settings` was written."""
        ...

    def settings(self) -> dict[str, Any]:
        """The settings that the rows and their order depend on, as JSON can hold them."""
        ...

    def ended(self, needed: int, found: int, given: int) -> TextError:
        """The error for data that ended too early.

        Arguments:
            needed: rows in a batch.
            found: rows that are left.
            given: rows that were handed out before.
        """
        ...


def drawn_seed(*what: object) -> int:
    """A 63-bit seed that follows from the arguments, by a hash."""
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ContextBatch(NamedTuple):
    """Some contexts of tokens, with their activations at a hook point."""

    input_ids_BL: Tensor
    """Token ids, int64, -1 at padding. All 0 if the ids aren't known."""
    wanted_BL: Tensor
    """False at padding and at tokens that are left out."""
    x_BLD: Tensor
    """Activations in float32; those of `read_contexts` have the dtype of the file."""
    is_sink_BL: Tensor
    """True at tokens that are left out because of their norm."""

    @property
    def wanted_ND(self) -> Tensor:
        """The activations of the wanted tokens, (N, D)."""
        return self.x_BLD[self.wanted_BL.to(self.x_BLD.device)]


class Activations(NamedTuple):
    """The activations of some contexts, and which tokens to use."""

    x_BLD: Tensor
    """In the model's dtype and on its device."""
    wanted_BL: Tensor
    """False at the tokens that are left out. On the CPU."""
    non_finite: Tensor
    """How many wanted tokens have an activation that is NaN or infinite. A number on the model's
    device: reading it synchronises with the GPU."""


class ActivationReader:
    """Reads a language model's activations at one place, and leaves out the tokens that a rule excludes.

    An activation that is NaN or infinite is an error, unless its token is left out.

    Arguments:
        shared: the forward passes that several places share. Default: forward passes of its own.
    """

    def __init__(
        self,
        model: CausalLM,
        place: Place,
        rule: PositionRule,
        shared: SharedPasses | None = None,
    ):
        self.place, self.rule = place, rule
        self._model = model.module
        self.forward_passes = shared or SharedPasses(model, [place])

    def run(self, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Run the language model up to the place.

        Arguments:
            input_ids_BL: int64.
            mask_BL: 0 at padding.

        Returns: the activations, (B, L, D), in the model's dtype and on its device.
        """
        return self.forward_passes.read(self.place, [(input_ids_BL, mask_BL)])[0]

    def mark_outliers(self, x_BLD: Tensor, wanted_BL: Tensor) -> Activations:
        """Find the outliers among the wanted tokens of contexts that share one median norm.

        Arguments:
            wanted_BL: what `rule.by_token` returns, or a subset.

        Raises: NonFiniteError if the rule has a `max_norm_multiple`; otherwise the caller calls
            `require_finite`.
        """
        norms_BL = norms(x_BLD)
        non_finite = (~at(norms_BL, wanted_BL).isfinite()).sum()
        if self.rule.max_norm_multiple is not None:
            self.require_finite(non_finite)  # a NaN median would leave out every token
        return Activations(x_BLD, self.rule.by_norm(norms_BL, wanted_BL), non_finite)

    @torch.no_grad()
    def logits_with(self, input_ids_BL: Tensor, mask_BL: Tensor, change: Change) -> Tensor:
        """Run the language model to its end with changed activations at the place.

        Arguments:
            input_ids_BL: int64. Padding must be on the right: the model counts positions from the left.
            mask_BL: 0 at padding.

        Returns: the logits, (B, L, V) of V tokens in the vocabulary, in the model's dtype.
        """
        device = input_device(self._model)
        with hooked(self.place, change):
            return self._model(
                input_ids=input_ids_BL.to(device),
                attention_mask=mask_BL.to(device),
                use_cache=False,
            ).logits

    def require_finite(self, non_finite: Tensor | int) -> None:
        """Raise NonFiniteError if any activations are NaN or infinite.

        Arguments:
            non_finite: how many are, see `Activations`; may be a sum over several reads.
        """
        if number := int(non_finite):
            raise NonFiniteError(
                f"{number} activations of the language model at the {self.place.io}put of"
                f" {self.place.path} are NaN or infinite",
                expected="finite numbers",
                instead="load the model in float32, or check its weights",
            )


class _Contexts(NamedTuple):
    """Contexts to read."""

    input_ids_BL: Tensor
    mask_BL: Tensor
    """0 at padding."""
    wanted_BL: Tensor
    """False at tokens that are left out, or were in an earlier fill. Outliers are not known yet."""


_Read = tuple[Tensor, Tensor, Tensor, Tensor]
"""One context after its forward pass: the three of `_Contexts`, (1, L), and its activations, (1, L, D)."""


class ModelRows:
    """The activations of the tokens of a stream of contexts, as a `RowStream`.

    A fill may end inside a context. The next fill then runs the language model on that context again
    and continues after its last row. So a position needs no activations: it is the position in the text,
    that one context's ids, and the state of the generator that draws the orders.

    Arguments:
        batch_size: contexts per batch of the language model. It doesn't change which tokens are outliers: each
            CONTEXTS_PER_MEDIAN contexts of a fill share one median norm.
        seed: seeds the random orders.
        before_batch: called before each batch of the language model. It may raise.
    """

    def __init__(
        self,
        contexts: ContextStream,
        reader: ActivationReader,
        *,
        width: int,
        dtype: torch.dtype,
        batch_size: int,
        seed: int = 0,
        before_batch: Callable[[], None] | None = None,
    ):
        self.contexts, self.reader = contexts, reader
        self.width, self.dtype = width, dtype
        self.origin: dict[str, Any] = {"text": getattr(contexts.text, "name", None)}
        self._batch_size = batch_size
        self._before_batch = before_batch
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU, for any device
        self._partial: _Contexts | None = None  # the context that the last fill ended in

    @property
    def passes(self) -> int:
        return self.contexts.passes

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """See `RowStream`. Yields after each batch of the language model, and after each median."""
        queue: deque[_Read] = deque()
        filled = 0
        non_finite: Tensor | int = 0
        while filled < len(out_ND):
            # Lower bound on the contexts that this fill still uses: no token may be left out.
            missing = math.ceil((len(out_ND) - filled) / self.contexts.ctx_len)
            n_in_median = min(CONTEXTS_PER_MEDIAN, missing)
            while len(queue) < n_in_median and (read := self._read(missing - len(queue))):
                queue += read
                yield filled
            if not queue:
                break  # the text has ended
            contexts = [queue.popleft() for _ in range(min(n_in_median, len(queue)))]
            rows_ND, n_non_finite = self._rows_of(contexts, len(out_ND) - filled)
            out_ND[filled : filled + len(rows_ND)] = rows_ND
            filled += len(rows_ND)
            non_finite = non_finite + n_non_finite
            yield filled
        self.reader.require_finite(non_finite)  # once per fill, as it synchronises with the GPU

    def _read(self, n: int) -> list[_Read]:
        """Run the language model on a batch of the next contexts, at most n. Several processes read a full batch
        each, as long as all of them are among the n.

        Returns: the contexts that were read; none at the end of the text.
        """
        if self._before_batch is not None:
            self._before_batch()
        passes = self.reader.forward_passes
        full = min(passes.at_once, n // self._batch_size)
        sizes = [self._batch_size] * full or [n]
        batches = [batch for size in sizes if (batch := self._next_contexts(size)) is not None]
        if not batches:
            return []
        all_x = passes.read(
            self.reader.place, [(ids_BL, mask_BL) for ids_BL, mask_BL, _ in batches]
        )
        return [
            context
            for batch, x_BLD in zip(batches, all_x, strict=True)
            for context in zip(*(tensor.split(1) for tensor in (*batch, x_BLD)), strict=True)
        ]

    def _next_contexts(self, n: int) -> _Contexts | None:
        """The next n contexts, or fewer at the end of the text, or None after it."""
        parts = [] if self._partial is None else [self._partial]
        self._partial = None
        if n > len(parts):
            with suppress(StopIteration):
                input_ids_BL, mask_BL = self.contexts.next_batch(n - len(parts))
                wanted_BL = self.reader.rule.by_token(input_ids_BL, mask_BL)
                parts.append(_Contexts(input_ids_BL, mask_BL, wanted_BL))
        if not parts:
            return None
        return _Contexts(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _rows_of(self, contexts: list[_Read], limit: int) -> tuple[Tensor, Tensor]:
        """The rows of contexts that share a median, at most `limit`, and how many of them are NaN or infinite."""
        _, _, wanted_BL, x_BLD = map(torch.cat, zip(*contexts, strict=True))
        if x_BLD.shape[-1] != self.width:
            place = self.reader.place
            raise ConfigError(
                f"the {place.io}put of {place.path} is {x_BLD.shape[-1]} wide",
                name="d_submodule",
                value=self.width,
                expected=str(x_BLD.shape[-1]),
            )
        read = self.reader.mark_outliers(x_BLD, wanted_BL)
        rows_ND = rearrange(read.x_BLD, "b l d -> (b l) d")
        place_N = rearrange(read.wanted_BL, "b l -> (b l)").nonzero().squeeze(1)
        if len(place_N) < len(rows_ND):
            rows_ND = rows_ND[place_N.to(rows_ND.device)]
        if len(rows_ND) > limit:  # the rest of the last context goes into the next fill
            input_ids_BL, mask_BL, wanted_BL, _ = contexts[-1]
            used = int(place_N[limit - 1]) % self.contexts.ctx_len + 1
            is_later_L = torch.arange(self.contexts.ctx_len) >= used
            self._partial = _Contexts(input_ids_BL, mask_BL, wanted_BL & is_later_L)
            rows_ND = rows_ND[:limit]
        return rows_ND, read.non_finite

    def order(self, n: int, fill: int) -> Tensor:
        """See `RowStream`. One generator draws all orders."""
        return torch.randperm(n, generator=self._generator, dtype=torch.int32)

    def state_dict(self) -> dict[str, Any]:
        """See `RowStream`. A text that can't be resumed has no position in it."""
        return {
            "rows": {
                "contexts": self.contexts.state_dict() if self.contexts.resumable else None,
                "partial": self._partial and [part.int().tolist() for part in self._partial],
            },
            "generator": self._generator.get_state().numpy().tobytes().hex(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rows = state["rows"]
        self.contexts.load_state_dict(rows["contexts"])
        self._partial = None
        if rows["partial"] is not None:
            input_ids_BL, mask_BL, wanted_BL = map(torch.tensor, rows["partial"])
            self._partial = _Contexts(input_ids_BL.long(), mask_BL.long(), wanted_BL.bool())
        generator = torch.frombuffer(bytearray.fromhex(state["generator"]), dtype=torch.uint8)
        self._generator.set_state(generator)

    def restrict_to(self, settings: Mapping[str, Any]) -> None:
        """Does nothing: a text may not grow, see `TextStream`."""

    def settings(self) -> dict[str, Any]:
        return {
            "io": self.reader.place.io,
            "ctx_len": self.contexts.ctx_len,
            "remove_bos": self.reader.rule.skip_token_id is not None,
            "seed": self._seed,
            "packing": self.contexts.packing,
            "max_norm_multiple": self.reader.rule.max_norm_multiple,
            "dtype": str(self.dtype).removeprefix("torch."),
            "submodule": self.reader.place.path,
        }

    def ended(self, needed: int, found: int, given: int) -> TextError:
        text = self.contexts.text
        name = f"the text {getattr(text, 'name', type(text).__name__)!r}"
        if not self.contexts.tokens_read:
            return TextError(f"{name} has no documents to train on", instead="use another text")
        return TextError(
            f"{name} ended after {given} tokens: expected {needed} for the next batch, found {found}",
            instead="use a longer text, or more text_passes",
        )
