"""Measuring SAEs on held-out text: one pass that gathers the totals that metrics.py needs.

Everything is measured on raw activations at the posterior's mean, over the same tokens for all
SAEs of a call.

Shapes: B tokens (in `DocumentLosses`, documents), L tokens of a document, D = activation_dim,
F features, K = k, T true features of a synthetic model, V = the vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.evaluation import evaluate as upstream_evaluate

from ..activations.hook_points import Change
from ..activations.inputs import HeldOut, Truth
from ..activations.rows import ActivationReader
from ..activations.tokens import ContextBatches
from ..progress import progress
from ..trainers.dictionaries import (
    HasPosterior,
    as_input,
    decoder_directions,
    k_of,
    selects_top_k,
)
from ..trainers.kernels.products import StepForm
from ..trainers.kernels.select import compared, top_k
from .metrics import (
    LanguageModelLosses,
    Totals,
    computed,
    shown_in,
    squared_residual,
)

logger = logging.getLogger(__name__)

_UPSTREAMS = ("frac_variance_explained", "cossim", "l2_ratio", "l2_loss", "l1_loss", "l0")

Replacement = Callable[[t.Tensor], t.Tensor]
"""Takes activations, (B, L, D), and returns what replaces them."""


def measure(
    dictionaries: dict[str, tuple[Dictionary, float]],
    held_out: HeldOut,
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every metric of each SAE, all on the same held-out tokens.

    Arguments:
        dictionaries: by name, each with the factor its training divided activations by.
        held_out: what to measure on. Positions that are left out of it keep their activations when
            the language model's loss is measured, see `DocumentLosses`.
        seed: of the noise.

    A text that ends early shows in the metric "tokens", see `batches_of`.
    """
    measurements = {
        name: Measurement(dictionary, factor, seed, held_out.truth)
        for name, (dictionary, factor) in dictionaries.items()
    }
    for x_BD in batches_of(held_out):
        for measurement in measurements.values():
            measurement.add(x_BD)
    losses = _losses_on(held_out)
    for measurement in measurements.values():
        measurement.totals.no_losses = held_out.no_loss
        if losses is not None:
            measurement.totals.losses = losses.of(measurement.dictionary)
    return {name: measurement.metrics() for name, measurement in measurements.items()}


class Sample:
    """Held-out activations and documents, read once and kept, on which SAEs are measured during training.

    The documents have as many tokens as the activations, rounded up to whole batches.

    Raises: as `measure`.
    """

    def __init__(self, held_out: HeldOut):
        self._batches = list(batches_of(held_out))
        self._no_loss, self._losses = held_out.no_loss, _losses_on(held_out, held_out.tokens)

    @t.no_grad()
    def metrics(self, dictionary: Any) -> dict[str, float]:
        """Those shown in training, by key, of an SAE that takes raw activations. What isn't defined here
        is left out."""
        totals = _empty_totals(dictionary)
        for x_BD in self._batches:
            totals.add(x_BD, *dictionary(as_input(dictionary, x_BD), output_features=True))
        totals.no_losses = self._no_loss
        if self._losses is not None:
            totals.losses = self._losses.of(dictionary)
        found = computed(totals, shown_in("training"))
        return {key: value for key, value in found.items() if isinstance(value, int | float)}


def _empty_totals(dictionary: Any, norm_factor: float = 1.0) -> Totals:
    return Totals(
        dictionary.activation_dim,
        dictionary.dict_size,
        k_of(dictionary),
        next(dictionary.parameters()).device,
        norm_factor,
    )


def batches_of(held_out: HeldOut) -> Iterator[t.Tensor]:
    """Its batches of raw activations, (B, D), float32, with a progress bar.

    A text that ends before is read as far as it goes, which is logged.

    Raises: as `Inputs.contexts`.
    """
    tokens, measured = held_out.tokens, 0
    with progress(tokens, "tok", desc="held-out", unit_scale=True, leave=False) as bar:
        for x_BD in held_out.batches:
            measured += len(x_BD)
            bar.update(len(x_BD))
            bar.clear()  # what the caller says, e.g. an error, has a line of its own
            yield x_BD
            bar.refresh()
    if measured < tokens:
        logger.warning("the held-out text ended: measured on %d tokens, not %d", measured, tokens)


class Measurement:
    """One SAE's totals, summed over batches of activations.

    Arguments:
        dictionary: takes raw activations.
        norm_factor: what activations were divided by in training.
        seed: of the noise in the metrics that need some.
        truth: of the activations, if it is known.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        norm_factor: float = 1.0,
        seed: int = 0,
        truth: Truth | None = None,
    ):
        self.dictionary: Any = dictionary
        self._match = None if truth is None else TruthMatch(dictionary, truth)
        device = next(dictionary.parameters()).device
        self._generator = t.Generator(device).manual_seed(seed)
        self.totals = _empty_totals(dictionary, norm_factor)

    @t.no_grad()
    def add(self, x_BD: t.Tensor) -> None:
        """Measure on a batch of raw activations, fp32."""
        sae: Any = self.dictionary
        x = as_input(sae, x_BD)
        selected = sae.encode(x, return_topk=True) if selects_top_k(sae) else None
        if selected is None:
            x_hat_BD, f_BF = sae(x, output_features=True)
        else:  # what the stability needs is computed once
            f_BF = selected[0]
            x_hat_BD = sae.decode(f_BF)
        self.totals.add(x_BD, x_hat_BD, f_BF)
        if self._match is not None:
            self._match.add(f_BF)
        done = _Done(sae.dict_size, (x_hat_BD.to(x_BD), f_BF.to(x_BD)))
        theirs = upstream_evaluate(done, iter([x_BD]), device=str(x_BD.device))
        for name in _UPSTREAMS:
            self.totals.add_mean(name, theirs[name])
        noise = self._add_posterior(x_BD) if isinstance(sae, HasPosterior) else None
        if selected is not None:
            _, values_BK, indices_BK, mu_BF = selected
            self._add_stability(values_BK, indices_BK, mu_BF, noise)

    def metrics(self) -> dict[str, Any]:
        """Every metric of what was added."""
        if self._match is not None:
            self.totals.truth = self._match.scores()
        return computed(self.totals)

    def _add_posterior(self, x_BD: t.Tensor) -> tuple[t.Tensor, t.Tensor]:
        """Returns what its noise is added to, (B, F), and the noise's standard deviation, 0-dim, (B, 1) or (B, F)."""
        sae, totals = self.dictionary, self.totals
        posterior = sae.posterior(x_BD)
        totals.kl = (totals.kl or 0.0) + float(posterior.kl.sum())
        self.totals.add_mean("std", posterior.std.mean())
        if posterior.noise_variance is not None:
            self.totals.add_mean("noise_variance", posterior.noise_variance.mean())
        sampled_BF = sae.encode(x_BD, sample=True, generator=self._generator)
        residual = squared_residual(x_BD, sae.decode(sampled_BF))
        totals.residual_sampled = (totals.residual_sampled or 0.0) + residual
        return posterior.mu, posterior.std

    def _add_stability(
        self,
        values_BK: t.Tensor,
        indices_BK: t.Tensor,
        mu_BF: t.Tensor,
        noise: tuple[t.Tensor, t.Tensor] | None,
    ) -> None:
        """With `noise`, also under the posterior's own: see `_add_posterior`."""
        sae = self.dictionary
        noises = {"stability_rms": (mu_BF, 0.1 * values_BK[values_BK != 0].square().mean().sqrt())}
        if noise is not None:
            noises["stability_sigma"] = noise
        for name, (added_to_BF, scale) in noises.items():
            z_BF = t.empty_like(mu_BF).normal_(generator=self._generator)
            z_BF = z_BF.mul_(scale).add_(added_to_BF)
            z_BF = compared(z_BF, getattr(sae, "select_by", "value"))
            # Without noise, as a point has none, a ReLU leaves ties.
            rectified = bool(getattr(sae, "rectify", False))
            k = indices_BK.shape[1]
            _, other_BK = top_k(z_BF, k, StepForm.rows_at_once, rectified=rectified)
            in_both_BK = t.zeros_like(mu_BF, dtype=t.bool).scatter_(1, other_BK, True)
            common_B = in_both_BK.gather(1, indices_BK).sum(1)
            self.totals.add_mean(name, (common_B / (2 * k - common_B)).mean())


class _Done(NamedTuple):
    """Stands for a dictionary in upstream's `evaluate`, so that it is not run again."""

    dict_size: int
    outputs: tuple[t.Tensor, t.Tensor]

    def __call__(self, x: t.Tensor, output_features: bool) -> tuple[t.Tensor, t.Tensor]:
        return self.outputs


class TruthMatch:
    """One SAE's match with the truth, counted over batches.

    Arguments:
        dictionary: takes raw activations.
        truth: the true features, and which of them fired in the last batch. Its model was drawn with
            SAELens, so SAELens is there.
    """

    def __init__(self, dictionary: Dictionary, truth: Truth):
        from sae_lens.synthetic import (  # pyright: ignore[reportMissingImports]
            ClassificationMetricsCalculator,
        )

        self._truth = truth
        self._directions_FD = decoder_directions(dictionary)
        self._firing = ClassificationMetricsCalculator(self._directions_FD, truth.vectors_TD)

    def add(self, f_BF: t.Tensor) -> None:
        """Count the features' activations on the batch that the truth has handed out last."""
        self._firing.add_batch(f_BF.cpu(), self._truth.firing_BT)

    def scores(self) -> dict[str, float]:
        """Of what was added, by the metrics' keys."""
        from sae_lens.synthetic import (  # pyright: ignore[reportMissingImports]
            feature_uniqueness,
            mean_correlation_coefficient,
        )

        directions_FD, vectors_TD = self._directions_FD, self._truth.vectors_TD
        uniqueness = feature_uniqueness(directions_FD, vectors_TD)
        return {
            "true_mcc": mean_correlation_coefficient(directions_FD, vectors_TD),
            "firing_f1": self._firing.compute().f1_score,
            "true_coverage": uniqueness * len(directions_FD) / len(vectors_TD),
            "uniqueness": uniqueness,
        }


# --- what reconstructions cost the language model


def _losses_on(held_out: HeldOut, tokens: float = math.inf) -> "DocumentLosses | None":
    """On all documents, or enough for `tokens`. None where the loss can't be measured."""
    if held_out.reader is None or held_out.documents is None:
        return None
    return DocumentLosses(held_out.reader, held_out.documents, tokens)


class DocumentLosses:
    """The language model's losses on some documents. Those without an SAE are measured once.

    It is upstream's `loss_recovered` where training uses every position. Positions that training
    leaves out (see `PositionRule`) keep their activations, when these are replaced by
    reconstructions and when they are replaced by zeros: both replace the same positions. Every
    token but a document's first is predicted, and counts, at those positions too.

    Arguments:
        reader: at the SAEs' hook point, with the rule of their training.
        documents: one per context. They are read to the end, or until there are `tokens` tokens
            (rounded up to whole batches).

    Raises: NonFiniteError if an activation is NaN or infinite.
    """

    def __init__(
        self, reader: ActivationReader, documents: ContextBatches, tokens: float = math.inf
    ):
        self._reader = reader
        self._batches: list[tuple[t.Tensor, t.Tensor, t.Tensor]] = []
        """Ids, mask, and which positions are replaced."""
        self._predicted = self._positions = self._left_alone = 0
        original, read = 0.0, []
        for input_ids_BL, mask_BL in _document_batches(documents, tokens):
            original += _summed_loss(reader, input_ids_BL, mask_BL, read.append)
            judged = reader.judge(read.pop(), reader.rule.by_token(input_ids_BL, mask_BL))
            reader.require_finite(judged.non_finite)
            self._batches.append((input_ids_BL, mask_BL, judged.wanted_BL))
            self._predicted += int(mask_BL[:, 1:].sum())
            self._positions += int(mask_BL.sum())
            self._left_alone += int(mask_BL.sum()) - int(judged.wanted_BL.sum())
        self._original, self._zero = self._mean(original), self._with(t.zeros_like)

    def of(self, dictionary: Dictionary) -> LanguageModelLosses:
        """With the reconstructions of an SAE that takes raw activations."""
        sae: Any = dictionary
        reconstructed = self._with(lambda x_BLD: sae(as_input(sae, x_BLD)))
        counts = self._predicted, self._positions, self._left_alone
        return LanguageModelLosses(self._original, reconstructed, self._zero, *counts)

    def _with(self, replacement: Replacement) -> float:
        """The loss with replaced activations."""
        summed = 0.0
        for input_ids_BL, mask_BL, wanted_BL in self._batches:
            change = _only_at(wanted_BL, replacement)
            summed += _summed_loss(self._reader, input_ids_BL, mask_BL, change)
        return self._mean(summed)

    def _mean(self, summed: float) -> float:
        return summed / self._predicted if self._predicted else math.nan


def _document_batches(documents: ContextBatches, tokens: float) -> ContextBatches:
    """Ids and masks of some documents at a time, as wide as the longest, until `tokens` were read."""
    for input_ids_BL, mask_BL in documents:
        longest = int(mask_BL.sum(1).max())
        yield input_ids_BL[:, :longest], mask_BL[:, :longest]
        tokens -= int(mask_BL.sum())
        if tokens <= 0:
            return


def _only_at(wanted_BL: t.Tensor, replacement: Replacement) -> Change:
    """The replacement at some positions, and what was there at the others."""

    def change(x_BLD: t.Tensor) -> t.Tensor:
        wanted_BL1 = wanted_BL.to(x_BLD.device).unsqueeze(-1)
        return t.where(wanted_BL1, replacement(x_BLD).to(x_BLD), x_BLD)

    return change


@t.no_grad()
def _summed_loss(
    reader: ActivationReader, input_ids_BL: t.Tensor, mask_BL: t.Tensor, change: Change
) -> float:
    """The cross-entropy of each document's next tokens with changed activations, nats, summed."""
    logits_BLV = reader.logits_with(input_ids_BL, mask_BL, change)
    device = logits_BLV.device
    is_predicted = (mask_BL[:, 1:] == 1).to(device)
    logits_NV = logits_BLV[:, :-1][is_predicted].float()
    next_N = input_ids_BL[:, 1:].to(device)[is_predicted]
    return float(t.nn.functional.cross_entropy(logits_NV, next_N, reduction="none").double().sum())
