"""Contexts of tokens with their activations at a hook point, side by side.

Shapes: B contexts, L = ctx_len tokens, D = activation_dim.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as t
from nnsight import LanguageModel

from ..config.options import Split
from ..config.run_config import RunConfig
from ..errors import NonFiniteError, TextError
from .language_models import HookPoint, read_residual
from .text import open_text
from .tokens import ContextStream

_CONTEXTS_AT_ONCE = 32


class ContextBatch(NamedTuple):
    """Some contexts: `wanted_BL` is False at padding and at what the run leaves out of training."""

    input_ids_BL: t.Tensor
    wanted_BL: t.Tensor
    x_BLD: t.Tensor


def read_contexts(
    run: RunConfig, model: LanguageModel, hook: HookPoint, split: Split, tokens: int
) -> Iterator[ContextBatch]:
    """The first `tokens` wanted tokens of a run's text, in contexts as its training had them.

    Arguments:
        run: says the text, its packing and which tokens are left out.
        split: "heldout" or "train".
        tokens: wanted tokens in all; a text that ends before is read as far as it goes.

    Raises: TextError if the text holds no context; NonFiniteError if an activation is not finite.
    """
    tokenizer: Any = model.tokenizer
    stream = ContextStream(
        open_text(run.data, split=split), tokenizer, run.ctx_len, packing=run.text_packing
    )
    left = tokens
    while left > 0:
        try:
            input_ids_BL, mask_BL = stream.next_batch(_CONTEXTS_AT_ONCE)
        except StopIteration:
            break
        x_BLD = read_residual(model, hook, input_ids_BL, mask_BL).float()
        wanted_BL = mask_BL.bool()
        if run.remove_bos:
            wanted_BL &= input_ids_BL != tokenizer.bos_token_id
        norms_BL = x_BLD.norm(dim=-1).cpu()
        if not norms_BL[wanted_BL].isfinite().all():
            raise NonFiniteError(
                f"{run.model} gave activations at {hook.name} that are NaN or infinite, instead of "
                "numbers: load it in float32, or check its weights"
            )
        if run.max_norm_multiple is not None and wanted_BL.any():
            wanted_BL &= norms_BL <= run.max_norm_multiple * norms_BL[wanted_BL].median()
        before_BL = wanted_BL.flatten().cumsum(0).view_as(wanted_BL)
        wanted_BL &= before_BL <= left
        left -= int(wanted_BL.sum())
        yield ContextBatch(input_ids_BL, wanted_BL, x_BLD)
    if left == tokens:
        raise TextError(
            f"the {split} text of {run.data!r} does not hold one context of {run.ctx_len} tokens: "
            "give a longer text"
        )
