"""Where a run's batches come from: a source for each hook point, all in the same token order.

The training loop asks what `cached_run.open_sources` returns: a language model runs, a cache is
read, or a synthetic model draws.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch as t
from nnsight import LanguageModel

from ..config.run_config import RunConfig
from .buffer import ResidualBuffer
from .enough_text import require_enough_text
from .held_out import HeldOut, held_out_text
from .hook_points import HookPoint, find_hook
from .language_models import settings_hash, weights_hash
from .outliers import Outliers
from .run_inputs import load_model, make_buffer, norm_factor_of
from .shared_pass import SharedPass, in_step
from .text import open_text
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


class RunSources:
    """The batches of every hook point of a run, out of one language model.

    The hook points share its forward passes. Each has its own buffer, so its batches are those of a
    run of its own.

    Arguments:
        run: its text, model and batch size.
        hooks: the names of the hook points.
        before_batch: called before each batch of the language model; it may raise.
        share: what this process reads, and how many share a batch.

    Attributes:
        hooks: the hook points, by name.
        sources: their sources, by name.
        inputs: hashes of what the batches depend on, which must not change before a resume.
    """

    def __init__(
        self,
        run: RunConfig,
        hooks: Iterable[str],
        before_batch: Callable[[], None] | None = None,
        share: Share = WHOLE,
    ):
        self._run, self._share = run, share
        self._model: LanguageModel = load_model(run)
        self.hooks: dict[str, HookPoint] = {name: find_hook(self._model, name) for name in hooks}
        shared = SharedPass(self._model, [hook.place for hook in self.hooks.values()])
        self._buffers = {
            name: self._buffer(hook, before_batch, shared) for name, hook in self.hooks.items()
        }
        self.sources: dict[str, BatchSource] = dict(self._buffers)
        self.inputs = {
            "language_model": weights_hash(self._model),
            "tokenizer": settings_hash(self._model),
        }

    def _buffer(
        self, hook: HookPoint, before_batch: Callable[[], None] | None, shared: SharedPass
    ) -> ResidualBuffer:
        run = self._run
        text = open_text(run.data, seed=run.data_seed, passes=run.text_passes)
        return make_buffer(
            run,
            self._model,
            hook,
            text,
            run.batch_size // self._share.count,
            before_batch,
            seed=run.data_seed,
            share=self._share,
            shared=shared,
        )

    def require_enough(self) -> None:
        """Raise a TextError if there is too little text for the run."""
        require_enough_text(self._run, self._model.tokenizer, self._share.count)

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
        in_step(self._buffers[name].loading(state) for name, state in states.items())

    def _refill(self) -> None:
        """Fill the buffers that are used up, in step."""
        in_step(one.refreshing() for one in self._buffers.values() if one.is_used_up)

    def tokens_seen(self) -> set[int]:
        """How many rows the sources have handed out: one number, except in the middle of `next`."""
        return {source.tokens_seen for source in self.sources.values()}

    def held_out(self, hook: str) -> HeldOut:
        """What the SAEs of a hook point are measured on."""
        return held_out_text(self._run, self._model, self.hooks[hook], self._run.eval_tokens)
