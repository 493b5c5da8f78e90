"""Batches of activations that are read from disk.

A fill reads whole files in a random order into one preallocated tensor. The rows are then handed out
in a random order, each once. The next fill continues where it ended, inside a file if need be. Both
orders follow from the seed and from numbers that are counted, so a few integers say where to resume.

Shapes: N contexts, L = ctx_len tokens, D = the width of a row.
"""

import hashlib
import logging
import random
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..config.run import Split
from ..errors import ConfigError, Setting, TextError
from .outliers import NormRecord, Outliers
from .resumed_settings import require_same_settings
from .stored import FileReader, Part, Piece, StoredActivations, cut
from .tokens import WHOLE, Share
from .wanted_rows import ROWS_AT_ONCE, judged, rule_of

_log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Of the next row."""

    number: int
    """Of the pass."""
    piece: int
    """Pieces read in this pass."""
    row: int
    """Wanted rows used of the next piece."""


class CachedSource:
    """Endless batches of one hook point's stored activations, (out_batch_size, D), in float32.

    A batch is a fresh tensor, which its receiver may change. Every row is read once per pass.
    Iteration raises TextError when there are too few rows left for another batch.

    Arguments:
        stored: the folder.
        hook: the hook point's name.
        split: "train" or "heldout".
        rows: rows that are shuffled together, rounded down to whole batches.
        out_batch_size: rows in a batch.
        device: where the rows are kept.
        remove_bos, max_norm_multiple: which tokens are left out, see `PositionRule`. The median is
            over about 4,096 rows.
        passes: how often the folder is read.
        seed: seeds the order of the files and rows. None: they are read as they lie.
        share: which of the contexts it takes, as they are counted in a pass.
        before_read: called before each read of about 4,096 rows. It may raise.

    Attributes:
        d_submodule: D.
        tokens_seen: rows handed out.
        dropped_tokens: rows left out because of `max_norm_multiple`.

    Raises: ConfigError if a setting is out of range; ActivationsError if the folder lacks the hook.
    """

    def __init__(
        self,
        stored: StoredActivations,
        hook: str,
        *,
        split: Split = "train",
        rows: int,
        out_batch_size: int,
        device: str = "cpu",
        remove_bos: bool = False,
        max_norm_multiple: float | None = None,
        passes: int = 1,
        seed: int | None = 0,
        share: Share = WHOLE,
        before_read: Callable[[], None] | None = None,
    ):
        if rows < out_batch_size:
            raise ConfigError(
                f"a buffer of {rows} rows is smaller than a batch",
                expected=f"at least {out_batch_size}",
                instead=("use more ", Setting("n_ctxs")),
            )
        self.stored, self.hook_name = stored, hook
        self.split: Split = split
        self.d_submodule = stored.hook(hook).width
        self.out_batch_size, self.device = out_batch_size, device
        self.tokens_seen = self.dropped_tokens = 0
        self._rule = rule_of(stored, remove_bos=remove_bos, max_norm_multiple=max_norm_multiple)
        self._remove_bos = remove_bos
        self._passes, self._seed, self._share = passes, seed, share
        self._before_read = before_read
        self._reader = FileReader(hook)
        self._rows = rows // out_batch_size * out_batch_size
        self._buffer: Tensor | None = None
        self._order = torch.empty(0, dtype=torch.int32)
        self._given = 0
        self._place = _Place(0, 0, 0)
        # a pass's number, its pieces, and how many of its contexts come before each
        self._pieces: tuple[int, list[Part], list[int]] | None = None
        self._fills = 0
        self._fill_start: dict[str, Any] | None = None
        self._outliers: Outliers | None = None

    def __iter__(self) -> "CachedSource":
        return self

    def __next__(self) -> Tensor:
        """The next batch, (out_batch_size, D), float32.

        Raises:
            TextError: too few rows are left.
            NonFiniteError: an activation is NaN or infinite.
            ActivationsError: a file is damaged.
        """
        if self.is_used_up:
            self.refresh()
        rows = self._order[self._given : self._given + self.out_batch_size]
        self._given += self.out_batch_size
        self.tokens_seen += self.out_batch_size
        assert self._buffer is not None
        batch = self._buffer.index_select(0, rows)
        return batch.float()

    @property
    def is_used_up(self) -> bool:
        """Whether the next batch needs another fill."""
        return self._given + self.out_batch_size > len(self._order)

    def mean_squared_norm(self) -> float:
        """E||x||^2 over the rows of the current fill. Fills first if there is none; hands out none."""
        if len(self._order) == 0:
            self.refresh()
        assert self._buffer is not None
        parts = self._buffer[: len(self._order)].split(1 << 14)
        return sum(float(part.float().square().sum()) for part in parts) / len(self._order)

    def outliers(self) -> Outliers | None:
        """The tokens of the first fill whose norms are far above the median, if there are any.

        None with `max_norm_multiple`, or if the folder has no tokens.
        """
        if not self._fills:
            self.refresh()
        return self._outliers

    @property
    def config(self) -> dict[str, Any]:
        """The settings, fit for JSON."""
        return {
            **self._settings(),
            "device": str(self.device),
            "activations": str(self.stored.folder),
            "text": self.stored.settings["data"],
        }

    def _settings(self) -> dict[str, Any]:
        """The settings that decide what the batches hold."""
        return {
            "d_submodule": self.d_submodule,
            "hook": self.hook_name,
            "cache": self.stored.digest,
            "ctx_len": self.stored.ctx_len,
            "rows": self._rows,
            "out_batch_size": self.out_batch_size,
            "remove_bos": self._remove_bos,
            "max_norm_multiple": self._rule.max_norm_multiple,
            "seed": self._seed,
            "share": list(self._share),
        }

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue with the same batches, fit for JSON."""
        return {
            "fill": self._fill_start or self._position(),
            "batches": self._given // self.out_batch_size,
            "tokens_seen": self.tokens_seen,
            "config": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: fill again and skip the batches handed out since.

        Of a cache that has grown, only what it held then is read.

        Raises: ConfigError if it is of other settings, or the folder has changed.
        """
        former = self.stored.as_of(state["config"].get("cache"))
        if former is None:
            raise ConfigError(
                f"the run can't resume: the activations in {self.stored.folder} have changed;"
                " restore them"
            )
        self.stored, self._pieces = former, None  # without what a cache has grown by
        require_same_settings(state["config"], self._settings())
        start = state["fill"]
        self._place = _Place(**start["place"])
        self._fills, self.dropped_tokens = start["fills"], start["dropped"]
        self._order, self._given, self._fill_start = self._order[:0], 0, None
        if state["batches"]:
            self.refresh()
            self._given = state["batches"] * self.out_batch_size
        self.tokens_seen = state["tokens_seen"]

    def _position(self) -> dict[str, Any]:
        """Everything that the next fill depends on."""
        return {
            "place": self._place._asdict(),
            "fills": self._fills,
            "dropped": self.dropped_tokens,
        }

    def refresh(self) -> None:
        """Read the next rows, and draw an order. Raises what `__next__` raises."""
        self._fill_start = self._position()
        left = len(self._order) - self._given  # not 0 only if the files ended in the last fill
        self._order, self._given = self._order[:0], 0  # so state_dict() holds if the fill fails
        self._fills += 1
        has_record = self._fills == 1 and self._rule.max_norm_multiple is None
        record = NormRecord() if has_record and self._has_tokens else None
        filled = 0
        while filled < self._rows and (piece := self._piece()) is not None:
            if self._before_read is not None:
                self._before_read()
            rows_ND = self._wanted_rows(piece, record)
            first = self._place.row
            taken = rows_ND[first : first + self._rows - filled]
            if self._buffer is None:
                shape = (self._rows, self.d_submodule)
                self._buffer = torch.empty(shape, dtype=rows_ND.dtype, device=self.device)
            self._buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            if first + len(taken) < len(rows_ND):
                self._place = self._place._replace(row=first + len(taken))
            else:
                self._place = _Place(self._place.number, self._place.piece + 1, 0)
        if record is not None:
            self._outliers = record.outliers(_TokenNumbers())
        if filled < self.out_batch_size:
            raise self._too_short(left + filled)
        order = torch.arange(filled, dtype=torch.int32)
        if self._seed is not None:
            if filled < self._rows:
                _log.warning(
                    "the activations in %s ended: the last %d were shuffled on their own, expected %d",
                    self.stored.folder,
                    filled,
                    self._rows,
                )
            generator = torch.Generator().manual_seed(_drawn(self._seed, "rows", self._fills))
            order = torch.randperm(filled, generator=generator, dtype=torch.int32)
        self._order = order.to(self.device)

    def _piece(self) -> Part | None:
        """The piece at this place, or at the start of the next pass; None at the end."""
        while self._place.number < self._passes:
            number = self._place.number
            if self._pieces is None or self._pieces[0] != number:
                pieces = self._in_order(number)
                sizes = [piece.stop - piece.start for piece in pieces]
                self._pieces = number, pieces, list(accumulate(sizes, initial=0))
            if self._place.piece < len(self._pieces[1]):
                return self._pieces[1][self._place.piece]
            if not self._pieces[1]:
                return None
            self._place = _Place(number + 1, 0, 0)
        return None

    def _in_order(self, number: int) -> list[Part]:
        """The pieces of a pass, in the order in which they are read."""
        parts = list(self.stored.parts(self.split))
        if self._seed is not None:
            random.Random(_drawn(self._seed, "files", number)).shuffle(parts)
        contexts = max(1, ROWS_AT_ONCE // self.stored.ctx_len)
        return [piece for part in parts for piece in cut(part, contexts)]

    def _wanted_rows(self, part: Part, record: NormRecord | None) -> Tensor:
        """The rows of a piece that aren't left out, (n, D), in the dtype of the disk."""
        piece = self._reader.read(part)
        if self._share != WHOLE:
            assert self._pieces is not None
            rank, count = self._share
            mine = slice((rank - self._pieces[2][self._place.piece]) % count, None, count)
            ids_NL = piece.ids_NL
            piece = Piece(piece.x_NLD[mine], None if ids_NL is None else ids_NL[mine])
        x_NLD, ids_NL, wanted_NL = judged(piece, self._rule, part, self.hook_name)
        place = rearrange(wanted_NL, "n l -> (n l)").nonzero().squeeze(1)
        rows_ND = rearrange(x_NLD, "n l d -> (n l) d")
        if len(place) < len(rows_ND):
            rows_ND = rows_ND[place]
        if self._place.row == 0:
            by_token = self._rule.by_token(ids_NL, ids_NL >= 0)
            self.dropped_tokens += int(by_token.sum()) - len(rows_ND)
        if record is not None:
            ids = rearrange(ids_NL, "n l -> (n l)")
            record.add(rows_ND, ids[place], place % self.stored.ctx_len)
        return rows_ND

    @property
    def _has_tokens(self) -> bool:
        return self.stored.kind != "own activations"

    def _too_short(self, found: int) -> TextError:
        part, advice = "", ("use fewer ", Setting("steps"), " or more ", Setting("text_passes"))
        if self.split == "heldout":
            part, advice = " held-out", ("use fewer ", Setting("eval_tokens"))
        return TextError(
            f"the{part} activations in {self.stored.folder} ended after {self.tokens_seen} tokens:"
            f" expected {self.out_batch_size} for the next batch, found {found}",
            instead=advice,
        )


class _TokenNumbers:
    """Stands for the tokenizer, which isn't loaded."""

    def decode(self, ids: list[int]) -> str:
        return f"number {ids[0]}"


def _drawn(seed: int, what: str, number: int) -> int:
    """The seed of one of a source's random orders."""
    digest = hashlib.sha256(f"{seed} {what} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
