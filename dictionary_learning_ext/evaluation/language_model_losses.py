"""What reconstructions cost the language model: its loss with them in place of its activations.

Shapes: B documents, L tokens, D = activation_dim, V = the vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.rows import ActivationReader
from ..activations.tokens import TokenContexts
from ..trainers.dictionary_inputs import as_input
from .totals import LanguageModelLosses

_DOCUMENTS_AT_ONCE = 16

Replacement = Callable[[t.Tensor], t.Tensor]
"""Takes activations, (B, L, D), and returns what replaces them."""


@t.no_grad()
def language_model_losses(
    dictionaries: Sequence[Dictionary], reader: ActivationReader, documents: TokenContexts
) -> list[LanguageModelLosses]:
    """The language model's losses with each SAE's reconstruction, on the same documents.

    It is upstream's `loss_recovered` where training uses every position. Positions that training
    leaves out (see `PositionRule`) keep their activations, when these are replaced by
    reconstructions and when they are replaced by zeros: both replace the same positions. Every
    token but a document's first is predicted, and counts, at those positions too.

    Arguments:
        dictionaries: take raw activations.
        reader: at the SAEs' hook point, with the rule of their training.
        documents: one per context. They are read to the end.

    Raises: NonFiniteError if an activation is NaN or infinite.
    """
    replacements: list[Replacement] = [t.zeros_like, *map(_reconstruction, dictionaries)]
    sums, tokens, positions, left_alone = t.zeros(1 + len(replacements), dtype=t.float64), 0, 0, 0
    for input_ids_BL, mask_BL in _batches(documents):
        read: list[t.Tensor] = []

        def unchanged(x_BLD: t.Tensor, read: list[t.Tensor] = read) -> t.Tensor:
            read.append(x_BLD)
            return x_BLD

        losses = [
            _summed_loss(
                reader.logits_with(input_ids_BL, mask_BL, unchanged), input_ids_BL, mask_BL
            )
        ]
        judged = reader.judge(read[0], reader.rule.by_token(input_ids_BL, mask_BL))
        reader.require_finite(judged.non_finite)
        for replacement in replacements:
            logits_BLV = reader.logits_with(
                input_ids_BL, mask_BL, _only_at(judged.wanted_BL, replacement)
            )
            losses.append(_summed_loss(logits_BLV, input_ids_BL, mask_BL))
        sums += t.tensor(losses, dtype=t.float64)
        tokens += int(mask_BL[:, 1:].sum())
        positions += int(mask_BL.sum())
        left_alone += int(mask_BL.sum()) - int(judged.wanted_BL.sum())
    original, zero, *reconstructed = (sums / tokens).tolist() if tokens else [math.nan] * len(sums)
    return [
        LanguageModelLosses(original, loss, zero, tokens, positions, left_alone)
        for loss in reconstructed
    ]


def _batches(documents: TokenContexts) -> Iterator[tuple[t.Tensor, t.Tensor]]:
    """Ids and masks of some documents at a time, as wide as the longest of them."""
    while True:
        try:
            input_ids_BL, mask_BL = documents.next_batch(_DOCUMENTS_AT_ONCE)
        except StopIteration:
            return
        longest = int(mask_BL.sum(1).max())
        yield input_ids_BL[:, :longest], mask_BL[:, :longest]


def _reconstruction(dictionary: Any) -> Replacement:
    """By an SAE, in its own dtype: the language model's may be another."""
    return lambda x_BLD: dictionary(as_input(dictionary, x_BLD))


def _only_at(wanted_BL: t.Tensor, replacement: Replacement) -> Replacement:
    """The replacement at some positions, and what was there at the others."""

    def change(x_BLD: t.Tensor) -> t.Tensor:
        wanted_BL1 = wanted_BL.to(x_BLD.device).unsqueeze(-1)
        return t.where(wanted_BL1, replacement(x_BLD).to(x_BLD.dtype), x_BLD)

    return change


def _summed_loss(logits_BLV: t.Tensor, input_ids_BL: t.Tensor, mask_BL: t.Tensor) -> float:
    """The cross-entropy of each document's next tokens, nats, summed."""
    device = logits_BLV.device
    is_predicted = (mask_BL[:, 1:] == 1).to(device)
    logits_NV = logits_BLV[:, :-1][is_predicted].float()
    next_N = input_ids_BL[:, 1:].to(device)[is_predicted]
    return float(t.nn.functional.cross_entropy(logits_NV, next_N, reduction="none").double().sum())
