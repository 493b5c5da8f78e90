"""A run's batches, out of one language model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nnsight import LanguageModel

from ..config.run import RunConfig
from .buffer import ResidualBuffer
from .held_out import HeldOut, held_out_text
from .hook_points import HookPoint, find_hook
from .language_models import settings_hash, weights_hash
from .run_inputs import load_model, make_buffer
from .shared_pass import SharedPass, in_step
from .sources import RunSources
from .text import open_text
from .tokens import WHOLE, Share, require_enough_text


class LanguageModelSources(RunSources):
    """The batches of every hook point of a run, out of one language model.

    The hook points share its forward passes. Each has its own buffer, so its batches are those of a
    run of its own.

    Arguments:
        run: its text, model and batch size.
        hooks: the names of the hook points.
        before_batch: called before each batch of the language model; it may raise.
        share: what this process reads, and how many share a batch.
    """

    def __init__(
        self,
        run: RunConfig,
        hooks: Iterable[str],
        before_batch: Callable[[], None] | None = None,
        share: Share = WHOLE,
    ):
        super().__init__(run, share)
        self._model: LanguageModel = load_model(run)
        self.hooks = {name: find_hook(self._model, name) for name in hooks}
        shared = SharedPass(self._model, [hook.place for hook in self.hooks.values()])
        self._buffers = {
            name: self._buffer(hook, before_batch, shared) for name, hook in self.hooks.items()
        }
        self.sources = dict(self._buffers)
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

    def load_state_dicts(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Continue where each hook point's `state_dict` was taken, in step."""
        in_step(self._buffers[name].loading(state) for name, state in states.items())

    def _refill(self) -> None:
        """Fill the buffers that are used up, in step."""
        in_step(one.refreshing() for one in self._buffers.values() if one.is_used_up)

    def held_out(self, hook: str) -> HeldOut:
        """What the SAEs of a hook point are measured on."""
        return held_out_text(self._run, self._model, self.hooks[hook], self._run.eval_tokens)
