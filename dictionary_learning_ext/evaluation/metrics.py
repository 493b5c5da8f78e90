"""The metrics of an SAE: formulas on its totals, and how tables show them.

METRICS is the one table that commands, pages and CSV files read. To add a metric, add a row and the tables that show it. If it
needs a new total, add that to `Totals` and sum it in `Encoder`, both in codes/encoding.py. A feature is *selected* at a token
if its activation (of a vSAE, its mean) is not zero there.

Shapes: F features.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from inspect import getfile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch as t

from ..codes.codes import Codes
from ..codes.encoding import LanguageModelLosses, NotMeasured, Totals
from ..config.run import RunConfig
from ..run_folder.files import NOT_MEASURED, OF
from ..run_folder.identity import (
    differences,
    hash_of_definitions,
    measured_on,
    parts_of,
    sources_of,
)
from ..run_folder.sae_folder import SAEFolder
from ..trainers import posterior

Table = Literal["compare", "report", "sweep", "bench", "training"]
TABLES: tuple[Table, ...] = get_args(Table)
"""The tables and pages. "training": what `eval_every` measures and the report's training curves show."""


# --- formulas: None where a metric does not apply to the SAE


def fve(totals: Totals) -> float:
    return 1 - totals.residual / totals.total_variance


def fve_of(codes: Codes, is_in_F: np.ndarray | None = None) -> float | None:
    """The FVE on the text of these codes; None if its activations have no variance.

    Arguments:
        is_in_F: the features of which the reconstruction is made, (F,). Default: all.
    """
    residual = codes.totals.residual if is_in_F is None else codes.residual_of(is_in_F)
    try:
        return 1 - residual / codes.totals.total_variance
    except NotMeasured:
        return None


def description_length(totals: Totals) -> float | None:
    l0 = totals.mean("l0")
    if l0 is None:
        return None
    on = min(l0, totals.dict_size)
    choices = math.lgamma(totals.dict_size + 1) - math.lgamma(on + 1)
    choices -= math.lgamma(totals.dict_size - on + 1)
    left = max(totals.residual / totals.total_variance, 1e-12)
    return choices + totals.activation_dim / 2 * math.log(left)


def is_near_dead(firing_rate_F: t.Tensor, k: int | None, r: float) -> t.Tensor:
    """(F,), whether each feature is selected in fewer than r k/F of the tokens, or never. Without a k, L0 takes its place."""
    l0 = firing_rate_F.sum() if k is None else float(k)
    return (firing_rate_F < r * (l0 / len(firing_rate_F))) | (firing_rate_F == 0)


def near_dead(r: float) -> Callable[[Totals], float]:
    return lambda totals: is_near_dead(totals.firing_rate_F, totals.k, r).double().mean().item()


def _noise_to_signal(totals: Totals) -> float | None:
    variance = totals.mean("noise_variance")
    if variance is None:
        return None
    if totals.squares == 0:
        raise NotMeasured("the activations are all 0")
    return posterior.noise_to_signal(totals.k or 0, variance, totals.squares / totals.tokens)


def mean_sigma(totals: Totals) -> float | None:
    std = totals.mean("std")
    return None if std is None else std / totals.norm_factor


def fve_sampled(totals: Totals) -> float | None:
    sampled = totals.residual_sampled
    return None if sampled is None else 1 - sampled / totals.total_variance


def loss_added(totals: Totals) -> float | None:
    losses = ce_losses(totals)
    return losses and losses.reconstructed - losses.original


def frac_recovered(totals: Totals) -> float | None:
    if (losses := ce_losses(totals)) is None:
        return None
    if losses.zero == losses.original:
        raise NotMeasured("zeros in place of the activations do not change the loss")
    return (losses.zero - losses.reconstructed) / (losses.zero - losses.original)


def ce_losses(totals: Totals) -> LanguageModelLosses | None:
    losses = totals.losses
    if losses is None and totals.no_losses:
        raise NotMeasured(totals.no_losses)
    if losses is not None and losses.tokens == 0:
        raise NotMeasured("no held-out document has a second token, which could be predicted")
    return losses


def of_losses(which: str) -> Callable[[Totals], float | None]:
    return lambda totals: (losses := ce_losses(totals)) and getattr(losses, which)


# --- the table


@dataclass(frozen=True)
class Number:
    """A number that tables and pages show: what it is called, what it means, and how it is written."""

    key: str
    """Its name in files."""
    label: str
    """The head of its column."""
    definition: str
    _: KW_ONLY
    form: str = ".4f"
    """Its format in tables. Of numbers from 10 on, one decimal is enough."""
    better: Literal["higher", "lower"] | None = None
    title: str = ""
    """Its name on pages for newcomers. Default: the label."""
    in_words: str = ""
    """What it means, on the same pages. Default: the definition."""

    def text(self, value: float | None, missing: str = "-") -> str:
        """A value as tables show it."""
        if value is None or math.isnan(value):
            return missing
        return format(value, ".1f" if self.form == ".4f" and abs(value) >= 10 else self.form)

    def best(self, values: list[float | None]) -> float | None:
        """The best of some values; None if neither more nor less of it is better."""
        known = [value for value in values if value is not None]
        if self.better is None or not known:
            return None
        return max(known) if self.better == "higher" else min(known)


@dataclass(frozen=True)
class Metric(Number):
    """A row of the table: a metric. Its key is its name in metrics.json."""

    _: KW_ONLY
    formula: Callable[[Totals], float | None] | None = None
    """Computes it; gives None where it does not apply, and raises NotMeasured where it is undefined. Default: the mean of
    the sum with the same key."""
    shown_in: tuple[Table, ...] = ()
    """Where it is shown. `vsae compare --all` and metrics.json have every metric."""


_ROWS = (
    Metric(
        "fve",
        "FVE",
        "1 - sum of squared residuals / total variance about the mean",
        formula=fve,
        better="higher",
        shown_in=TABLES,
        title="Variance explained (FVE)",
        in_words="fraction of the activations' variance that the reconstruction explains",
    ),
    Metric(
        "loss_added",
        "loss added",
        "by how many nats per token the language model's cross-entropy rises when the reconstruction "
        "replaces the activations; positions that training leaves out keep theirs",
        formula=loss_added,
        better="lower",
        shown_in=("compare", "report", "sweep", "training"),
        title="What the language model loses (loss added)",
        in_words="how much the language model's loss rises, in nats per token, when the "
        "reconstruction replaces the activations; 0 is no harm",
    ),
    Metric(
        "l0",
        "L0",
        "features that are not zero, per token",
        form=".1f",
        shown_in=("compare", "report"),
        title="Features per token (L0)",
        in_words="mean number of nonzero features",
    ),
    Metric(
        "alive",
        "alive",
        "share of features selected at least once",
        formula=lambda totals: (totals.firing_rate_F > 0).double().mean().item(),
        better="higher",
        shown_in=("compare", "bench"),
    ),
    Metric(
        "near_dead_0.1",
        "near-dead < 0.1",
        "share of features selected in fewer than 0.1 k/F of the tokens; of an SAE without k, 0.1 "
        "times its L0 / F",
        formula=near_dead(0.1),
        form=".1%",
        better="lower",
        shown_in=TABLES,
        title="Almost never used (near-dead < 0.1)",
        in_words="share of features selected less than a tenth as often as the average feature",
    ),
    Metric(
        "near_dead_0.5",
        "near-dead < 0.5",
        "the same at 0.5",
        formula=near_dead(0.5),
        better="lower",
        shown_in=("bench",),
    ),
    Metric(
        "kl_per_token",
        "KL/token",
        "the KL over all features, nats per token",
        formula=lambda totals: None if totals.kl is None else totals.kl / totals.tokens,
    ),
    Metric(
        "noise_to_signal",
        "noise/signal",
        "k sigma^2 / E||x||^2, at the full sigma, also where training annealed the noise to 0; null for "
        "an SAE whose decoder is not unit-norm",
        formula=_noise_to_signal,
    ),
    Metric(
        "fve_sampled",
        "FVE sampled",
        "FVE when the code is drawn from the posterior, at the full sigma, also where training annealed "
        "the noise to 0",
        formula=fve_sampled,
        better="higher",
    ),
    Metric(
        "stability_rms",
        "selection stability",
        "mean Jaccard overlap of TopK(mu) and TopK(mu + s eps), s being a tenth of the selected "
        "activations' rms; for SAEs that select the k largest of a token",
        better="higher",
    ),
    Metric(
        "description_length",
        "description length",
        "log C(F, L0) + D/2 log(1 - FVE), nats per token: what it takes to send which features are "
        "on and, as a Gaussian, the residual; more features cost more",
        formula=description_length,
        better="lower",
        shown_in=("sweep",),
    ),
    Metric(
        "frac_variance_explained",
        "upstream's FVE",
        "upstream's, which forgives a constant bias",
        better="higher",
    ),
    Metric("cossim", "cosine", "mean cosine of activation and reconstruction", better="higher"),
    Metric("l2_ratio", "L2 ratio", "mean norm of the reconstruction / of the activation"),
    Metric(
        "l2_loss", "L2 loss", "upstream's: mean norm of the residual, raw units", better="lower"
    ),
    Metric("l1_loss", "L1 loss", "upstream's: mean L1 norm of the features, raw units"),
    Metric(
        "mean_sigma",
        "mean sigma",
        "the posterior's standard deviation, in training units",
        formula=mean_sigma,
    ),
    Metric(
        "stability_sigma",
        "stability at sigma",
        "as stability_rms, with noise of the posterior's sigma",
        better="higher",
    ),
    Metric(
        "frac_recovered",
        "CE recovered",
        "SAE Bench's number, (CE zeros - CE reconstructed) / (CE zeros - CE); where zeros are far "
        "worse than guessing, a useless SAE comes near 1 too",
        formula=frac_recovered,
        better="higher",
    ),
    Metric(
        "loss_original",
        "CE",
        "cross-entropy of the language model, nats per token",
        formula=of_losses("original"),
    ),
    Metric(
        "loss_reconstructed",
        "CE, reconstructed",
        "cross-entropy with the reconstruction in place of the activations",
        formula=of_losses("reconstructed"),
        better="lower",
    ),
    Metric(
        "loss_zero",
        "CE, zeros",
        "cross-entropy with zeros in place of the activations",
        formula=of_losses("zero"),
    ),
    Metric(
        "loss_tokens",
        "CE tokens",
        "held-out tokens on which the cross-entropies were measured",
        formula=lambda totals: totals.losses and totals.losses.tokens,
        form=".0f",
    ),
    Metric(
        "loss_positions",
        "CE positions",
        "tokens of the documents on which these losses were measured",
        formula=lambda totals: totals.losses and totals.losses.positions,
        form=".0f",
    ),
    Metric(
        "positions_left_alone",
        "positions left alone",
        "at how many of these positions activations were not replaced, since training leaves such "
        "positions out",
        formula=lambda totals: totals.losses and totals.losses.left_alone,
        form=".0f",
    ),
    Metric(
        "tokens",
        "tokens",
        "held-out tokens measured on",
        formula=lambda totals: totals.tokens,
        form=".0f",
    ),
)

METRICS: dict[str, Metric] = {row.key: row for row in _ROWS}
"""By key, in the order that tables show them."""


def shown_in(table: Table) -> list[Metric]:
    """The metrics that a table or page shows."""
    return [metric for metric in METRICS.values() if table in metric.shown_in]


def computed(totals: Totals, metrics: list[Metric] | None = None) -> dict[str, Any]:
    """Metrics of an SAE, by key. Default: all.

    A metric that does not apply to the SAE is None. A metric that is undefined is None, and the entry NOT_MEASURED has the
    reason, by key.
    """
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for metric in METRICS.values() if metrics is None else metrics:
        try:
            value = metric.formula(totals) if metric.formula else totals.mean(metric.key)
            if value is not None and not math.isfinite(value):
                raise NotMeasured(f"undefined for these activations (the formula gives {value})")
        except NotMeasured as reason:
            value, reasons[metric.key] = None, str(reason)
        values[metric.key] = value
    return values | ({NOT_MEASURED: reasons} if reasons else {})


# --- what they are of


def with_identity(metrics: dict[str, Any], sae: str, run: RunConfig) -> dict[str, Any]:
    """Metrics as metrics.json has them: with what they were measured on, and what they are of.

    Arguments:
        sae: the SAE's `hash`.
    """
    settings = measured_on(run)
    return metrics | {"measured_on": settings, OF: _identity(sae, settings)}


def changes_since(sae: SAEFolder, metrics: Mapping[str, Any]) -> list[str] | None:
    """What an SAE's metrics.json is of that differs from now; None if it doesn't say, as earlier versions wrote it.

    What can't be hashed here and now, e.g. a text that isn't on this machine, doesn't count.
    """
    if (was := metrics.get(OF)) is None:
        return None
    now = _identity(sae.hash, metrics.get("measured_on", {}))
    return differences(parts_of({}, was), parts_of({}, now))


def _identity(sae: str, measured_on: Mapping[str, Any]) -> dict[str, str | None]:
    """Hashes of what a measurement is of."""
    return {"weights": sae, **sources_of(measured_on), "definitions": _definitions()}


def _definitions() -> str:
    return hash_of_definitions(
        getfile(Totals), __file__, str(Path(__file__).with_name("measure.py"))
    )
