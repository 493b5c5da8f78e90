"""The metrics and the codes of an SAE on batches of activations."""

import json
from collections.abc import Iterator
from typing import Any

import torch as t

from dictionary_learning_ext.activations.rows import ContextBatch
from dictionary_learning_ext.codes.codes import Codes, encode
from dictionary_learning_ext.codes.encoding import Encoder
from dictionary_learning_ext.evaluation.metrics import computed


class Measurement:
    """Sums over batches what the metrics need, as `measure` does."""

    def __init__(self, sae: Any, norm_factor: float = 1.0):
        self.encoder = Encoder(sae, norm_factor, with_all=True, keep=False)
        self.totals = self.encoder.totals

    def add(self, x_BD: t.Tensor) -> None:
        self.encoder.add(x_BD)

    def metrics(self) -> dict[str, Any]:
        return computed(self.totals)


def contexts_of_rows(parts: tuple[t.Tensor, ...]) -> Iterator[ContextBatch]:
    """Batches of activations, (B, D), as contexts of one token, 0."""
    for x_BD in parts:
        ids_B1 = t.zeros(len(x_BD), 1, dtype=t.long)
        nothing_B1 = t.zeros_like(ids_B1, dtype=t.bool)
        yield ContextBatch(ids_B1, ~nothing_B1, x_BD[:, None], nothing_B1)


def codes_of_rows(sae: Any, *parts: t.Tensor) -> Codes:
    """Codes on rows of activations, one batch after the other."""
    (codes,) = encode([sae], contexts_of_rows(parts))
    return codes


def of_one_setting(printed: str) -> dict[str, Any]:
    """What `vsae reproduce --json` printed of its only setting."""
    (found,) = json.loads(printed)["settings"].values()
    return found
