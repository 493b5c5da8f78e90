"""The training batches of a run: what each hook point's source hands out, and all hook points in step.

Shapes: B rows in a batch, D = the width of a row.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor

from ..config.run import RunConfig
from ..config.sae import training_energy
from ..errors import ActivationsError
from ..run_folder.resume_points import Scale

logger = logging.getLogger(__name__)


class BatchSource(ABC):
    """Hands out batches of activations of one hook point. Reading can be resumed."""

    d_submodule: int
    """The width of a row: D, or 2D of a pair."""
    sides: int = 1
    """2 where a row has the activations of a pair of hook points, side by side."""
    out_batch_size: int
    """B."""
    tokens_seen: int
    """Rows handed out."""

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return {}

    @property
    def passes(self) -> int:
        """How many passes over the data are complete."""
        return 0

    @property
    def is_used_up(self) -> bool:
        """Whether the next batch needs another fill. False for a source without a buffer."""
        return False

    def refreshing(self) -> Iterator[None]:
        """Fill the buffer step by step. Yields after each batch of the language model, or each read."""
        return iter(())

    @abstractmethod
    def __next__(self) -> Tensor:
        """The next batch, (B, D), in memory of its own. Raises TextError if the data ends before it is full."""

    @abstractmethod
    def first_rows(self) -> Tensor:
        """The rows of the first fill, (N, D), which are still handed out afterwards. They aren't copied."""

    def require_finite(self) -> None:
        """Raise a NonFiniteError if a batch was handed out that is not finite. May wait for the device."""
        return  # by default, rows are checked before they are handed out

    def mean_squared_norms(self) -> list[float]:
        """E||x||^2 of the first rows, of each side."""
        rows = self.first_rows()
        return [
            sum(float(part.float().square().sum()) for part in side.split(1 << 14)) / len(rows)
            for side in rows.chunk(self.sides, dim=1)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as JSON can hold it."""
        raise NotImplementedError("see Inputs.can_resume")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a source with the same settings."""
        raise NotImplementedError("see Inputs.can_resume")


_MOST_PASSES = 100
"""More passes over the training data than this are warned of."""


def in_step(parts: Iterable[Iterator[object]]) -> None:
    """Exhaust iterators round-robin."""
    for _ in zip_longest(*parts):
        pass


class Batches:
    """The training batches of all hook points of a run, in the same token order.

    Sources that are used up are filled in step, so that they share each pass of the language model.

    Attributes:
        by_hook: the source of each hook point, by its name.
    """

    def __init__(self, settings: RunConfig, sources: Mapping[str, BatchSource]):
        self._settings, self.by_hook = settings, sources
        self._passes = 0  # passes over the data that are complete

    def next(self) -> dict[str, Tensor]:
        """The next batch of each hook point, (B, D)."""
        self._refill()
        return {name: next(source) for name, source in self.by_hook.items()}

    def _refill(self) -> None:
        """Fill the sources that are used up.

        No source has handed out its next batch yet. So if this is interrupted, all resume at the same batch.
        """
        while used_up := [source for source in self.by_hook.values() if source.is_used_up]:
            in_step(source.refreshing() for source in used_up)
            before, self._passes = self._passes, self._passes_done()
            if before == 0 < self._passes:
                self._warn_of_little_text()
            if self._passes > before and self._passes != self._settings.text_passes:
                logger.info("the training data is read again: pass %d", self._passes + 1)

    def _warn_of_little_text(self) -> None:
        """Warn, after the fill in which the data ended, if it will be read more than a hundred times."""
        source = max(self.by_hook.values(), key=lambda source: source.passes)
        tokens = (source.tokens_seen + len(source.first_rows())) / source.passes
        times = self._settings.steps * self._settings.batch_size / tokens
        if times > _MOST_PASSES:
            logger.warning(
                "the training data has about %s tokens, which are read %s times: an SAE will overfit. Give more text, or "
                "fewer steps.",
                *(f"{tokens:,.0f}", f"{times:,.0f}"),
            )

    def _passes_done(self) -> int:
        return max((source.passes for source in self.by_hook.values()), default=0)

    def mean_squared_norms(self) -> dict[str, list[float]]:
        """E||x||^2 of each hook point's first rows, of each side. Raises ActivationsError if they are all zero."""
        self._refill()
        found = {name: source.mean_squared_norms() for name, source in self.by_hook.items()}
        if zero := [name for name, squared in found.items() if 0 in squared]:
            raise ActivationsError(
                f"{zero[0]}: the first activations are all zero, which no SAE can learn",
                instead="check what wrote them, or read another hook point",
            )
        return found

    def scales(self) -> dict[str, Scale]:
        """The size of each hook point's activations, raw and in training. Raises: as `mean_squared_norms`."""
        normalize, found = self._settings.normalize, {}
        for name, squares in self.mean_squared_norms().items():
            source = self.by_hook[name]
            factors = [1.0] * source.sides
            if normalize != "none":
                energy = training_energy(normalize, source.d_submodule // source.sides)
                factors = [math.sqrt(squared / energy) for squared in squares]
            *input_factor, factor = factors
            found[name] = Scale(factor, squares[-1] / factor**2, *input_factor)
        return found

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Each hook point's `BatchSource.state_dict`."""
        return {name: source.state_dict() for name, source in self.by_hook.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Continue from each hook point's `state_dict`."""
        for name, state in states.items():
            self.by_hook[name].load_state_dict(state)
        self._passes = self._passes_done()

    def require_finite(self) -> None:
        """See `BatchSource`."""
        for source in self.by_hook.values():
            source.require_finite()

    def tokens_seen(self) -> set[int]:
        """How many rows each source has handed out: one number, except in the middle of `next`."""
        return {source.tokens_seen for source in self.by_hook.values()}
