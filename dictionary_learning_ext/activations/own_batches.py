"""Batches of activations from a caller's own iterator."""

from collections.abc import Iterator
from typing import Any

import torch as t

from ..errors import ActivationsError, NonFiniteError, TextError
from .batches import BatchSource
from .inputs import Inputs


def checked(batch: Any, number: int, width: int | None = None) -> t.Tensor:
    """A caller's batch.

    Arguments:
        number: how many came before it.
        width: D. None: any.

    Raises: ActivationsError unless it is a tensor of shape (B, D).
    """
    shape = tuple(batch.shape) if isinstance(batch, t.Tensor) else None
    if shape is None or len(shape) != 2 or not shape[0] or width not in (None, shape[1]):
        raise ActivationsError(
            f"batch {number} is {type(batch).__name__ if shape is None else f'of shape {shape}'}",
            expected=f"a tensor of shape (B, {'D' if width is None else width})",
        )
    return batch


class OwnBatches(Inputs):
    """A caller's batches as the data of a run. Nothing is held out, and there is no language model.

    Arguments:
        first: the first batch of raw activations, (B, D).
        others: the other batches.
        given, options: the arguments of `Inputs`.
    """

    can_resume = False
    no_language_model = "these activations don't say which language model they are of"

    def __init__(self, first: t.Tensor, others: Iterator[t.Tensor], *given: Any, **options: Any):
        self._first, self._others = first, others
        super().__init__(*given, **options)

    def _find(self, hooks: list[str]) -> None:
        self.widths = dict.fromkeys(hooks, self._first.shape[1])

    def hashes(self) -> dict[str, str]:
        return {"language_model": "", "tokenizer": ""}  # there is none

    def _source(self, hook: str) -> BatchSource:
        return _Source(self._first, self._others)


class _Source(BatchSource):
    """The caller's batches, as a `BatchSource`."""

    def __init__(self, first: t.Tensor, others: Iterator[t.Tensor]):
        self._first, self._others = first, others
        self.out_batch_size, self.d_submodule = first.shape
        self.tokens_seen = self._given = 0
        self._finite: list[t.Tensor] = []
        """Whether each batch since the last `require_finite` is finite."""

    def __next__(self) -> t.Tensor:
        batch_BD = next(self._others, None) if self._given else self._first
        if batch_BD is None:
            raise TextError(
                f"the batches ended after {self._given}", instead="give more, or lower steps"
            )
        batch_BD = checked(batch_BD, self._given, self.d_submodule)
        self._finite.append(batch_BD.isfinite().all())
        self._given += 1
        self.tokens_seen += len(batch_BD)
        return batch_BD.clone()  # the loop divides it in place

    def require_finite(self) -> None:
        first = self._given - len(self._finite)
        for number, is_finite in enumerate(self._finite, first):
            if not is_finite:
                raise NonFiniteError(f"batch {number} has NaN or infinite activations")
        self._finite.clear()

    def first_rows(self) -> t.Tensor:
        return self._first
