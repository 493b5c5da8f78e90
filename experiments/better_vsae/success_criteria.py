"""What decides in better_vsae.py: the measures, their margins, the rule that picks, and the tests.

All of it was committed before the confirmation of a size ran, but for what RESULTS.md names.
"""

import statistics
from typing import Any

import numpy as np

from experiments.better_vsae.candidates import SIZES
from experiments.paired_tests import holm, sign_flip
from experiments.trained_saes import FIGURES

SEARCH_SEEDS, CONFIRM_SEEDS = (100, 101), (0, 1, 2, 3, 4, 5, 6, 7)
LEVEL = 0.05

# Each measure: where more is better its sign is 1; the margin within which it is "no worse".
MEASURES: dict[str, tuple[str, int, float]] = {
    "fve": (FIGURES["fve"], 1, 0.005),
    "frac_recovered": (FIGURES["frac_recovered"], 1, 0.005),
    "near_dead_0.1": (FIGURES["near_dead_0.1"], -1, 0.01),
    "near_dead_0.5": (FIGURES["near_dead_0.5"], -1, 0.01),
    "agreement": (FIGURES["agreement"], 1, 0.01),
    "excess": ("agreement - within", 1, 0.01),
    "stability_rms": (FIGURES["stability_rms"], 1, 0.01),
    "scr": ("SCR, N = 2 and 5", 1, 0.05),
    "scr_matched": ("SCR, size-matched", 1, 0.05),
    "tpp": ("TPP, all N", 1, 0.02),
    "tpp_matched": ("TPP, size-matched", 1, 0.02),
}
FAMILIES = {
    "near-dead": ("near_dead_0.1", "near_dead_0.5"),
    "SCR": ("scr", "scr_matched"),
    "TPP": ("tpp",),
    "agreement of seeds": ("agreement",),
}
"""The goal's own measures, those that measure much the same together: no worse than TopK on all, better
than TopK and point in two families."""
NO_WORSE = tuple(name for family in FAMILIES.values() for name in family)
OF_PAIRS = ("agreement", "excess")
"""Measured between two seeds' SAEs."""


def means_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By model, each figure's mean over seeds."""
    found: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        figures = [n for n in (*MEASURES, "within", "noise_to_signal") if own[0].get(n) is not None]
        found[model] = {name: statistics.mean(row[name] for row in own) for name in figures}
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
        if own["noise_to_signal"] < 0.01 or loss > 0.6 * MEASURES["fve"][2]:
            continue
        gain = sum(
            sign * (own[name] - means["TopK"][name]) / margin
            for name, (_, sign, margin) in MEASURES.items()
            if name in ("near_dead_0.1", "near_dead_0.5", "agreement")
        )
        if gain > best_gain:
            best, best_gain = model, gain
    if not best:
        raise SystemExit(
            f"{size}: no sampled candidate keeps TopK's FVE; add weaker ones to SEARCHED"
        )
    return best


def merged(rows: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """A size's confirmation, with SAE Bench's figures where they were had."""
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

    Of what is measured between two seeds' SAEs, only pairs of which no SAE is in an earlier one: the
    others are not independent.
    """
    by_seed = {(row["model"], row["seed"]): row for row in rows}
    seeds, used = [], set()
    for seed in CONFIRM_SEEDS:
        pair = {seed, by_seed[model, seed]["partner"]} if name in OF_PAIRS else {seed}
        if not pair & used:
            seeds.append(seed)
            used |= pair
    sign = MEASURES[name][1]
    return [sign * (by_seed[model, s][name] - by_seed[other, s][name]) for s in seeds]


def verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each measure of one size's confirmation: differences, and what the tests say of them.

    No worse than TopK: one-sided sign-flip test of difference + margin, uncorrected (all must hold).
    Better: the larger p of the tests against TopK and against point, Holm over NO_WORSE.
    """
    names = [name for name in MEASURES if all(row.get(name) is not None for row in rows)]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        margin = MEASURES[name][2]
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
    missing = [MEASURES[name][0] for name in needed if name not in found]
    measured = [name for name in needed if name in found]
    worse = [MEASURES[n][0] for n in measured if found[n]["no_worse"] > LEVEL]
    better = [MEASURES[n][0] for n in measured if found[n].get("corrected", 1.0) <= LEVEL]
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
