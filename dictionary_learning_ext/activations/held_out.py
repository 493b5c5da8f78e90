"""What SAEs are measured on: held-out activations, and documents for the language model's loss.

They come out of the language model as it reads the held-out text, or from stored activations.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as t
from nnsight import LanguageModel

from ..config.run import RunConfig, evaluation_batch
from ..errors import ActivationsError, Setting
from .activation_reader import ActivationReader
from .buffer import ResidualBuffer
from .cache_manifest import CacheManifest
from .cached_source import CachedSource
from .hook_points import HookPoint, find_hook
from .run_inputs import held_out
from .stored import StoredActivations
from .tokens import ContextStream, TokenContexts

logger = logging.getLogger(__name__)


class Rows(Protocol):
    """Batches of activations."""

    out_batch_size: int

    def __next__(self) -> t.Tensor:
        """The next, (out_batch_size, D). Raises TextError at the end."""
        ...


class Truth(Protocol):
    """The true features of synthetic activations. T features, B rows."""

    vectors_TD: t.Tensor
    """Their directions."""
    firing_BT: t.Tensor
    """Their magnitudes in the batch handed out last, 0 where one doesn't fire."""


class HeldOut(NamedTuple):
    """What SAEs of one hook point are measured on."""

    rows: Rows
    reader: ActivationReader | None
    """At the hook point of a language model; None if its loss can't be measured."""
    documents: TokenContexts | None
    """What its loss is measured on."""
    no_loss: str = ""
    """Why not."""
    truth: Truth | None = None
    """What is known of the rows; of a synthetic model's only."""

    @classmethod
    def of_text(cls, buffer: ResidualBuffer, documents: Sequence[str]) -> "HeldOut":
        """Of a buffer on held-out text, and documents of it, which are cut to its ctx_len."""
        tokenizer: Any = buffer.model.tokenizer
        contexts = ContextStream(iter(documents), tokenizer, buffer.ctx_len, packing="truncate")
        return cls(buffer, buffer.reader, contexts)


def held_out_text(run: RunConfig, model: LanguageModel, hook: HookPoint, tokens: int) -> HeldOut:
    """Of a run's held-out text, for `tokens` tokens."""
    return HeldOut.of_text(*held_out(run, model, hook, tokens))


def held_out_stored(
    run: RunConfig,
    stored: StoredActivations,
    hook: str,
    tokens: int,
    model: LanguageModel | None,
) -> HeldOut:
    """Of stored activations, for `tokens` tokens.

    Arguments:
        model: what `cached_run.cached_model` returns.
    """
    batch = evaluation_batch(tokens)
    rows = CachedSource(
        stored,
        hook,
        split="heldout",
        rows=max(batch, 64 * run.ctx_len),
        out_batch_size=batch,
        device=run.device,
        remove_bos=run.remove_bos,
        max_norm_multiple=run.max_norm_multiple,
        seed=None,
    )
    if model is None or stored.manifest is None:
        reason = f"{stored.folder} doesn't say which language model its activations are of"
        return HeldOut(rows, None, None, reason)
    point = find_hook(model, hook)
    reader = ActivationReader(
        model,
        point.submodule,
        point.io,
        remove_bos=run.remove_bos,
        max_norm_multiple=run.max_norm_multiple,
    )
    return HeldOut(rows, reader, CachedDocuments(stored, run.eval_documents))


def require_held_out(run: RunConfig, stored: StoredActivations) -> None:
    """Raise an ActivationsError if a run can't be evaluated on stored activations."""
    batch, there = evaluation_batch(run.eval_tokens), stored.tokens["heldout"]
    if run.eval_tokens and there < batch:
        raise ActivationsError(
            f"{stored.folder} has {there:,} held-out tokens",
            expected=f"at least {batch:,} to evaluate on",
            instead=("use ", Setting("eval_tokens", 0)),
        )


class CachedDocuments:
    """The first held-out documents of a cache, as tokens.

    Arguments:
        number: of documents. If there are fewer, that is logged.
    """

    def __init__(self, stored: StoredActivations, number: int):
        manifest: CacheManifest | None = stored.manifest
        assert manifest is not None
        ids_NL = np.zeros((0, 1), dtype=np.int32)
        if manifest.documents is not None:
            ids_NL = np.load(stored.folder / manifest.documents.name, allow_pickle=False)
        if len(ids_NL) < number:
            logger.warning(
                "%s has %d held-out documents: the language model's loss is measured on these, not on"
                " %d",
                stored.folder,
                len(ids_NL),
                number,
            )
        self._ids_NL = t.from_numpy(ids_NL[:number].astype(np.int64))
        self._next = 0

    def next_batch(self, n: int) -> tuple[t.Tensor, t.Tensor]:
        """Ids (0 at padding) and mask, both int64, (n, L). Raises StopIteration at the end."""
        ids_BL = self._ids_NL[self._next : self._next + n]
        if not len(ids_BL):
            raise StopIteration
        self._next += len(ids_BL)
        return ids_BL.clamp(min=0), (ids_BL >= 0).long()
