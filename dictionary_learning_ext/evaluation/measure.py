"""Metrics of SAEs on held-out text, computed from sums over its tokens and from the language model's loss.

Everything is measured on raw activations, at the posterior's mean, on the same tokens for all SAEs of a call.

Shapes: B tokens (in `DocumentLosses`, documents), L tokens of a document, D = activation_dim,
F features, K = k, V = the vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.hook_points import Change
from ..activations.inputs import HeldOut
from ..activations.rows import ActivationReader
from ..activations.tokens import ContextBatches
from ..codes.encoding import Encoder, LanguageModelLosses, Totals
from ..errors import TextError
from ..progress import progress
from ..trainers.dictionaries import as_input, sides
from .metrics import computed, shown_in

logger = logging.getLogger(__name__)


Batch = TypeVar("Batch")
Replacement = Callable[[t.Tensor], t.Tensor]
"""Takes activations, (B, L, D), and returns what replaces them; of a pair of hook points those at the second."""


def measure(
    dictionaries: dict[str, tuple[Dictionary, float]],
    held_out: HeldOut,
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every metric of each SAE, all on the same held-out tokens.

    Arguments:
        dictionaries: each SAE by name, with the factor that its training divided activations by.
        held_out: the text. The language model's loss is measured with the original activations at positions that are
            left out, see `DocumentLosses`.
        seed: seeds the noise.

    If the text ends early, the metric "tokens" shows it.
    """
    encoders = {
        name: Encoder(dictionary, factor, with_all=True, keep=False, seed=seed)
        for name, (dictionary, factor) in dictionaries.items()
    }
    for x_BD in batches_of(held_out):
        for encoder in encoders.values():
            encoder.add(x_BD)
    return metrics_of(
        {n: (encoder.dictionary, encoder.totals) for n, encoder in encoders.items()}, held_out
    )


def metrics_of(
    saes: dict[str, tuple[Dictionary, Totals]], held_out: HeldOut
) -> dict[str, dict[str, Any]]:
    """Every metric of SAEs whose totals on held-out text are known. Measures the language model's loss.

    Arguments:
        saes: each SAE by name, with its totals.
        held_out: the text. Only its documents are read.
    """
    losses = _losses_on(held_out)
    for dictionary, totals in saes.values():
        totals.no_losses = held_out.no_loss
        if losses is not None:
            totals.losses = losses.of(dictionary)
    return {name: computed(totals) for name, (_, totals) in saes.items()}


class Sample:
    """Held-out activations and documents to measure SAEs on during training, read once and kept in memory.

    The documents have as many tokens as the activations, rounded up to whole batches.
    """

    def __init__(self, held_out: HeldOut):
        self._batches = list(batches_of(held_out))
        self._no_loss, self._losses = held_out.no_loss, _losses_on(held_out, held_out.tokens)

    def metrics(self, dictionary: Any) -> dict[str, float]:
        """The metrics shown in training, by key, of an SAE that takes raw activations. Undefined ones are left out."""
        encoder = Encoder(dictionary, keep=False)
        for x_BD in self._batches:
            encoder.add(x_BD)
        totals = encoder.totals
        totals.no_losses = self._no_loss
        if self._losses is not None:
            totals.losses = self._losses.of(dictionary)
        metrics = computed(totals, shown_in("training"))
        return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def batches_of(held_out: HeldOut) -> Iterator[t.Tensor]:
    """The held-out batches of raw activations, (B, D), float32, with a progress bar.

    Warns if the text ends early. Raises TextError if no token is left, e.g. as it was read before.
    """
    measured = 0
    for x_BD in with_bar(held_out.batches, held_out.tokens, len):
        measured += len(x_BD)
        yield x_BD
    if not measured:
        raise TextError("no held-out token is left to measure on", instead="call held_out(…) again")
    if measured < held_out.tokens:
        logger.warning(
            "the held-out text ended: measured on %d tokens, not %d", measured, held_out.tokens
        )


def with_bar(
    batches: Iterator[Batch], tokens: int, count: Callable[[Batch], int]
) -> Iterator[Batch]:
    """Batches with `tokens` tokens in all, with a progress bar. `count` gives the tokens of one."""
    with progress(tokens, "tok", desc="held-out", unit_scale=True, leave=False) as bar:
        for batch in batches:
            bar.update(count(batch))
            bar.clear()  # so that what the caller prints, e.g. an error, has its own line
            yield batch
            bar.refresh()


# --- the language model's loss with reconstructions


def _losses_on(held_out: HeldOut, tokens: float = math.inf) -> "DocumentLosses | None":
    """The losses on all documents, or on enough for `tokens`. None if they can't be measured."""
    if held_out.reader is None or held_out.documents is None:
        return None
    return DocumentLosses(held_out.reader, held_out.documents, tokens)


class DocumentLosses:
    """The language model's losses on some documents. The losses that need no SAE are measured once.

    If training uses every position, this is upstream's `loss_recovered`. Positions that training leaves out (see
    `PositionRule`) keep their activations, both with reconstructions and with zeros. Every token but a document's first is
    predicted and counts, also at those positions.

    Arguments:
        reader: at the SAEs' hook point, or their pair, with the rule of their training.
        documents: one per context. They are read to the end, or until there are `tokens` tokens, rounded up to whole
            batches.

    Raises: NonFiniteError if an activation is NaN or infinite.
    """

    def __init__(
        self, reader: ActivationReader, documents: ContextBatches, tokens: float = math.inf
    ):
        self._reader = reader
        self._batches: list[tuple[t.Tensor, t.Tensor, t.Tensor]] = []
        """Token ids, the mask of tokens, and the positions to replace, of each batch."""
        self._predicted = self._positions = self._left_alone = 0
        original = 0.0
        read: list[t.Tensor] = []

        def keep(x_BLD: t.Tensor) -> None:
            read.append(x_BLD.clone())  # later modules may change it in place

        for input_ids_BL, mask_BL in _document_batches(documents, tokens):
            original += _summed_loss(reader, input_ids_BL, mask_BL, keep)
            by_token_BL = reader.rule.by_token(input_ids_BL, mask_BL)
            wanted_BL, non_finite = reader.without_outliers(read.pop(), by_token_BL)
            reader.require_finite(non_finite)
            self._batches.append((input_ids_BL, mask_BL, wanted_BL))
            self._predicted += int(mask_BL[:, 1:].sum())
            self._positions += int(mask_BL.sum())
            self._left_alone += int(mask_BL.sum()) - int(wanted_BL.sum())
        self._original = self._mean(original)
        self._zero = self._replaced_loss(lambda x_BLD: t.zeros_like(self._target(x_BLD)))

    def of(self, dictionary: Dictionary) -> LanguageModelLosses:
        """The losses with an SAE's reconstructions. The SAE takes raw activations."""
        sae: Any = dictionary
        reconstructed = self._replaced_loss(lambda x_BLD: sae(as_input(sae, sides(sae, x_BLD)[0])))
        counts = self._predicted, self._positions, self._left_alone
        return LanguageModelLosses(self._original, reconstructed, self._zero, *counts)

    def _replaced_loss(self, replacement: Replacement) -> float:
        """The mean loss with replaced activations."""
        summed = 0.0
        for input_ids_BL, mask_BL, wanted_BL in self._batches:
            change = self._replacing_only(wanted_BL, replacement)
            summed += _summed_loss(self._reader, input_ids_BL, mask_BL, change)
        return self._mean(summed)

    def _replacing_only(self, wanted_BL: t.Tensor, replacement: Replacement) -> Change:
        """A change that replaces activations at some positions and keeps the others."""

        def change(x_BLD: t.Tensor) -> t.Tensor:
            wanted_BL1 = wanted_BL.to(x_BLD.device).unsqueeze(-1)
            return t.where(wanted_BL1, replacement(x_BLD).to(x_BLD), self._target(x_BLD))

        return change

    def _target(self, x_BLD: t.Tensor) -> t.Tensor:
        """The activations that are replaced."""
        return x_BLD.chunk(len(self._reader.place.sides), -1)[-1]

    def _mean(self, summed: float) -> float:
        return summed / self._predicted if self._predicted else math.nan


def _document_batches(documents: ContextBatches, tokens: float) -> ContextBatches:
    """Batches of token ids and masks, cut to the longest document, until `tokens` were read."""
    for input_ids_BL, mask_BL in documents:
        longest = int(mask_BL.sum(1).max())
        yield input_ids_BL[:, :longest], mask_BL[:, :longest]
        tokens -= int(mask_BL.sum())
        if tokens <= 0:
            return


@t.no_grad()
def _summed_loss(
    reader: ActivationReader, input_ids_BL: t.Tensor, mask_BL: t.Tensor, change: Change
) -> float:
    """The summed cross-entropy of all next tokens, nats, with changed activations."""
    logits_BLV = reader.logits_with(input_ids_BL, mask_BL, change)
    device = logits_BLV.device
    is_predicted = (mask_BL[:, 1:] == 1).to(device)
    logits_NV = logits_BLV[:, :-1][is_predicted].float()
    next_N = input_ids_BL[:, 1:].to(device)[is_predicted]
    return float(t.nn.functional.cross_entropy(logits_NV, next_N, reduction="none").double().sum())
