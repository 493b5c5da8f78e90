"""A run's batches, out of stored activations."""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from nnsight import LanguageModel

from ..config.run import RunConfig
from ..errors import LanguageModelError, Setting, TextError, listed
from .cached_source import CachedSource
from .held_out import HeldOut, held_out_stored, require_held_out
from .hook_points import HookPoint
from .language_models import settings_hash, weights_hash
from .run_inputs import load_model
from .sources import RunSources
from .stored import UNKNOWN, StoredActivations, open_stored
from .tokens import SPARE, WHOLE, Share

logger = logging.getLogger(__name__)


class CachedSources(RunSources):
    """The batches of every hook point of a run, out of stored activations.

    The language model is loaded only if its loss will be measured, by rank 0. Arguments are
    `open_sources`'s.

    Raises: a UserError if the activations are not of the run's model, text and hook points.
    """

    def __init__(
        self,
        run: RunConfig,
        hooks: Iterable[str],
        before_batch: Callable[[], None] | None = None,
        share: Share = WHOLE,
    ):
        assert run.activations is not None
        super().__init__(run, share)
        self._stored = stored = open_stored(run.activations)
        hooks = list(hooks)
        stored.require_fit(run, hooks)
        evaluates = run.eval_tokens and share.rank == 0
        self._loss_model = cached_model(run, stored) if evaluates else None
        self.hooks = {name: stored_hook_point(stored, name) for name in hooks}
        self._cached = {
            name: CachedSource(
                stored,
                name,
                rows=run.n_ctxs * run.ctx_len,
                out_batch_size=run.batch_size // share.count,
                device=run.device,
                remove_bos=run.remove_bos,
                max_norm_multiple=run.max_norm_multiple,
                passes=run.text_passes,
                seed=run.data_seed,
                share=share,
                before_read=before_batch,
            )
            for name in self.hooks
        }
        self.sources = dict(self._cached)
        manifest = stored.manifest
        self.inputs = {
            "language_model": manifest.settings.language_model if manifest else UNKNOWN,
            "tokenizer": manifest.settings.tokenizer if manifest else UNKNOWN,
        }

    def require_enough(self) -> None:
        """Raise a TextError if there are too few tokens for the run, or warn that there may be.

        How many are left out isn't known before they are read.
        """
        run, stored, count = self._run, self._stored, self._share.count
        require_held_out(run, stored)
        contexts = sum(part.stop - part.start for part in stored.parts("train"))
        # No process may be one context short.
        there = int(stored.tokens["train"] * (contexts - contexts % count) / contexts)
        need = run.steps * run.batch_size
        leaves_out = run.remove_bos or run.max_norm_multiple is not None
        spare = SPARE if leaves_out else 1
        safe = math.ceil(spare * need)
        if (found := run.text_passes * there) >= need:
            if found < safe:
                logger.warning(
                    "the activations in %s have %s tokens, %s of which are trained on, and some are"
                    " left out: the run may end before its last step; use --text-passes %d",
                    stored.folder,
                    f"{found:,}",
                    f"{need:,}",
                    run.text_passes + 1,
                )
            return
        steps = int(found / spare) // run.batch_size
        ways = [Setting("text_passes", math.ceil(safe / there))] if there else []
        ways += [Setting("steps", steps)] if steps else []
        times = f" in {run.text_passes} passes" if run.text_passes > 1 else ""
        raise TextError(
            f"the activations in {stored.folder} have {found:,} tokens{times}: expected {need:,} for"
            f" {run.steps:,} steps of {run.batch_size:,}",
            instead=("use ", *listed(ways)) if ways else f"cache at least {safe:,} tokens",
        )

    def held_out(self, hook: str) -> HeldOut:
        """What the SAEs of a hook point are measured on."""
        tokens = self._run.eval_tokens
        return held_out_stored(self._run, self._stored, hook, tokens, self._loss_model)

    def _refill(self) -> None:
        """See `RunSources`."""
        for source in self._cached.values():
            if source.is_used_up:
                source.refresh()


def cached_model(run: RunConfig, stored: StoredActivations) -> LanguageModel | None:
    """The language model of a cache, in the dtype in which it was cached; None if that isn't known.

    Raises: LanguageModelError if the run's is another one.
    """
    if (manifest := stored.manifest) is None:
        return None
    dtype: Any = manifest.settings.lm_dtype
    model = load_model(replace(run, dtype=dtype))
    settings = manifest.settings
    for what, was, now in (
        ("weights", settings.language_model, weights_hash(model)),
        ("tokenizer or config", settings.tokenizer, settings_hash(model)),
    ):
        if was != now:
            raise LanguageModelError(
                f"the cache {stored.folder} is of another language model than {run.model!r}: the"
                f" SHA-256 of its {what} is {was[:12]}, not {now[:12]}",
                instead=("give the ", Setting("model"), " that was cached"),
            )
    return model


def stored_hook_point(stored: StoredActivations, name: str) -> HookPoint:
    """A hook point of stored activations, without a language model's submodule.

    Raises: ActivationsError if it isn't there.
    """
    hook = stored.hook(name)
    return HookPoint(name, hook.layer, "out", None, hook.width)
