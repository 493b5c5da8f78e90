"""What the pages call a metric, and with how many digits they show it."""

from collections.abc import Iterable

from dictionary_learning_ext.evaluation.metrics import METRICS

LABELS = {key: metric.label for key, metric in METRICS.items()} | {
    # of decoder directions: dictionary_learning_ext.features.geometry
    "dispersion": "dispersion",
    "agreement": "agreement of seeds",
    "within": "within",
    "excess": "agreement - within",
    # SAE Bench's, as experiments average them over N, or over the number of features
    "sae_probes": "sae_probes",
    "scr": "SCR, N = 2 and 5",
    "scr_matched": "SCR, size-matched",
    "tpp": "TPP, all N",
    "tpp_matched": "TPP, size-matched",
}
"""By the names of metrics.json, or of an experiment's own."""
DIGITS = {"l0": 1, "description_length": 1}
"""Default: 3."""
SHOWN = (
    "fve",
    "fve_sampled",
    "frac_recovered",
    "cossim",
    "alive",
    "near_dead_0.1",
    "near_dead_0.5",
    "stability_rms",
    "dispersion",
    "agreement",
)
"""What the tables of trained SAEs show, in this order."""


def labels_of(names: Iterable[str]) -> list[str]:
    """A table's columns."""
    return [LABELS[name] for name in names]
