"""Contexts of tokens in which no document meets another, and no token is left out.

Shapes: B contexts, L = ctx_len tokens.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..config.checks import require
from ..config.run import Packing
from .text_files import require_no_surrogate


class WholeDocuments:
    """Cuts each document into contexts of its own, the last one padded on the right.

    `ContextStream` is for training: it joins or cuts documents. This one is for a few documents that
    a user wants to see all of.

    Arguments:
        documents: read as they are needed.
        tokenizer: the language model's tokenizer.
        ctx_len: tokens in a context.
        packing: of the training. "truncate": documents begin with the special tokens that the
            tokenizer adds. "pack": they have none.
    """

    def __init__(
        self, documents: Iterator[str], tokenizer: Any, ctx_len: int, *, packing: Packing = "pack"
    ):
        require(ctx_len >= 1, "ctx_len", ctx_len, "at least 1")
        self._documents = iter(documents)
        self._tokenizer = tokenizer
        self._ctx_len = ctx_len
        self._special = packing == "truncate"
        self._read = 0
        self._contexts: deque[Tensor] = deque()

    def next_batch(self, n: int) -> tuple[Tensor, Tensor]:
        """The next n contexts, or all that are left: ids and mask (0 at padding), both int64, (n, L).

        Raises: StopIteration if none is left; TextError for text that can't be tokenised.
        """
        while len(self._contexts) < n and (document := next(self._documents, None)) is not None:
            self._read += 1
            require_no_surrogate(document, f"document {self._read}")
            # verbose=False: no warning about texts that are longer than the model's context.
            ids = self._tokenizer(document, add_special_tokens=self._special, verbose=False)
            ids_N = torch.tensor(ids["input_ids"], dtype=torch.int64)
            self._contexts.extend(ids_N.split(self._ctx_len) if len(ids_N) else ())
        if not self._contexts:
            raise StopIteration
        rows = [self._contexts.popleft() for _ in range(min(n, len(self._contexts)))]
        ids_BL = torch.full((len(rows), self._ctx_len), self._tokenizer.pad_token_id or 0)
        mask_BL = torch.zeros_like(ids_BL)
        for row, ids_N in enumerate(rows):
            ids_BL[row, : len(ids_N)] = ids_N
            mask_BL[row, : len(ids_N)] = 1
        return ids_BL, mask_BL
