"""Measuring SAEs on held-out text: one pass that gathers the totals that `metrics.py` needs.

Everything is measured on raw activations at the posterior's mean, over the same tokens for all
SAEs of a call.
"""

import logging
from typing import Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.evaluation import evaluate as upstream_evaluate

from ..activations.inputs import HeldOut, Truth
from ..errors import TextError
from ..trainers.base import HasPosterior, selects_top_k
from ..trainers.dictionary_inputs import as_input
from ..trainers.kernels.drawn_code import compared
from .ground_truth import TruthMatch
from .language_model_losses import language_model_losses
from .metrics import computed
from .totals import Totals, squared_residual

logger = logging.getLogger(__name__)

_UPSTREAMS = ("frac_variance_explained", "cossim", "l2_ratio", "l2_loss", "l1_loss", "l0")


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
        self.totals = Totals.empty(
            dictionary.activation_dim,
            dictionary.dict_size,
            getattr(dictionary, "k", None),
            device,
            norm_factor,
        )

    @t.no_grad()
    def add(self, x_BD: t.Tensor) -> None:
        """Measure on a batch of raw activations, fp32."""
        sae: Any = self.dictionary
        x_hat_BD, f_BF = sae(as_input(sae, x_BD), output_features=True)
        self.totals.add(x_BD, x_hat_BD, f_BF)
        if self._match is not None:
            self._match.add(f_BF)
        done = _Done(sae.dict_size, (x_hat_BD.to(x_BD), f_BF.to(x_BD)))
        theirs = upstream_evaluate(done, iter([x_BD]), device=str(x_BD.device))
        for name in _UPSTREAMS:
            self.totals.add_mean(name, theirs[name])
        std = self._add_posterior(x_BD) if isinstance(sae, HasPosterior) else None
        if selects_top_k(self.dictionary):
            self._add_stability(x_BD, std)

    def metrics(self) -> dict[str, Any]:
        """Every metric of what was added."""
        if self._match is not None:
            self.totals.truth = self._match.scores()
        return computed(self.totals)

    def _add_posterior(self, x_BD: t.Tensor) -> t.Tensor:
        """Returns its standard deviation, 0-dim or (B, F)."""
        sae, totals = self.dictionary, self.totals
        posterior = sae.posterior(x_BD)
        totals.kl = (totals.kl or 0.0) + float(posterior.kl.sum())
        self.totals.add_mean("std", posterior.std.mean())
        if posterior.noise_variance is not None:
            self.totals.add_mean("noise_variance", posterior.noise_variance.mean())
        sampled_BF = sae.encode(x_BD, sample=True, generator=self._generator)
        residual = squared_residual(x_BD, sae.decode(sampled_BF))
        totals.residual_sampled = (totals.residual_sampled or 0.0) + residual
        return posterior.std

    def _add_stability(self, x_BD: t.Tensor, std: t.Tensor | None) -> None:
        """With `std`, also under the posterior's own noise."""
        sae = self.dictionary
        x_BD = as_input(sae, x_BD)
        _, values_BK, indices_BK, mu_BF = sae.encode(x_BD, return_topk=True)
        scales = {"stability_rms": 0.1 * values_BK[values_BK != 0].square().mean().sqrt()}
        if std is not None:
            scales["stability_sigma"] = std
        for name, scale in scales.items():
            noise_BF = t.empty_like(mu_BF).normal_(generator=self._generator)
            z_BF = compared(mu_BF + scale * noise_BF, getattr(sae, "select_by", "value"))
            other_BK = z_BF.topk(indices_BK.shape[1], sorted=False).indices
            in_both_BK = t.zeros_like(mu_BF, dtype=t.bool).scatter_(1, other_BK, True)
            common_B = in_both_BK.gather(1, indices_BK).sum(1)
            self.totals.add_mean(name, (common_B / (2 * indices_BK.shape[1] - common_B)).mean())


class _Done(NamedTuple):
    """Stands for a dictionary in upstream's `evaluate`: what it has returned for these activations."""

    dict_size: int
    outputs: tuple[t.Tensor, t.Tensor]

    def __call__(self, x: t.Tensor, output_features: bool) -> tuple[t.Tensor, t.Tensor]:
        return self.outputs


def measure(
    dictionaries: dict[str, tuple[Dictionary, float]],
    held_out: HeldOut,
    tokens: int,
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every metric of each SAE, all on the same held-out tokens.

    Arguments:
        dictionaries: by name, each with the factor its training divided activations by.
        held_out: what to measure on. Positions that are left out of it keep their activations when
            the language model's loss is measured, see `language_model_losses`.
        tokens: activations measured on (rounded up to whole batches).
        seed: of the noise.

    A text that ends before `tokens` is measured as far as it goes, which is logged and shows in
    the metric "tokens".

    Raises: TextError if the text does not hold one batch.
    """
    rows = held_out.rows
    measurements = {
        name: Measurement(dictionary, factor, seed, held_out.truth)
        for name, (dictionary, factor) in dictionaries.items()
    }
    for batch in range(-(-tokens // rows.out_batch_size)):
        try:
            x_BD = next(rows).float()
        except TextError as error:
            measured = batch * rows.out_batch_size
            if measured == 0:
                where = "the held-out text is too short to measure on"
                raise error.within(where, "give more text, or measure on fewer tokens") from error
            logger.warning(
                "the held-out text ended: measured on %d tokens, not %d", measured, tokens
            )
            break
        for measurement in measurements.values():
            measurement.add(x_BD)
    saes = [measurement.dictionary for measurement in measurements.values()]
    if held_out.reader is None or held_out.documents is None:
        for measurement in measurements.values():
            measurement.totals.no_losses = held_out.no_loss
    else:
        losses = language_model_losses(saes, held_out.reader, held_out.documents)
        for measurement, of_sae in zip(measurements.values(), losses, strict=True):
            measurement.totals.losses = of_sae
    return {name: measurement.metrics() for name, measurement in measurements.items()}
