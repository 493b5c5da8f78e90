"""The results of one call of `bench`, and the tables of SAE Bench's metrics and ours that `vsae bench` prints."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import BenchError
from ..evaluation.metrics import shown_in
from ..evaluation.tables import text_table

Values = dict[str, dict[str, float]]
"""Values of metrics, by the SAE's label and the metric's name."""
_CORE = {
    "CE loss score": ("model_performance_preservation", "ce_loss_score"),
    "cosine": ("reconstruction_quality", "cossim"),
    "L0": ("sparsity", "l0"),
    "explained variance, SAE Bench's": ("reconstruction_quality", "explained_variance"),
    "explained variance, legacy": ("reconstruction_quality", "explained_variance_legacy"),
    "alive, SAE Bench's (> 0)": ("misc_metrics", "frac_alive"),
}
_LANGUAGE_MODEL = ", language model"
"""The end of the name of a metric of the language model, without an SAE."""


@dataclass
class BenchResults:
    """The results and failures of one call of `bench`.

    Attributes:
        results: SAE Bench's JSON of the evaluations that succeeded, by the SAE's label and the evaluation.
        failures: the labels of the SAEs whose evaluation failed, by evaluation and cause.
    """

    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a BenchError with a line about each evaluation and cause if one failed."""
        if self.failures:
            lines = [
                f"{evaluation} of {', '.join(labels)}: {cause}"
                for (evaluation, cause), labels in self.failures.items()
            ]
            raise BenchError(
                f"failed: {'; '.join(lines)} (what succeeded is kept; run the same command again to run "
                "only the rest)"
            )


def table(outcome: BenchResults) -> str:
    """A row for each metric, a column for each SAE."""
    values = {label: rows_of(results) for label, results in outcome.results.items()}
    return _table("", values, ".3f")


def differences(outcome: BenchResults) -> str | None:
    """Each SAE's metrics less those of the first, as `table` shows them; None for fewer than two SAEs."""
    values = {label: rows_of(results) for label, results in outcome.results.items()}
    if len(values) < 2:
        return None
    first, *others = values
    less_first = {
        label: {
            name: values[label][name] - reference
            for name, reference in values[first].items()
            if name in values[label] and not name.endswith(_LANGUAGE_MODEL)
        }
        for label in others
    }
    return _table(f"minus {first}", less_first, "+.4f")


def metrics(result: dict[str, Any], category: str) -> dict[str, float | None]:
    """One category of a result's metrics."""
    return result["eval_result_metrics"][category]


def curve(result: dict[str, Any] | None, which: str) -> dict[int, float]:
    """A metric at each N.

    Arguments:
        which: "scr", or one of TPP's: "total_metric", "intended_diff_only" or "unintended_diff_only".
    """
    if result is None:
        return {}
    if which == "scr":
        found, pattern = metrics(result, "scr_metrics"), "scr_metric_threshold_{}"
    else:
        found, pattern = metrics(result, "tpp_metrics"), "tpp_threshold_{}_" + which
    values = {n: found.get(pattern.format(n)) for n in result["eval_config"]["n_values"]}
    return {n: value for n, value in values.items() if value is not None}


def rows_of(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The metrics of one SAE, by their names in the table."""
    rows: dict[str, float | None] = {}
    if core := results.get("core"):
        rows |= {name: metrics(core, c)[key] for name, (c, key) in _CORE.items()}
        ours = core["eval_result_unstructured"]
        # Some of SAE Bench's have the same label.
        rows |= {f"{metric.label} (ours)": ours.get(metric.key) for metric in shown_in("bench")}
    rows |= {f"SCR, N = {n}": value for n, value in curve(results.get("scr"), "scr").items()}
    tpp = curve(results.get("tpp"), "total_metric")
    rows |= {f"TPP, N = {n}": value for n, value in tpp.items()}
    for evaluation, name, ks in (
        ("sparse_probing", "probing", "k_values"),
        ("sae_probes", "sae-probes", "ks"),
    ):
        if probing := results.get(evaluation):
            for k in probing["eval_config"][ks]:
                rows[f"{name}, top {k}"] = metrics(probing, "sae")[f"sae_top_{k}_test_accuracy"]
            rows[f"{name}{_LANGUAGE_MODEL}"] = metrics(probing, "llm")["llm_test_accuracy"]
    if absorption := results.get("absorption"):
        score = metrics(absorption, "mean")["mean_absorption_fraction_score"]
        rows["absorption (mean fraction)"] = score
    return {name: value for name, value in rows.items() if value is not None}


def reading_notes(outcome: BenchResults) -> list[str]:
    """Sentences about the number of tokens that core measured on and left alone."""
    lines: dict[str, None] = {}
    for results in outcome.results.values():
        if core := results.get("core"):
            stats, ours = metrics(core, "token_stats"), core["eval_result_unstructured"]
            line = (
                f"core: measured on {stats['total_tokens_eval_sparsity_variance']:,} tokens of {ours['text']}, CE and KL "
                f"on {stats['total_tokens_eval_reconstruction']:,}"
            )
            if left_out := ours.get("left_out"):
                line += (
                    f"; training leaves out {left_out:,} of these tokens. CE and KL keep their "
                    "original activations, and our metrics skip them"
                )
            lines[line] = None
    return list(lines)


def _table(corner: str, values: Values, digits: str) -> str:
    """A table of values in the format `digits`, with `corner` as the first column's head."""
    names = dict.fromkeys(name for rows in values.values() for name in rows)
    lines = [
        [name, *(f"{rows[name]:{digits}}" if name in rows else "-" for rows in values.values())]
        for name in names
    ]
    return text_table([corner, *values], lines)
