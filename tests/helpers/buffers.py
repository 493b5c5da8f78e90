"""A small text, buffers of it, and its rows read one context at a time."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from typing import Any

import torch
from nnsight import LanguageModel
from torch import Tensor

from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.tokens import ContextStream

SENTENCE = "It was the worst of times, and a cat sat on some mat by that door. "
DOCUMENTS = [f"{n * n} " + SENTENCE[n % 11 :] + SENTENCE[: n % 5] for n in range(30)]


def endless() -> Iterator[str]:
    return cycle(DOCUMENTS)


def make_buffer(lm: Any, data: Any, *, layer: int = 1, io: str = "post", **options: Any) -> Any:
    hook = find_hook(lm, f"blocks.{layer}.hook_resid_{io}")
    given: dict[str, Any] = {"n_ctxs": 6, "ctx_len": 16, "refresh_batch_size": 4}
    given |= {"out_batch_size": 10} | options
    return ResidualBuffer(data, lm, hook, **given)


@cache
def direct_rows(
    lm: LanguageModel,
    *,
    ctx_len: int = 16,
    keep: Callable[..., Tensor] | None = None,
    **options: Any,
) -> Tensor:
    """The rows of all the documents in reading order, context by context. Read once."""
    hook = find_hook(lm, "blocks.1.hook_resid_post")
    stream = ContextStream(iter(DOCUMENTS), lm.tokenizer, ctx_len, **options)
    rows = []
    for ids, mask in stream.batches(1):
        wanted = mask.bool() if keep is None else mask.bool() & keep(ids)
        rows.append(read_residual(lm, hook, ids, mask)[wanted])
    return torch.cat(rows)
