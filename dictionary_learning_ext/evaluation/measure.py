"""What an SAE is worth on held-out text: upstream's figures, and ours beside them.

Everything is measured on raw activations at the posterior's mean, over the same tokens for all
SAEs of a call. The figures' names and definitions are in `FIGURES`.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.evaluation import evaluate as upstream_evaluate
from dictionary_learning.evaluation import loss_recovered
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from ..activations.buffer import ResidualBuffer
from ..errors import TextError
from ..trainers.posterior import gaussian_kl, noise_to_signal, point_kl
from ..trainers.vaease import VAEase
from ..trainers.variational_top_k import VariationalTopKAutoEncoder

logger = logging.getLogger(__name__)

UPSTREAM_FIGURES = ("frac_variance_explained", "cossim", "l2_ratio", "l2_loss", "l1_loss", "l0")
NEAR_DEAD = (0.1, 0.5)

FIGURES = {
    "fve": "1 - sum of squared residuals / total variance about the mean",
    "description_length": "log C(F, L0) + D/2 log(1 - FVE), nats per token: what it takes to send which "
    "features are on and what they leave, as a Gaussian; more features cost",
    "frac_variance_explained": "upstream's, which forgives a constant bias",
    "cossim": "mean cosine of activation and reconstruction",
    "l2_ratio": "mean norm of the reconstruction / of the activation",
    "l0": "features that are not zero, per token",
    "alive": "share of features selected at least once",
    "near_dead_0.1": "share of features selected in fewer than 0.1 k/F of the tokens",
    "near_dead_0.5": "the same at 0.5 k/F",
    "loss_original": "cross-entropy of the language model, nats per token",
    "loss_reconstructed": "the same with the reconstruction in place of the activations",
    "loss_zero": "the same with zeros in their place",
    "frac_recovered": "(zero - reconstructed) / (zero - original)",
    "loss_tokens": "held-out tokens on which these losses were measured",
    "kl_per_token": "the KL over all features, nats",
    "mean_sigma": "the posterior's standard deviation, in training units",
    "noise_to_signal": "k sigma^2 / E||x||^2; None for a VAEase, whose decoder is not unit-norm",
    "fve_sampled": "FVE when the code is drawn from the posterior",
    "stability_sigma": "mean Jaccard overlap of TopK(mu) and TopK(mu + sigma eps)",
    "stability_rms": "the same with noise of a tenth of the selected activations' rms; both for "
    "the TopK classes only",
    "tokens": "held-out tokens measured on",
}


class Measurement:
    """One SAE's figures, summed over batches of activations.

    Arguments:
        dictionary: takes raw activations.
        norm_factor: what activations were divided by in training, for `mean_sigma`.
        seed: of the noise in the figures that need some.
    """

    def __init__(self, dictionary: Dictionary, norm_factor: float = 1.0, seed: int = 0):
        self.dictionary: Any = dictionary
        self.norm_factor = norm_factor
        device = next(dictionary.parameters()).device
        self._generator = t.Generator(device).manual_seed(seed)
        self._selected_F = t.zeros(dictionary.dict_size, dtype=t.long, device=device)
        self._tokens = self._batches = 0
        self._sum_D: t.Tensor | float = 0.0
        self._sums: dict[str, float] = {}

    @t.no_grad()
    def add(self, x_BD: t.Tensor) -> None:
        """Measure on a batch of raw activations, fp32."""
        sae = self.dictionary
        self._tokens += len(x_BD)
        self._batches += 1
        self._sum_D = self._sum_D + x_BD.double().sum(0)
        x_hat_BD, f_BF = sae(x_BD, output_features=True)
        self._selected_F += (f_BF != 0).sum(0)
        self._add("squares", x_BD.double().square().sum())
        self._add("residual", (x_BD - x_hat_BD).double().square().sum())
        theirs = upstream_evaluate(sae, iter([x_BD]), device=str(x_BD.device))
        for name in UPSTREAM_FIGURES:
            self._add(name, theirs[name])
        if isinstance(sae, VariationalTopKAutoEncoder):
            self._add_posterior(x_BD)
        if isinstance(sae, VAEase):
            self._add_gated_posterior(x_BD)
        if isinstance(sae, AutoEncoderTopK):
            self._add_stability(x_BD)

    def _add(self, name: str, value: t.Tensor | float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def _add_posterior(self, x_BD: t.Tensor) -> None:
        sae = self.dictionary
        mu_BF = sae.encode(x_BD, return_topk=True)[3]
        log_var, prior_std = sae.log_var(x_BD), sae.prior_std
        kl_BF = point_kl(mu_BF, prior_std)
        if sae.posterior != "point":
            kl_BF = gaussian_kl(mu_BF, log_var, prior_std)
        self._add("kl", kl_BF.sum())
        self._add("variance", log_var.exp().mean())
        self._add("std", (log_var / 2).exp().mean())
        self._add_sampled(x_BD)

    def _add_gated_posterior(self, x_BD: t.Tensor) -> None:
        posterior = self.dictionary.posterior(x_BD)
        self._add("kl", posterior.kl.sum())
        self._add("std", posterior.std.mean())
        self._add_sampled(x_BD)

    def _add_sampled(self, x_BD: t.Tensor) -> None:
        sae = self.dictionary
        sampled_BF = sae.encode(x_BD, sample=True, generator=self._generator)
        self._add("residual_sampled", (x_BD - sae.decode(sampled_BF)).double().square().sum())

    def _add_stability(self, x_BD: t.Tensor) -> None:
        sae = self.dictionary
        _, values_BK, indices_BK, mu_BF = sae.encode(x_BD, return_topk=True)
        scales = {"stability_rms": 0.1 * values_BK[values_BK != 0].square().mean().sqrt()}
        if isinstance(sae, VariationalTopKAutoEncoder):
            scales["stability_sigma"] = (sae.log_var(x_BD) / 2).exp()
        for name, scale in scales.items():
            noise_BF = t.empty_like(mu_BF).normal_(generator=self._generator)
            other_BK = (mu_BF + scale * noise_BF).topk(indices_BK.shape[1], sorted=False).indices
            in_both_BK = t.zeros_like(mu_BF, dtype=t.bool).scatter_(1, other_BK, True)
            common_B = in_both_BK.gather(1, indices_BK).sum(1)
            self._add(name, (common_B / (2 * indices_BK.shape[1] - common_B)).mean())

    def figures(self) -> dict[str, float | None]:
        """All figures but those of the language model's loss; None where one does not apply."""
        sums, n = self._sums, self._tokens
        total_variance = sums["squares"] - float((self._sum_D**2).sum()) / n  # pyright: ignore
        figures: dict[str, float | None] = {"fve": 1 - sums["residual"] / total_variance}
        figures |= {name: sums[name] / self._batches for name in UPSTREAM_FIGURES}
        F, D = self.dictionary.dict_size, self.dictionary.activation_dim
        choices = _log_binomial(F, min(figures["l0"] or 0.0, F))
        left = max(sums["residual"] / total_variance, 1e-12)
        figures["description_length"] = choices + D / 2 * math.log(left)
        frequency_F = self._selected_F.double() / n
        k = getattr(self.dictionary, "k", None)
        usual = (frequency_F.sum() if k is None else float(k)) / len(frequency_F)
        figures["alive"] = (frequency_F > 0).double().mean().item()
        for r in NEAR_DEAD:
            figures[f"near_dead_{r}"] = (frequency_F < r * usual).double().mean().item()
        posterior = ("kl_per_token", "mean_sigma", "noise_to_signal", "fve_sampled")
        figures |= dict.fromkeys((*posterior, "stability_sigma", "stability_rms"))
        if "kl" in sums:
            figures |= {
                "kl_per_token": sums["kl"] / n,
                "mean_sigma": sums["std"] / self._batches / self.norm_factor,
                "fve_sampled": 1 - sums["residual_sampled"] / total_variance,
            }
        if "variance" in sums:
            variance = sums["variance"] / self._batches
            ratio = noise_to_signal(int(k or 0), variance, sums["squares"] / n)
            figures["noise_to_signal"] = ratio
        for name in ("stability_sigma", "stability_rms"):
            if name in sums:
                figures[name] = sums[name] / self._batches
        return figures | {"tokens": n}


def _log_binomial(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def evaluate(
    dictionaries: dict[str, tuple[Dictionary, float]],
    buffer: ResidualBuffer,
    documents: Sequence[str],
    tokens: int,
    *,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Every figure of each SAE, all on the same held-out tokens.

    Arguments:
        dictionaries: by name, each with the factor its training divided activations by.
        buffer: on held-out text.
        documents: held-out documents for the language model's loss, cut to the buffer's ctx_len.
        tokens: activations measured on (rounded up to whole batches).
        seed: of the noise.

    A text that ends before `tokens` is measured as far as it goes, which is logged and shows in
    the figure "tokens".

    Raises: TextError if the text does not hold one batch.
    """
    measurements = {
        name: Measurement(dictionary, factor, seed)
        for name, (dictionary, factor) in dictionaries.items()
    }
    for batch in range(-(-tokens // buffer.out_batch_size)):
        try:
            x_BD = next(buffer).float()
        except TextError as error:
            measured = batch * buffer.out_batch_size
            if measured == 0:
                raise TextError(
                    f"the held-out text is too short to measure on ({error}); give more text or "
                    "ask for fewer tokens (--eval-tokens of train, --tokens of eval)"
                ) from error
            logger.warning(
                "the held-out text ended: measured on %d tokens, not %d", measured, tokens
            )
            break
        for measurement in measurements.values():
            measurement.add(x_BD)
    return {
        name: measurement.figures()
        | language_model_losses(measurement.dictionary, buffer, documents)
        for name, measurement in measurements.items()
    }


@t.no_grad()
def language_model_losses(
    dictionary: Dictionary, buffer: ResidualBuffer, documents: Sequence[str], batch_size: int = 16
) -> dict[str, float]:
    """Upstream's `loss_recovered`, averaged over the tokens of documents cut to ctx_len.

    Every position is reconstructed, also those that the buffer leaves out of training.
    """
    dtype, tokenizer = next(dictionary.parameters()).dtype, buffer.model.tokenizer

    def in_own_dtype(x):  # the language model's may be another, and x one of nnsight's proxies
        return dictionary(x.to(dtype))

    totals, tokens = t.zeros(3, dtype=t.float64), 0
    for start in range(0, len(documents), batch_size):
        batch = list(documents[start : start + batch_size])
        losses = loss_recovered(
            batch,
            buffer.model,
            buffer.submodule,
            in_own_dtype,
            max_len=buffer.ctx_len,
            io=buffer.io,
        )
        ids = tokenizer(batch, truncation=True, max_length=buffer.ctx_len)["input_ids"]
        predicted = sum(len(row) - 1 for row in ids)
        totals += predicted * t.tensor([float(loss) for loss in losses], dtype=t.float64)
        tokens += predicted
    original, reconstructed, zero = (totals / tokens).tolist()
    return {
        "loss_original": original,
        "loss_reconstructed": reconstructed,
        "loss_zero": zero,
        "frac_recovered": (zero - reconstructed) / (zero - original),
        "loss_tokens": tokens,
    }
