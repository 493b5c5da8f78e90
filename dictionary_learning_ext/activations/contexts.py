"""Contexts of tokens with their activations at a hook point, side by side.

Shapes: B contexts, L = ctx_len tokens, D = activation_dim.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch as t
from einops import rearrange
from nnsight import LanguageModel

from ..config.run import RunConfig, Split
from ..errors import TextError
from .activation_reader import ActivationReader
from .hook_points import HookPoint
from .stored import FileReader, StoredActivations, cut, open_stored
from .text import open_text
from .tokens import ContextStream, TokenContexts
from .wanted_rows import ROWS_AT_ONCE, judged, rule_of

_CONTEXTS_AT_ONCE = 32


class ContextBatch(NamedTuple):
    """Some contexts."""

    input_ids_BL: t.Tensor
    """-1 at padding."""
    wanted_BL: t.Tensor
    """False at padding and at tokens that the run's training leaves out."""
    x_BLD: t.Tensor
    """Activations, float32."""


def read_contexts(
    run: RunConfig, model: LanguageModel, hook: HookPoint, split: Split, tokens: int
) -> Iterator[ContextBatch]:
    """The first `tokens` wanted tokens of a run's text, in the contexts that its training had.

    Arguments:
        run: its text, packing, and which tokens are left out.
        split: "heldout" or "train".
        tokens: wanted tokens in all. A text that ends earlier is read to its end.

    Raises: TextError if the text has no whole context; NonFiniteError if an activation is NaN or
        infinite.
    """
    if run.activations is not None:
        batches = _stored(run, open_stored(run.activations), hook.name, split)
    else:
        batches = _read(run, model, hook, split)
    n_read = 0
    for batch in first_tokens(batches, tokens):
        n_read += int(batch.wanted_BL.sum())
        yield batch
    if n_read == 0:
        raise TextError(
            f"the {split} text of {run.data!r} has no whole context of {run.ctx_len} tokens:"
            f" expected at least one; use a longer text or a smaller ctx_len"
        )


def first_tokens(batches: Iterator[ContextBatch], tokens: int) -> Iterator[ContextBatch]:
    """Batches until `tokens` tokens are wanted in all. Later ones of the last batch are not wanted."""
    left = tokens
    while left > 0 and (batch := next(batches, None)) is not None:
        number_N = rearrange(batch.wanted_BL, "b l -> (b l)").cumsum(0)
        number_BL = rearrange(number_N, "(b l) -> b l", l=batch.wanted_BL.shape[1])
        wanted_BL = batch.wanted_BL & (number_BL <= left)
        left -= int(wanted_BL.sum())
        yield batch._replace(wanted_BL=wanted_BL)


def _read(
    run: RunConfig, model: LanguageModel, hook: HookPoint, split: Split
) -> Iterator[ContextBatch]:
    """All contexts of a text."""
    seed = run.data_seed if split == "train" else 0
    text = open_text(run.data, split=split, seed=seed)
    stream = ContextStream(text, model.tokenizer, run.ctx_len, packing=run.text_packing)
    return with_activations(stream, run, model, hook)


def with_activations(
    stream: TokenContexts, run: RunConfig, model: LanguageModel, hook: HookPoint
) -> Iterator[ContextBatch]:
    """All contexts of a stream, with the activations that a language model has there.

    Arguments:
        run: which tokens are left out.

    Raises: NonFiniteError if an activation is NaN or infinite.
    """
    reader = ActivationReader(
        model,
        hook.submodule,
        hook.io,
        remove_bos=run.remove_bos,
        max_norm_multiple=run.max_norm_multiple,
    )
    while True:
        try:
            input_ids_BL, mask_BL = stream.next_batch(_CONTEXTS_AT_ONCE)
        except StopIteration:
            return
        read = reader.read(input_ids_BL, mask_BL, reader.rule.by_token(input_ids_BL, mask_BL))
        reader.require_finite(read.non_finite)
        ids_BL = input_ids_BL.masked_fill(mask_BL == 0, -1)
        yield ContextBatch(ids_BL, read.wanted_BL, read.x_BLD.float())


def _stored(
    run: RunConfig, stored: StoredActivations, hook: str, split: Split
) -> Iterator[ContextBatch]:
    """All contexts of stored activations."""
    rule = rule_of(stored, remove_bos=run.remove_bos, max_norm_multiple=run.max_norm_multiple)
    reader = FileReader(hook)
    for part in stored.parts(split):
        for piece in cut(part, max(1, ROWS_AT_ONCE // stored.ctx_len)):
            x_NLD, ids_NL, wanted_NL = judged(reader.read(piece), rule, piece, hook)
            yield ContextBatch(ids_NL, wanted_NL, x_NLD.float())
