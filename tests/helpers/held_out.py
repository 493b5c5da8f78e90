"""Held-out tokens of some documents, as `Inputs.held_out` reads a run's."""

from collections.abc import Iterable, Sequence
from typing import Any

from dictionary_learning_ext.activations.hook_points import HookPoint
from dictionary_learning_ext.activations.inputs import (
    HeldOut,
    first_tokens,
    in_batches,
    with_activations,
)
from dictionary_learning_ext.activations.language_models import unwrapped
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.config.run import RunConfig


def held_out_of(
    lm: Any,
    hook: HookPoint,
    documents: Iterable[str],
    tokens: int,
    *,
    for_loss: Sequence[str],
    **settings: Any,
) -> HeldOut:
    """The first `tokens` tokens of documents, and documents to measure the loss on."""
    model, run = unwrapped(lm), RunConfig(**settings)
    stream = ContextStream(iter(documents), model.tokenizer, run.ctx_len, packing=run.text_packing)
    contexts = first_tokens(with_activations(stream.batches(), run, model, hook), tokens)
    rule = PositionRule(
        model.tokenizer, remove_bos=run.remove_bos, max_norm_multiple=run.sink_multiple
    )
    reader = ActivationReader(model, hook.place, rule)
    cut = ContextStream(iter(for_loss), model.tokenizer, run.ctx_len, packing="truncate")
    return HeldOut(tokens, in_batches(contexts), reader, cut.batches())
