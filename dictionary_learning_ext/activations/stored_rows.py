"""Rows of activations from files: a buffer shuffles `StoredRows`, and reports read contexts by `StoredReader`.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the width of a row.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, NonFiniteError, TextError
from .positions import PositionRule, at, norms
from .rows import ContextBatch, drawn_seed
from .stored import FileReader, Part, StoredActivations

ROWS_AT_ONCE = 4096
"""About how many rows are read together. `PositionRule` compares each norm with their median."""


class StoredReader:
    """Reads a hook point's stored activations, and leaves out the tokens that a rule excludes."""

    def __init__(self, stored: StoredActivations, hook: str, rule: PositionRule):
        self.rule = rule
        self._hook = hook
        self._contexts = max(1, ROWS_AT_ONCE // stored.ctx_len)
        self._files = FileReader(hook)

    def cut(self, part: Part) -> Iterator[Part]:
        """Cut a file into the parts that are read at once."""
        for start in range(part.start, part.stop, self._contexts):
            yield part._replace(start=start, stop=min(start + self._contexts, part.stop))

    def read(self, part: Part) -> ContextBatch:
        """A copy of a part of a file, in the file's dtype.

        Raises: NonFiniteError if an activation is NaN or infinite and its token isn't left out;
            ActivationsError if the file is damaged.
        """
        piece = self._files.read(part)
        x_BLD = activations_of(piece.x_NLD)
        if piece.ids_NL is None:
            ids_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.int64)
        else:
            ids_BL = torch.from_numpy(np.array(piece.ids_NL, dtype=np.int64))
        wanted_BL = self.rule.by_token(ids_BL, ids_BL >= 0)
        norms_BL = norms(x_BLD)
        if number := int((~at(norms_BL, wanted_BL).isfinite()).sum()):
            is_own = piece.ids_NL is None
            raise NonFiniteError(
                f"{part.path}: {number} activations are NaN or infinite",
                expected="finite numbers",
                instead="remove their rows"
                if is_own
                else "cache them again with lm_dtype='float32'",
            )
        kept_BL = self.rule.by_norm(norms_BL, wanted_BL)
        return ContextBatch(ids_BL, kept_BL, x_BLD, wanted_BL & ~kept_BL)


def activations_of(x_NLD: np.ndarray) -> Tensor:
    """A copy of a `Piece`'s activations, in the file's dtype."""
    copy = torch.from_numpy(np.array(x_NLD))
    return copy.view(torch.bfloat16) if copy.dtype == torch.uint16 else copy


class _Next(NamedTuple):
    """The position of the next row."""

    number: int
    """The number of the pass, from 0."""
    piece: int
    """How many pieces of this pass have been used."""
    row: int
    """How many rows of the next piece have been used, not counting those that are left out."""


class StoredRows:
    """One hook point's stored activations, as a `RowStream`. Every row is read once per pass.

    Files are read whole, in a random order. A fill continues where the last one ended, even inside a file.
    The order of the files and of the rows follows from the seed and the numbers of the pass and the fill.

    Arguments:
        rule: which tokens are left out. The median norm is that of about 4,096 rows.
        passes: how often the folder is read. None: without end.
        seed: seeds the random orders. None: rows keep their order.
        before_read: called before each read of about 4,096 rows. It may raise.

    Raises: ActivationsError if the folder lacks the hook.
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
    ):
        self.stored, self.hook = stored, hook
        self.width = stored.hook(hook).width
        self.origin: dict[str, Any] = {
            "activations": stored.place,
            "text": stored.settings["data"],
        }
        self._reader = StoredReader(stored, hook, rule)
        self._passes, self._seed = passes, seed
        self._before_read = before_read
        self._next = _Next(0, 0, 0)
        self._pieces: tuple[int, list[Part]] | None = None  # the number of a pass, and its pieces

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the files."""
        first = self.stored.parts["train"][0]
        return self._reader.read(first._replace(stop=first.start + 1)).x_BLD.dtype

    @property
    def passes(self) -> int:
        return self._next.number

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """See `RowStream`. Yields after each read."""
        filled = 0
        while filled < len(out_ND) and (piece := self._next_piece()) is not None:
            if self._before_read is not None:
                self._before_read()
            batch = self._reader.read(piece)
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

    def _next_piece(self) -> Part | None:
        """The piece that holds the next row, which may be the first of the next pass; None at the end."""
        while self._passes is None or self._next.number < self._passes:
            if self._pieces is None or self._pieces[0] != self._next.number:
                self._pieces = self._next.number, self._pieces_of(self._next.number)
            if self._next.piece < len(self._pieces[1]):
                return self._pieces[1][self._next.piece]
            self._next = _Next(self._next.number + 1, 0, 0)
        return None

    def _pieces_of(self, number: int) -> list[Part]:
        """The pieces of a pass, in the order in which they are read."""
        parts = list(self.stored.parts["train"])
        if self._seed is not None:
            random.Random(drawn_seed(self._seed, "files", number)).shuffle(parts)
        return [piece for part in parts for piece in self._reader.cut(part)]

    def order(self, n: int, fill: int) -> Tensor:
        """See `RowStream`. Each fill has a generator of its own."""
        if self._seed is None:
            return torch.arange(n, dtype=torch.int32)
        generator = torch.Generator().manual_seed(drawn_seed(self._seed, "rows", fill))
        return torch.randperm(n, generator=generator, dtype=torch.int32)

    def position(self) -> dict[str, Any]:
        return {"place": self._next._asdict()}

    def seek(self, position: Mapping[str, Any]) -> None:
        self._next = _Next(**position["place"])

    def restrict_to(self, settings: Mapping[str, Any]) -> None:
        """See `RowStream`. A cache may have grown since.

        Raises: ConfigError if the activations that it had then have changed.
        """
        if self.stored.manifest is not None:
            self.stored, self._pieces = self.stored.with_files(settings["files"]), None
        if settings["cache"] != self.stored.digest:
            raise ConfigError(
                "the run can't resume: since it was interrupted, the activations in"
                f" {self.stored.place} have changed",
                instead="restore them, or start again in another save_dir",
            )

    def settings(self) -> dict[str, Any]:
        is_cache = self.stored.manifest is not None
        return {
            "hook": self.hook,
            "cache": self.stored.digest,
            **({"files": len(self.stored.parts["train"])} if is_cache else {}),
            "ctx_len": self.stored.ctx_len,
            "remove_bos": self._reader.rule.skip_token_id is not None,
            "max_norm_multiple": self._reader.rule.max_norm_multiple,
            "seed": self._seed,
        }

    def ended(self, needed: int, found: int, given: int) -> TextError:
        return TextError(
            f"the activations in {self.stored.place} ended after {given} tokens: expected"
            f" {needed} for the next batch, found {found}",
            instead="use fewer steps or more text_passes",
        )
