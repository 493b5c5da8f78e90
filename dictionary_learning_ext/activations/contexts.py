"""Contexts of tokens with their activations at a hook point, side by side.

Shapes: B contexts, L = ctx_len tokens, D = activation_dim.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch as t
from einops import rearrange
from nnsight import LanguageModel

from ..config.options import Split
from ..config.run_config import RunConfig
from ..errors import TextError
from .activation_reader import ActivationReader
from .hook_points import HookPoint
from .text import open_text
from .tokens import ContextStream

_CONTEXTS_AT_ONCE = 32


class ContextBatch(NamedTuple):
    """Some contexts."""

    input_ids_BL: t.Tensor
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
    reader = ActivationReader(
        model,
        hook.submodule,
        hook.io,
        remove_bos=run.remove_bos,
        max_norm_multiple=run.max_norm_multiple,
    )
    text = open_text(run.data, split=split)
    stream = ContextStream(text, model.tokenizer, run.ctx_len, packing=run.text_packing)
    left = tokens
    while left > 0:
        try:
            input_ids_BL, mask_BL = stream.next_batch(_CONTEXTS_AT_ONCE)
        except StopIteration:
            break
        read = reader.read(input_ids_BL, mask_BL, reader.rule.by_token(input_ids_BL, mask_BL))
        reader.require_finite(read.non_finite)
        number_N = rearrange(read.wanted_BL, "b l -> (b l)").cumsum(0)
        number_BL = rearrange(number_N, "(b l) -> b l", l=run.ctx_len)
        wanted_BL = read.wanted_BL & (number_BL <= left)
        left -= int(wanted_BL.sum())
        yield ContextBatch(input_ids_BL, wanted_BL, read.x_BLD.float())
    if left == tokens:
        raise TextError(
            f"the {split} text of {run.data!r} has no whole context of {run.ctx_len} tokens:"
            f" expected at least one; use a longer text (--data) or a smaller --ctx-len"
        )
