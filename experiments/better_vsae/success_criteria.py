"""What decides in search_and_confirm.py: the measures, their margins, the rule that picks, the tests.

All of it was committed before the confirmation of a size ran, except for what RESULTS.md names.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.better_vsae.candidates import SIZES
from experiments.pages import LABELS
from experiments.paired_tests import holm, sign_flip

SEARCH_SEEDS, CONFIRM_SEEDS = (100, 101), (0, 1, 2, 3, 4, 5, 6, 7)
LEVEL = 0.05


@dataclass(frozen=True)
class Measure:
    """A metric that the goal, or its discussion, looks at."""

    sign: int
    """1 where more is better, -1 where less is."""
    margin: float
    """Within so much of TopK's it is "no worse"."""


MEASURES = {
    "fve": Measure(1, 0.005),
    "frac_recovered": Measure(1, 0.005),
    "near_dead_0.1": Measure(-1, 0.01),
    "near_dead_0.5": Measure(-1, 0.01),
    "agreement": Measure(1, 0.01),
    "excess": Measure(1, 0.01),
    "stability_rms": Measure(1, 0.01),
    "scr": Measure(1, 0.05),
    "scr_matched": Measure(1, 0.05),
    "tpp": Measure(1, 0.02),
    "tpp_matched": Measure(1, 0.02),
}
FAMILIES = {
    "near-dead": ("near_dead_0.1", "near_dead_0.5"),
    "SCR": ("scr", "scr_matched"),
    "TPP": ("tpp",),
    "agreement of seeds": ("agreement",),
}
"""The goal's own measures; a family's members measure much the same. The goal: no worse than TopK on all,
and better than both TopK and point in two families."""
NO_WORSE = tuple(name for family in FAMILIES.values() for name in family)
OF_PAIRS = ("agreement", "excess")
"""Measured between two seeds' SAEs."""


def means_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By model, each metric's mean over seeds."""
    found: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        names = [n for n in (*MEASURES, "within", "noise_to_signal") if own[0].get(n) is not None]
        found[model] = {name: statistics.mean(row[name] for row in own) for name in names}
    return found


def pick(rows: list[dict[str, Any]], size: str) -> str:
    """The sampled candidate for a size, by the search's seeds alone.

    Of those whose mean FVE is within 0.6 of its margin of TopK's, the one whose near-dead at both
    thresholds and agreement improve most, in units of their margins.
    """
    means = means_of([row for row in rows if (row["stage"], row["size"]) == ("search", size)])
    best, best_gain = "", -np.inf
    for model, own in means.items():
        loss = means["TopK"]["fve"] - own["fve"]
        if own["noise_to_signal"] < 0.01 or loss > 0.6 * MEASURES["fve"].margin:
            continue
        gain = sum(
            measure.sign * (own[name] - means["TopK"][name]) / measure.margin
            for name, measure in MEASURES.items()
            if name in ("near_dead_0.1", "near_dead_0.5", "agreement")
        )
        if gain > best_gain:
            best, best_gain = model, gain
    if not best:
        raise SystemExit(
            f"{size}: no sampled candidate keeps TopK's FVE; add weaker ones to SEARCHED in candidates.py"
        )
    return best


def merged(rows: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """A size's confirmation, with SAE Bench's metrics where they were measured."""
    own = [row for row in rows if row["size"] == size]
    benched = {(row["model"], row["seed"]): row for row in own if row["stage"] == "bench"}
    return [
        benched.get((row["model"], row["seed"]), {})
        | row
        | {"excess": row["agreement"] - row["within"]}
        for row in own
        if row["stage"] == "confirm"
    ]


def paired(rows: list[dict[str, Any]], name: str, model: str, other: str) -> list[float]:
    """Model minus other, seed by seed, signed so that more is better.

    A metric between two seeds' SAEs is taken only from pairs that share no SAE with an earlier pair:
    the others are not independent.
    """
    by_seed = {(row["model"], row["seed"]): row for row in rows}
    seeds, used = [], set()
    for seed in CONFIRM_SEEDS:
        pair = {seed, by_seed[model, seed]["partner"]} if name in OF_PAIRS else {seed}
        if not pair & used:
            seeds.append(seed)
            used |= pair
    sign = MEASURES[name].sign
    return [sign * (by_seed[model, s][name] - by_seed[other, s][name]) for s in seeds]


def verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each measure of one size's confirmation: differences, and what the tests say of them.

    No worse than TopK: one-sided sign-flip test of difference + margin, uncorrected (all must hold).
    Better: the larger p of the tests against TopK and against point, Holm over NO_WORSE.
    """
    names = [name for name in MEASURES if all(row.get(name) is not None for row in rows)]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        margin = MEASURES[name].margin
        over = {other: paired(rows, name, "sampled", other) for other in ("TopK", "point")}
        found[name] = {
            "over": over,
            "no_worse": sign_flip([value + margin for value in over["TopK"]]),
            "better": max(sign_flip(values) for values in over.values()),
        }
    corrected = holm({name: found[name]["better"] for name in names if name in NO_WORSE})
    for name, p in corrected.items():
        found[name]["corrected"] = p
    return found


def is_reached(found: dict[str, dict[str, Any]]) -> bool | None:
    """The goal at one size: no worse on all, better in two families; None if that is still open."""
    needed = ("fve", *NO_WORSE)
    if any(found[name]["no_worse"] > LEVEL for name in needed if name in found):
        return False
    if any(name not in found for name in needed):
        return None
    families = [
        family
        for family, names in FAMILIES.items()
        if any(found[name]["corrected"] <= LEVEL for name in names)
    ]
    return len(families) >= 2


def conclusion(found: dict[str, dict[str, Any]]) -> str:
    """Whether the goal is reached at one size, and why."""
    needed = ("fve", *NO_WORSE)
    missing = [LABELS[name] for name in needed if name not in found]
    measured = [name for name in needed if name in found]
    worse = [LABELS[n] for n in measured if found[n]["no_worse"] > LEVEL]
    better = [LABELS[n] for n in measured if found[n].get("corrected", 1.0) <= LEVEL]
    word = {True: "**reached**", False: "**missed**", None: "**open**"}[is_reached(found)]
    held = f"not shown on {', '.join(worse)}" if worse else "on all that was measured"
    unmeasured = f"; not measured: {', '.join(missing)}" if missing else ""
    return (
        f"Goal {word}. Better than both TopK and point on: {'; '.join(better) or 'nothing'}. No worse "
        f"than TopK within the margins: {held}{unmeasured}."
    )


def confirmed(rows: list[dict[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Of each size that was confirmed: the pick, and what the tests say."""
    sizes = [size for size in SIZES if any(merged(rows, size))]
    return {size: (pick(rows, size), verdicts(merged(rows, size))) for size in sizes}
