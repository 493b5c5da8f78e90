"""What a run's batches come from: a source for each hook point, all in the same token order.

`run_sources.open_sources` makes them: a language model runs, a cache is read, or a synthetic model draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch as t

from ..config.run import RunConfig
from .held_out import HeldOut
from .hook_points import HookPoint
from .outliers import Outliers
from .run_inputs import norm_factor_of
from .tokens import WHOLE, Share


class BatchSource(Protocol):
    """Endless batches of one hook point's activations."""

    d_submodule: int
    """the width of a row"""
    tokens_seen: int
    """rows handed out"""

    @property
    def config(self) -> dict[str, Any]:
        """The settings, fit for JSON."""
        ...

    def __next__(self) -> t.Tensor:
        """The next batch, (B, D): a fresh tensor. Raises TextError when no whole batch is left."""
        ...

    def mean_squared_norm(self) -> float:
        """E||x||^2 of the first rows. Hands out none."""
        ...

    def outliers(self) -> Outliers | None:
        """The tokens whose norms are far above the median, if there are any."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue with the same batches, fit for JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        ...


class RunSources(ABC):
    """The batches of every hook point of a run: what the training loop asks for.

    A subclass sets the attributes, and defines `require_enough`, `held_out` and `_refill`.

    Attributes:
        hooks: the hook points, by name.
        sources: their sources, by name.
        inputs: hashes of what the batches depend on, which must not change before a resume.
    """

    hooks: dict[str, HookPoint]
    sources: Mapping[str, BatchSource]
    inputs: dict[str, str]

    def __init__(self, run: RunConfig, share: Share = WHOLE):
        self._run, self._share = run, share

    @abstractmethod
    def require_enough(self) -> None:
        """Raise a TextError if there is too little to train on."""

    @abstractmethod
    def held_out(self, hook: str) -> HeldOut:
        """What the SAEs of a hook point are measured on."""

    @abstractmethod
    def _refill(self) -> None:
        """Fill the sources that are used up.

        None has handed out its next batch yet. So if this is interrupted, all continue at one place.
        """

    def mean_squared_norms(self) -> dict[str, float]:
        """E||x||^2 of each hook point's first rows, of this process's share."""
        self._refill()
        return {name: source.mean_squared_norm() for name, source in self.sources.items()}

    def norm_factors(
        self, mean_squared_norms: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """What each hook point's raw activations are divided by.

        Arguments:
            mean_squared_norms: of all processes that share the run (default: of this one).
        """
        return {
            name: norm_factor_of(self._run, name, self.sources[name].d_submodule, squared)
            for name, squared in (mean_squared_norms or self.mean_squared_norms()).items()
        }

    def next(self) -> dict[str, t.Tensor]:
        """The next batch of each hook point."""
        self._refill()
        return {name: next(source) for name, source in self.sources.items()}

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        """What each hook point's source needs to continue with the same batches, fit for JSON."""
        return {name: source.state_dict() for name, source in self.sources.items()}

    def load_state_dicts(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Continue where each hook point's `state_dict` was taken."""
        for name, state in states.items():
            self.sources[name].load_state_dict(state)

    def tokens_seen(self) -> set[int]:
        """How many rows the sources have handed out: one number, except in the middle of `next`."""
        return {source.tokens_seen for source in self.sources.values()}
