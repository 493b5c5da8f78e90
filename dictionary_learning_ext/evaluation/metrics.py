"""The table of metrics: each one's key, definition, label, direction, digits, and its formula.

Every table, page and CSV file reads this table. To add a metric, add a row; long formulas are in
formulas.py. If it needs a new total, declare that in totals.py and gather it in measure.py. A feature is
*selected* at a token if its activation by the mean is not zero there.
"""

import math
from typing import Any

from . import formulas
from .metric import Metric, Place
from .totals import NotMeasured, Totals

NOT_MEASURED = "not_measured"
"""In metrics.json: why metrics are null, by key."""


_ROWS = (
    Metric(
        "fve",
        "1 - sum of squared residuals / total variance about the mean",
        "FVE",
        formulas.fve,
        better="higher",
        title="Variance explained (FVE)",
        in_words="fraction of the activations' variance that the reconstruction explains",
    ),
    Metric(
        "frac_recovered",
        "(zero - reconstructed) / (zero - original), of the language model's losses; positions that "
        "training leaves out keep their activations in all three",
        "CE recovered",
        formulas.frac_recovered,
        better="higher",
        shown_in=("compare", "report", "sweep"),
        title="Language model's performance kept (CE recovered)",
        in_words="how much of the language model's performance is kept when the reconstruction "
        "replaces the activations; 1 is all of it, 0 is as bad as replacing them with zeros",
    ),
    Metric(
        "l0",
        "features that are not zero, per token",
        "L0",
        lambda totals: totals.mean("l0"),
        digits=1,
        shown_in=("compare", "report"),
        title="Features per token (L0)",
        in_words="mean number of nonzero features",
    ),
    Metric(
        "alive",
        "share of features selected at least once",
        "alive",
        lambda totals: (totals.frequency_F > 0).double().mean().item(),
        better="higher",
        shown_in=("compare", "bench"),
    ),
    Metric(
        "near_dead_0.1",
        "share of features selected in fewer than 0.1 k/F of the tokens; of an SAE without k, 0.1 "
        "times its L0 / F",
        "near-dead < 0.1",
        formulas.near_dead(0.1),
        better="lower",
        title="Almost never used (near-dead < 0.1)",
        in_words="share of features selected less than a tenth as often as the average feature",
    ),
    Metric(
        "near_dead_0.5",
        "the same at 0.5",
        "near-dead < 0.5",
        formulas.near_dead(0.5),
        better="lower",
        title="Rarely used (near-dead < 0.5)",
        in_words="share of features selected less than half as often as the average feature",
    ),
    Metric(
        "kl_per_token",
        "the KL over all features, nats per token",
        "KL/token",
        lambda totals: None if totals.kl is None else totals.kl / totals.tokens,
        shown_in=("compare",),
    ),
    Metric(
        "noise_to_signal",
        "k sigma^2 / E||x||^2, at the full sigma, also where training annealed the noise to 0; null for "
        "an SAE whose decoder is not unit-norm",
        "noise/signal",
        formulas.noise_to_signal,
        shown_in=("compare",),
        in_words="energy of the noise that sampling adds to a reconstruction / energy of the "
        "activations: k sigma^2 / E||x||^2, at the full sigma, also where the noise was annealed to 0",
    ),
    Metric(
        "fve_sampled",
        "FVE when the code is drawn from the posterior, at the full sigma, also where training annealed "
        "the noise to 0",
        "FVE sampled",
        formulas.fve_sampled,
        better="higher",
        shown_in=("compare",),
        in_words="FVE when noise is added as in training, at the full sigma, also where the noise was "
        "annealed to 0; the SAE itself is used without noise",
    ),
    Metric(
        "stability_rms",
        "mean Jaccard overlap of TopK(mu) and TopK(mu + s eps), s being a tenth of the selected "
        "activations' rms; for SAEs that select the k largest of a token",
        "selection stability",
        lambda totals: totals.mean("stability_rms"),
        better="higher",
        shown_in=("compare", "report"),
        title="Selection stability",
        in_words="overlap of the selected features before and after a little noise is added "
        "(Jaccard index)",
    ),
    Metric(
        "true_mcc",
        "mean |cosine| of decoder directions and a synthetic model's true features, paired one to one "
        "to maximise it; SAELens's MCC",
        "true MCC",
        formulas.truth("mcc"),
        better="higher",
        shown_in=("compare",),
        is_of_truth=True,
    ),
    Metric(
        "firing_f1",
        "mean over features of the F1 score of their firing, taken as a prediction of when the true "
        "feature of the largest |cosine| fires; SAELens's",
        "firing F1",
        formulas.truth("firing_f1"),
        better="higher",
        shown_in=("compare",),
        is_of_truth=True,
    ),
    Metric(
        "true_coverage",
        "share of the true features that have the largest |cosine| with some feature",
        "true coverage",
        formulas.truth("coverage"),
        better="higher",
        shown_in=("compare",),
        is_of_truth=True,
    ),
    Metric(
        "uniqueness",
        "the number of these true features / the number of the SAE's features; SAELens's",
        "uniqueness",
        formulas.truth("uniqueness"),
        better="higher",
        shown_in=("compare",),
        is_of_truth=True,
    ),
    Metric(
        "description_length",
        "log C(F, L0) + D/2 log(1 - FVE), nats per token: what it takes to send which features are "
        "on and, as a Gaussian, the residual; more features cost more",
        "description length",
        formulas.description_length,
        better="lower",
        shown_in=("sweep",),
    ),
    Metric(
        "frac_variance_explained",
        "upstream's, which forgives a constant bias",
        "upstream's FVE",
        lambda totals: totals.mean("frac_variance_explained"),
        better="higher",
        shown_in=(),
    ),
    Metric(
        "cossim",
        "mean cosine of activation and reconstruction",
        "cosine",
        lambda totals: totals.mean("cossim"),
        better="higher",
        shown_in=(),
    ),
    Metric(
        "l2_ratio",
        "mean norm of the reconstruction / of the activation",
        "L2 ratio",
        lambda totals: totals.mean("l2_ratio"),
        shown_in=(),
    ),
    Metric(
        "l2_loss",
        "upstream's: mean norm of the residual, raw units",
        "L2 loss",
        lambda totals: totals.mean("l2_loss"),
        better="lower",
        shown_in=(),
    ),
    Metric(
        "l1_loss",
        "upstream's: mean L1 norm of the features, raw units",
        "L1 loss",
        lambda totals: totals.mean("l1_loss"),
        shown_in=(),
    ),
    Metric(
        "mean_sigma",
        "the posterior's standard deviation, in training units",
        "mean sigma",
        formulas.mean_sigma,
        shown_in=(),
    ),
    Metric(
        "stability_sigma",
        "as stability_rms, with noise of the posterior's sigma",
        "stability at sigma",
        lambda totals: totals.mean("stability_sigma"),
        better="higher",
        shown_in=(),
    ),
    Metric(
        "loss_original",
        "cross-entropy of the language model, nats per token",
        "CE",
        formulas.loss("original"),
        shown_in=(),
    ),
    Metric(
        "loss_reconstructed",
        "cross-entropy with the reconstruction in place of the activations",
        "CE, reconstructed",
        formulas.loss("reconstructed"),
        better="lower",
        shown_in=(),
    ),
    Metric(
        "loss_zero",
        "cross-entropy with zeros in place of the activations",
        "CE, zeros",
        formulas.loss("zero"),
        shown_in=(),
    ),
    Metric(
        "loss_tokens",
        "held-out tokens on which the cross-entropies were measured",
        "CE tokens",
        formulas.count("tokens"),
        digits=0,
        shown_in=(),
    ),
    Metric(
        "loss_positions",
        "tokens of the documents on which these losses were measured",
        "CE positions",
        formulas.count("positions"),
        digits=0,
        shown_in=(),
    ),
    Metric(
        "positions_left_alone",
        "at how many of these positions activations were not replaced, since training leaves such "
        "positions out",
        "positions left alone",
        formulas.count("left_alone"),
        digits=0,
        shown_in=(),
    ),
    Metric(
        "tokens",
        "held-out tokens measured on",
        "tokens",
        lambda totals: totals.tokens,
        digits=0,
        shown_in=(),
    ),
)

METRICS: dict[str, Metric] = {row.key: row for row in _ROWS}
"""By key, in the order that tables show them."""


def shown_in(place: Place) -> list[Metric]:
    """The metrics that a table or page shows."""
    return [metric for metric in METRICS.values() if place in metric.shown_in]


def computed(totals: Totals, metrics: list[Metric] | None = None) -> dict[str, Any]:
    """Metrics of an SAE, by key. Default: all.

    One that these totals don't define is None, and NOT_MEASURED holds the reason, by key. It is
    absent if there is none. One that does not apply to the SAE is None without a reason.
    """
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for metric in METRICS.values() if metrics is None else metrics:
        try:
            value = metric.value(totals)
            if value is not None and not math.isfinite(value):
                raise NotMeasured(f"undefined for these activations (the formula gives {value})")
        except NotMeasured as reason:
            value, reasons[metric.key] = None, str(reason)
        values[metric.key] = value
    return values | ({NOT_MEASURED: reasons} if reasons else {})
