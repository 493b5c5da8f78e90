"""What a report found, in a few sentences and one table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import in_shell
from ..evaluation.comparison import MATCHED
from ..evaluation.metrics import NOT_MEASURED, shown_in
from ..evaluation.tables import setting_text
from ..run_folder.matching import SEEDS, measurements, only_posteriors_differ, training, unequal
from .analysis import LEAST_SELECTIONS, Analysis, Comparison

STAR_MARGIN = 0.1
"""An SAE whose FVE is further than this below the highest gets no star."""


@dataclass(frozen=True)
class HeadlineRow:
    """One metric of every SAE."""

    name: str
    explanation: str
    cells: list[str]
    best: list[bool]
    """Which cells get a star: the best, but none if all are equal or there is no better or worse."""
    notes: list[str] | None = None
    """A small note under each cell."""


def table(comparison: Comparison) -> list[HeadlineRow]:
    """The rows of the headline table, with a dash for a folder that was not evaluated."""
    analyses = comparison.analyses
    reconstructs = _reconstructs(analyses)
    rows = []
    for metric in shown_in("report"):
        values = [one.metrics.get(metric.key) for one in analyses]
        cells = [metric.text(value, missing="–") for value in values]
        best_cell = metric.text(metric.best(values), missing="")
        best = [cell == best_cell for cell in cells]
        has_star = sum(value is not None for value in values) > 1 and not all(best)
        rows.append(
            HeadlineRow(
                metric.title or metric.label,
                metric.in_words or metric.definition,
                cells,
                [has_star and a and b for a, b in zip(best, reconstructs, strict=True)],
            )
        )
    alive = [
        f"{int(one.statistics.alive_F.sum())} of {len(one.statistics.alive_F)}" for one in analyses
    ]
    none = [False] * len(analyses)
    tokens = analyses[0].statistics.tokens
    rows.append(
        HeadlineRow(
            "Alive",
            f"features selected at least once in these {tokens:,} tokens",
            alive,
            none,
        )
    )
    if comparison.no_map is None:
        found = [_geometry(one).dispersion for one in analyses]
        spread = [f"{mean:.3f}" for mean, _, _ in found]
        intervals = [f"{low:.3f} to {high:.3f}" for _, low, high in found]
        even = [f"{_geometry(one).evenness:.3f}" for one in analyses]
        n = len(_geometry(analyses[0]).features)
        rows += [
            HeadlineRow(
                "Dispersion",
                "mean cosine distance from a feature's direction to the nearest other one, over "
                f"the {n} features on the map, with its 95% bootstrap interval",
                spread,
                none,
                intervals,
            ),
            HeadlineRow(
                "Evenness of use",
                f"effective share of the {n} features on the map: 1 if all are selected equally often",
                even,
                none,
            ),
        ]
    return rows


def _reconstructs(analyses: list[Analysis]) -> list[bool]:
    """Whether each SAE's FVE is near the highest.

    An SAE that hardly reconstructs often has few dead features and a stable selection. These mean
    nothing then.
    """
    fve = [one.metrics.get("fve") for one in analyses]
    highest = max((value for value in fve if value is not None), default=0.0)
    return [value is not None and value >= highest - STAR_MARGIN for value in fve]


def sentences(comparison: Comparison) -> list[str]:
    """What a newcomer should know first; plain text."""
    return [
        *_on_reconstruction(comparison.analyses),
        *_on_unmatched_settings(comparison.analyses),
        _on_dead_features(comparison.analyses),
        *_on_readable_features(comparison.analyses),
        *_on_sinks(comparison),
    ]


def _on_reconstruction(analyses: list[Analysis]) -> list[str]:
    measured = [one for one in analyses if one.metrics.get("fve") is not None]
    if not measured:
        first = analyses[0]
        if reason := first.metrics.get(NOT_MEASURED, {}).get("fve"):
            return [f"How well {first.label} reconstructs was not measured: {reason}."]
        return [
            f"{first.label} has not been evaluated. Run “vsae eval {in_shell(first.folder)}” to measure how "
            "well it reconstructs."
        ]
    best = max(measured, key=lambda one: one.metrics["fve"])
    words = f"{best.label} explains {_percent(best.metrics['fve'])} of the activations' variance"
    if best.metrics.get("l0") is not None:
        words += f" with {best.metrics['l0']:.0f} features per token"
    others = [
        f"{_percent(one.metrics['fve'])} for {one.label}" for one in measured if one is not best
    ]
    said = [words + (f", compared with {_listed(others)}." if others else ".")]
    if best.metrics.get("frac_recovered") is not None:
        said.append(
            f"When {best.label}'s reconstructions replace the activations, the language model keeps "
            f"{_percent(best.metrics['frac_recovered'])} of its performance, on a scale where "
            "replacing them with zeros keeps none."
        )
    l0s = {one.label: one.metrics.get("l0") for one in measured}
    features = {label: l0 for label, l0 in l0s.items() if l0 is not None}
    if features and max(features.values()) > 2 * min(features.values()):
        used = [f"{label} uses {l0:.0f}" for label, l0 in features.items()]
        said.append(
            "Most rows below can't be compared, because the SAEs are not equally sparse: "
            f"{_listed(used)} features per token."
        )
    return said


def _on_unmatched_settings(analyses: list[Analysis]) -> list[str]:
    """In what the SAEs were trained and measured differently, if in anything."""
    trained = training({one.label: one.config for one in analyses})
    measured = measurements({one.label: one.metrics for one in analyses if one.metrics})
    said = []
    if any(name in unequal(list(trained.values())) for name in SEEDS):
        said.append("The SAEs were trained with different seeds.")
    unseeded = [{n: v for n, v in each.items() if n not in SEEDS} for each in trained.values()]
    different = _different(unseeded)
    if only_posteriors_differ(list(trained.values())):
        said.append(
            f"{MATCHED} Their posteriors differ: {_listed(different)} (in the order of the table)."
        )
    elif different:
        said.append(
            "This is not a matched comparison. Besides the architecture, the SAEs differ in "
            f"{_listed(different)} (in the order of the table)."
        )
    if different := _different(measured.values()):
        said.append(
            f"Their metrics were measured under different conditions ({_listed(different)}), so they "
            "can't be compared."
        )
    return said


def _different(all_settings: Iterable[dict[str, Any]]) -> list[str]:
    """The settings that differ, each with its values in the order of the SAEs."""
    every = list(all_settings)
    return [
        f"{name} ({' | '.join(setting_text(settings.get(name)) for settings in every)})"
        for name in unequal(every)
    ]


def _on_dead_features(analyses: list[Analysis]) -> str:
    dead = [float(1 - one.statistics.alive_F.double().mean()) for one in analyses]
    if max(dead) < 0.01:
        whose = "its" if len(analyses) == 1 else "each SAE's"
        return f"Almost no features are dead: over 99% of {whose} features fire in this text."
    shares = [f"{_percent(d)} of {one.label}'s" for d, one in zip(dead, analyses, strict=True)]
    return f"Features that never fire in this text: {_listed(shares)}."


def _on_readable_features(analyses: list[Analysis]) -> list[str]:
    shares = {one.label: _readable_share(one) for one in analyses}
    label = max(shares, key=lambda label: shares[label])
    if shares[label] == 0:
        return []
    others = [f"{other}: {_percent(share)}" for other, share in shares.items() if other != label]
    beside = f" ({', '.join(others)})" if others else ""
    return [
        f"{_percent(shares[label])} of {label}'s features fire mostly on one token{beside}: "
        "it is at least half of a random sample of what they fire on. Features that fire fewer than "
        f"{LEAST_SELECTIONS} times are not counted."
    ]


def _on_sinks(comparison: Comparison) -> list[str]:
    sinks = comparison.sinks
    if sinks is None:
        return []
    shares = [
        f"{_percent(share)} of {one.label}'s features"
        for one, share in zip(comparison.analyses, sinks.strongest, strict=True)
    ]
    return [
        f"{sinks.tokens:,} tokens are outliers ({sinks.where}): the norms of their activations are "
        f"up to {sinks.norm_ratio:,.0f} times the median. They are the strongest contexts of "
        f"{_listed(shares)}. This page leaves them out, except for the metrics of the evaluation "
        "and the training curves."
    ]


def _readable_share(analysis: Analysis) -> float:
    """Share of features, of those selected often enough, half of whose sampled tokens are one."""
    contexts = analysis.statistics.sampled
    is_frequent_F = analysis.statistics.count_F >= LEAST_SELECTIONS
    ids_FT = contexts.ids_FTW[:, :, contexts.at][is_frequent_F]
    if not len(ids_FT):
        return 0.0
    same_FTT = (ids_FT[:, :, None] == ids_FT[:, None, :]) & (ids_FT >= 0)[:, None, :]
    most_F = same_FTT.sum(2).max(1).values
    return float((2 * most_F >= ids_FT.shape[1]).double().mean())


def _listed(parts: list[str]) -> str:
    """Joined by commas and a last "and"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _geometry(analysis: Analysis):
    assert analysis.geometry is not None  # only asked for where there is a map
    return analysis.geometry
