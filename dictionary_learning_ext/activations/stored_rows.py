"""Activations from files: shuffled batches of rows, and whole contexts in reading order.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the width of a row.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config.hooks import sides_of
from ..errors import ConfigError, NonFiniteError, TextError
from .positions import PositionRule
from .rows import ContextBatch, drawn_seed
from .shuffled_rows import ShuffledRows
from .stored import Part, StoredActivations, read_part

ROWS_AT_ONCE = 4096
"""About how many rows are read together. `PositionRule` compares each norm with their median."""


def pieces_of(parts: Iterable[Part], ctx_len: int) -> list[Part]:
    """Cut parts into pieces of about 4,096 rows, which are read at once."""
    n = max(1, ROWS_AT_ONCE // ctx_len)
    return [
        part._replace(start=start, stop=min(start + n, part.stop))
        for part in parts
        for start in range(part.start, part.stop, n)
    ]


def read_contexts(piece: Part, hook: str, rule: PositionRule) -> ContextBatch:
    """A copy of a hook point's stored activations, in the file's dtype. Of a pair, both sides.

    Raises: NonFiniteError if an activation is NaN or infinite and its token isn't left out;
        ActivationsError if the file is damaged.
    """
    read = [read_part(piece, side) for side in sides_of(hook)]
    sides, ids_NL = [torch.from_numpy(np.array(x_NLD)) for x_NLD, _ in read], read[0].ids_NL
    x_BLD = sides[0] if len(sides) == 1 else torch.cat(sides, -1)
    if x_BLD.dtype == torch.uint16:
        x_BLD = x_BLD.view(torch.bfloat16)
    if ids_NL is None:
        ids_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.int64)
    else:
        ids_BL = torch.from_numpy(ids_NL.astype(np.int64))
    wanted_BL = rule.by_token(ids_BL, ids_BL >= 0)
    kept_BL, non_finite = rule.without_outliers(x_BLD, wanted_BL, len(sides))
    if number := int(non_finite):
        raise NonFiniteError(
            f"{piece.path}: {number} activations are NaN or infinite",
            expected="finite numbers",
            instead="remove their rows, or cache them again with lm_dtype='float32'",
        )
    return ContextBatch(ids_BL, kept_BL, x_BLD, wanted_BL & ~kept_BL)


class _Next(NamedTuple):
    """The position of the next row."""

    number: int
    """The number of the pass, from 0."""
    piece: int
    """How many pieces of this pass have been used."""
    row: int
    """How many rows of the next piece have been used, not counting those that are left out."""


class StoredRows(ShuffledRows):
    """Shuffled batches of one hook point's stored activations. Every row is read once per pass.

    Files are read whole, in a random order. A fill continues where the last one ended, even inside a file.
    The order of the files and of the rows follows from the seed and the numbers of the pass and the fill.

    Arguments:
        rule: which tokens are left out. The median norm is that of about 4,096 rows.
        passes: how often the folder is read. None: without end.
        seed: seeds the random orders. None: rows keep their order.
        before_read: called before each read of about 4,096 rows. It may raise.
        shuffled: the other arguments of `ShuffledRows`.

    Raises: ActivationsError if the folder lacks the hook; ConfigError as `ShuffledRows`.
    """

    def __init__(
        self,
        stored: StoredActivations,
        hook: str,
        rule: PositionRule,
        *,
        passes: int | None = 1,
        seed: int | None = 0,
        before_read: Callable[[], None] | None = None,
        **shuffled: Any,
    ):
        self.sides = len(sides_of(hook))
        super().__init__(d_submodule=self.sides * stored.width(hook), **shuffled)
        self.stored, self.hook = stored, hook
        self._rule, self._passes, self._seed = rule, passes, seed
        self._before_read = before_read
        first = stored.parts["train"][0]
        self.dtype = read_contexts(first._replace(stop=first.start + 1), hook, rule).x_BLD.dtype
        self._next = _Next(0, 0, 0)
        self._pass: tuple[int, list[Part]] | None = None  # the number and the pieces of a pass

    @property
    def passes(self) -> int:
        """See `BatchSource`."""
        return self._next.number

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        is_cache = self.stored.manifest is not None
        return {
            "d_submodule": self.d_submodule,
            "rows": self.activation_buffer_size,
            "out_batch_size": self.out_batch_size,
            "hook": self.hook,
            "cache": self.stored.digest,
            **({"files": len(self.stored.parts["train"])} if is_cache else {}),
            "ctx_len": self.stored.ctx_len,
            **self._rule.settings,
            "seed": self._seed,
            "device": str(self.device),
            "activations": self.stored.place,
            "text": self.stored.settings["data"],
        }

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """See `ShuffledRows`. Yields after each read."""
        filled = 0
        for piece in self._pieces():
            if self._before_read is not None:
                self._before_read()
            batch = read_contexts(piece, self.hook, self._rule)
            is_whole = batch.wanted_BL.all()
            rows_ND = batch.x_BLD.flatten(0, 1) if is_whole else batch.wanted_ND
            first = self._next.row
            taken = rows_ND[first : first + len(out_ND) - filled]
            out_ND[filled : filled + len(taken)] = taken
            filled += len(taken)
            if first + len(taken) < len(rows_ND):
                self._next = self._next._replace(row=first + len(taken))
            else:
                self._next = _Next(self._next.number, self._next.piece + 1, 0)
            yield filled
            if filled == len(out_ND):
                return

    def _pieces(self) -> Iterator[Part]:
        """The pieces from the next row on, in the order in which they are read. Starts the next pass at the end of each."""
        while self._passes is None or self._next.number < self._passes:
            if self._pass is None or self._pass[0] != self._next.number:
                self._pass = self._next.number, self._pieces_in(self._next.number)
            yield from self._pass[1][self._next.piece :]
            self._next = _Next(self._next.number + 1, 0, 0)

    def _pieces_in(self, number: int) -> list[Part]:
        """All pieces of a pass, in the order in which they are read."""
        parts = self.stored.parts["train"]
        files = list(dict.fromkeys(part.path for part in parts))
        if self._seed is not None:
            random.Random(drawn_seed(self._seed, "files", number)).shuffle(files)
        place = {file: n for n, file in enumerate(files)}
        parts = sorted(parts, key=lambda part: place[part.path])
        return pieces_of(parts, self.stored.ctx_len)

    def random_order(self, n: int) -> Tensor:
        """See `ShuffledRows`. Each fill has a generator of its own."""
        if self._seed is None:
            return torch.arange(n, dtype=torch.int32)
        generator = torch.Generator().manual_seed(drawn_seed(self._seed, "rows", self.fills))
        return torch.randperm(n, generator=generator, dtype=torch.int32)

    def row_state(self) -> dict[str, Any]:
        """See `ShuffledRows`."""
        return {"place": self._next._asdict()}

    def load_row_state(self, state: Mapping[str, Any]) -> None:
        """See `ShuffledRows`."""
        self._next = _Next(**state["place"])

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource`."""
        return super().state_dict() | {"config": self.config}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `ShuffledRows`. A cache may have grown since: only the files that were there then are read."""
        if self.stored.manifest is not None:
            self.stored, self._pass = self.stored.with_files(state["config"]["files"]), None
        if state["config"]["cache"] != self.stored.digest:
            raise ConfigError(
                "the run can't resume: since it was interrupted, the activations in"
                f" {self.stored.place} have changed",
                instead="restore them, or start again in another save_dir",
            )
        super().load_state_dict(state)

    def ended(self, found: int) -> TextError:
        """See `ShuffledRows`."""
        return TextError(
            f"the activations in {self.stored.place} ended after {self.tokens_seen} tokens: expected"
            f" {self.out_batch_size} for the next batch, found {found}",
            instead="use fewer steps or more text_passes",
        )
