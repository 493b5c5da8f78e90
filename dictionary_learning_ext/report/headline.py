"""The table at the top of a report: each metric of every SAE."""

from dataclasses import dataclass

from ..evaluation.metrics import shown_in
from ..features.geometry import Geometry
from .analysis import Analysis, Comparison

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


def _geometry(analysis: Analysis) -> Geometry:
    assert analysis.geometry is not None  # only asked for where there is a map
    return analysis.geometry
