"""Shuffled batches of a hook point's rows.

A fill writes rows into one preallocated tensor: one row per token, each token once, in reading order. They are then
handed out in a random order, each once. The next fill writes into the same memory. It holds a whole number of batches,
so no row is lost between fills. `state_dict` holds where the last fill started in the data, and how many batches were
handed out since. A resumed buffer repeats that fill and skips those batches, so it continues bit for bit.

Shapes: N rows, D = the width of a row.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, NonFiniteError, TextError
from .batches import BatchSource, in_step


class ShuffledRows(BatchSource):
    """Shuffled batches of rows. A subclass says where they are read and in which random order they are handed out.

    Arguments:
        size: the number of rows that are shuffled together, rounded down to whole batches.
        out_batch_size: rows in a batch.
        d_submodule: D.
        device: where the rows are kept.

    Attributes:
        fills: how often the buffer was filled.

    Raises: ConfigError if the size is below a batch.
    """

    dtype: torch.dtype
    """The dtype of the rows."""

    def __init__(self, size: int, out_batch_size: int, d_submodule: int, device: str = "cpu"):
        if size < out_batch_size:
            raise ConfigError(
                f"a buffer of {size} rows is smaller than a batch",
                expected=f"at least {out_batch_size}",
                instead="use more n_ctxs",
            )
        self.d_submodule = d_submodule
        self.out_batch_size = out_batch_size
        self.device = device
        self.activation_buffer_size = size // out_batch_size * out_batch_size
        self.tokens_seen = 0
        self.fills = 0
        self._order = torch.empty(0, dtype=torch.int32)  # row numbers, in the order of the batches
        self._given = 0  # rows of this fill that were handed out
        self._skipped = 0  # rows of the next fill that were handed out before a resume
        self._fill_start: dict[str, Any] | None = None

    @abstractmethod
    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """Write the next rows into a tensor.

        Yields the number of rows so far, after each batch of the language model, or each read. If the data ends,
        the last number is below N.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
            TextError, ActivationsError: a file can't be read.
        """

    @abstractmethod
    def random_order(self, n: int) -> Tensor:
        """The random order of this fill: the numbers from 0 to n - 1, int32."""

    @abstractmethod
    def row_state(self) -> dict[str, Any]:
        """The place of the next row and the state of the random orders, as JSON can hold them."""

    @abstractmethod
    def load_row_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `row_state`. Raises TextError if the text has changed."""

    @abstractmethod
    def ended(self, found: int) -> TextError:
        """The error for data that ended too early, with `found` rows left."""

    @cached_property
    def activations(self) -> Tensor:
        """The buffer's memory, (n, D). For inspection only."""
        shape = (self.activation_buffer_size, self.d_submodule)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The next batch, (out_batch_size, D).

        Raises:
            TextError: the text can't be read, or too few rows are left for another batch.
            NonFiniteError: an activation is NaN or infinite.
            ActivationsError: a file of activations is damaged.
        """
        while self.is_used_up:
            self.refresh()
        rows = self._order[self._given : self._given + self.out_batch_size]
        self._given += self.out_batch_size
        self.tokens_seen += self.out_batch_size
        return self.activations.index_select(0, rows)

    @property
    def is_used_up(self) -> bool:
        """Whether the next batch needs another fill."""
        return self._given + self.out_batch_size > len(self._order)

    def refresh(self) -> None:
        """Fill the buffer and draw a new order. Raises: as `__next__`."""
        in_step([self.refreshing()])

    def refreshing(self) -> Iterator[None]:
        """See `BatchSource`."""
        self._fill_start = self._start()
        left = len(self._order) - self._given  # not 0 only if the rows ended in the last fill
        self._order, self._given = self._order[:0], 0  # so state_dict() holds if the fill fails
        self.fills += 1
        filled = 0
        try:
            for n in self.fill(self.activations):
                filled = n
                yield
        except NonFiniteError as error:
            raise error.within(f"fill {self.fills} of the buffer failed") from error
        if filled < self.out_batch_size:
            raise self.ended(left + filled)
        self._order = self.random_order(filled).to(self.device)
        self._given, self._skipped = self._skipped, 0

    def first_rows(self) -> Tensor:
        """See `BatchSource`."""
        if len(self._order) == 0:
            self.refresh()
        return self.activations[: len(self._order)]

    def _start(self) -> dict[str, Any]:
        """The position from which the next fill can be repeated."""
        return {**self.row_state(), "fills": self.fills}

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource`."""
        return {
            "fill": self._fill_start or self._start(),
            "batches": (self._given + self._skipped) // self.out_batch_size,
            "tokens_seen": self.tokens_seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a buffer with the same settings.

        Raises: TextError or ConfigError if the text or the stored activations have changed since.
        """
        self._fill_start = dict(state["fill"])
        self.load_row_state(self._fill_start)
        self.fills = self._fill_start["fills"]
        self._order, self._given = self._order[:0], 0
        self._skipped = state["batches"] * self.out_batch_size
        self.tokens_seen = state["tokens_seen"]
