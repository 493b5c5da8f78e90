"""Features that return, by other thresholds than 0.7, and without those that are near-dead."""

import statistics
from typing import Any

import numpy as np

from experiments.pages import table
from experiments.reproducibility.decisions import Row, means, parts_of
from experiments.reproducibility.settings import ARMS, CONFIRM

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def lines(content: dict[str, Any]) -> list[str]:
    """A table for each setting that has run."""
    found = []
    for name in CONFIRM:
        rows = parts_of(content, "confirm", name)
        known = {row["arm"] for row in rows if "matches" in row}
        there = [arm for arm in ARMS if arm in known]
        if there:
            cells = {arm: _cells(rows, arm) for arm in there}
            heads = [*(f"above {least:g}" for least in THRESHOLDS), "above 0.7, not near-dead"]
            found += [f"### {name}", "", *table("", cells, heads), ""]
    if not found:
        return []
    return [
        "## Other thresholds",
        "",
        "The share of features whose match is above; means over pairs. The last column is of the features that "
        "are not near-dead (< 0.1) alone: from the share if every near-dead feature returned, to the share if "
        "none did.",
        "",
        *found,
    ]


def _cells(rows: list[Row], arm: str) -> list[str]:
    matches = [row["matches"] for row in rows if row["arm"] == arm and "matches" in row]
    above = [statistics.mean(share_above(one, least) for one in matches) for least in THRESHOLDS]
    returning = statistics.mean(means(rows, arm, "returning_0.7"))
    least, most = among_living(returning, statistics.mean(means(rows, arm, "near_dead_0.1")))
    return [*(f"{share:.3f}" for share in above), f"{least:.3f} to {most:.3f}"]


def share_above(matches: list[int], least: float) -> float:
    """Of a histogram of matches from 0 to 1, whose bins begin at `least` too: the share above."""
    first = round(least * len(matches))
    return float(np.sum(matches[first:]) / np.sum(matches))


def among_living(returning: float, near_dead: float) -> tuple[float, float]:
    """The share of the features that are not near-dead that return: if all near-dead ones do, and if none
    does.

    Arguments:
        returning, near_dead: shares of all features.
    """
    living = 1 - near_dead
    return max(0.0, returning - near_dead) / living, min(1.0, returning / living)
