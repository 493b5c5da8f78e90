"""What decides: the rule that chooses one setting, and the tests of the confirmation. See PROTOCOL.md."""

import statistics
from dataclasses import dataclass
from typing import Any

from experiments.paired_tests import holm, sign_flip
from experiments.reproducibility.settings import BOTH, CONFIRM, PENALTY, RIVALS, SAMPLED, TOP_K

Row = dict[str, Any]
SEARCH_SEEDS = (900, 901)
CONFIRM_PAIRS = tuple((seed, seed + 1) for seed in range(1000, 1014, 2))
LENGTH_PAIRS = tuple((seed, seed + 1) for seed in range(2000, 2004, 2))
PRIMARY, MARGIN, LEVEL = "less_null", 0.01, 0.05
NO_WORSE = {
    "fve": (1, 0.005),
    "frac_recovered": (1, 0.005),
    "near_dead_0.1": (-1, 0.01),
    "near_dead_0.5": (-1, 0.01),
    "sae_probes": (1, 0.01),
}
"""What may not be worse than TopK's: 1 where more is better and -1 where less is, and by how much."""
FVE_KEPT, NEAR_DEAD_KEPT = 0.002, 0.01
"""How far below TopK's FVE the chosen setting may be in the search, and above its near-dead."""
RIVAL_FVE_KEPT = 0.005


@dataclass(frozen=True)
class Verdict:
    """An arm at a setting, over the pairs that were run."""

    pairs: int
    over: dict[str, list[float]]
    """By the arm compared with: the differences of the primary measure, pair by pair."""
    p: float
    """Of noise and penalty the larger of the two tests' p, of other arms that of the test against TopK;
    1 before all pairs are there."""
    no_worse: dict[str, float]
    """p of "no worse than TopK" by measure; a measure that was not taken is missing."""


def means(rows: list[Row], arm: str, measure: str) -> list[float]:
    """One number a part: the pair's, or the mean of its two SAEs'."""
    by_part: dict[str, list[float]] = {}
    for row in rows:
        if row["arm"] == arm and measure in row:
            by_part.setdefault(row["part"], []).append(row[measure])
    return [statistics.mean(values) for _, values in sorted(by_part.items())]


def parts_of(content: dict[str, Any], stage: str, name: str) -> list[Row]:
    """All rows of a stage at a setting, pairs' and SAEs'."""
    start = f"{stage}: {name}: "
    return [row for row in content["pairs"] + content["saes"] if row["part"].startswith(start)]


def chosen(content: dict[str, Any]) -> str | None:
    """The sampled candidate with the highest primary measure among those that keep TopK's FVE and
    near-dead; None if none does, or before all of them have been searched."""
    rows = parts_of(content, "search", "search")
    there = {row["arm"] for row in rows}
    if not {TOP_K, *SAMPLED} <= there:
        return None
    fve = _mean(rows, TOP_K, "fve") - FVE_KEPT
    dead = _mean(rows, TOP_K, "near_dead_0.1") + NEAR_DEAD_KEPT
    kept = [
        arm
        for arm in SAMPLED
        if _mean(rows, arm, "fve") >= fve and _mean(rows, arm, "near_dead_0.1") <= dead
    ]
    return max(kept, key=lambda arm: _mean(rows, arm, PRIMARY)) if kept else None


def best_rival(content: dict[str, Any]) -> str | None:
    """The rival with the highest primary measure among those that keep TopK's FVE; None before all
    rivals are there."""
    rows = parts_of(content, "search", "search")
    if not {TOP_K, *RIVALS} <= {row["arm"] for row in rows}:
        return None
    fve = _mean(rows, TOP_K, "fve") - RIVAL_FVE_KEPT
    kept = [arm for arm in RIVALS if _mean(rows, arm, "fve") >= fve]
    return max(kept, key=lambda arm: _mean(rows, arm, PRIMARY)) if kept else None


def _mean(rows: list[Row], arm: str, measure: str) -> float:
    return statistics.mean(means(rows, arm, measure))


def verdict(rows: list[Row], arm: str) -> Verdict | None:
    """An arm's at a setting; None before it has a pair."""
    values = means(rows, arm, PRIMARY)
    if not values:
        return None
    others = [other for other in (TOP_K, PENALTY) if means(rows, other, PRIMARY)]
    over = {other: paired(rows, arm, other, PRIMARY) for other in others}
    is_whole = len(values) == len(CONFIRM_PAIRS)
    tested = over if arm == BOTH else {other: over[other] for other in over if other == TOP_K}
    tests = [sign_flip([d - MARGIN for d in differences]) for differences in tested.values()]
    no_worse = {}
    for measure, (sign, margin) in NO_WORSE.items():
        if len(means(rows, arm, measure)) == len(values):
            differences = paired(rows, arm, TOP_K, measure)
            no_worse[measure] = sign_flip([sign * d + margin for d in differences])
    return Verdict(len(values), over, max(tests) if is_whole else 1.0, no_worse)


def paired(rows: list[Row], arm: str, other: str, measure: str) -> list[float]:
    """What an arm has more than another, in each part that both have."""
    both = [{row["part"] for row in rows if row["arm"] == name} for name in (arm, other)]
    there = [row for row in rows if row["part"] in both[0] & both[1]]
    own, theirs = means(there, arm, measure), means(there, other, measure)
    return [a - b for a, b in zip(own, theirs, strict=True)]


def verdicts(content: dict[str, Any], arm: str) -> dict[str, Verdict | None]:
    """An arm's at every setting of the confirmation."""
    return {name: verdict(parts_of(content, "confirm", name), arm) for name in CONFIRM}


def corrected(found: dict[str, Verdict | None]) -> dict[str, float]:
    """Holm's correction over all six settings; one that is not whole counts with p = 1."""
    return holm({name: 1.0 if own is None else own.p for name, own in found.items()})


def passes(own: Verdict | None, p: float) -> bool:
    """Whether an arm passes at a setting, by what was measured there."""
    return own is not None and p <= LEVEL and all(q <= LEVEL for q in own.no_worse.values())
