"""The follow-up: with more noise, does a vSAE return as much as the best rival, at the rival's FVE? See
PROTOCOL.md.
"""

import statistics
from dataclasses import dataclass
from typing import Any

from experiments.paired_tests import holm, sign_flip
from experiments.reproducibility import decisions, parts
from experiments.reproducibility.decisions import (
    CONFIRM_PAIRS,
    NEAR_DEAD_KEPT,
    PRIMARY,
    means,
    paired,
    parts_of,
)
from experiments.reproducibility.settings import (
    BOTH,
    CONFIRM,
    RIVAL,
    RIVALS,
    SAMPLED,
    TOP_K,
    Options,
)

STRONGER = "stronger noise"
"""The follow-up's arm, beside those of the confirmation."""
SEARCH_SEEDS = (910, 911)
CANDIDATES: dict[str, Options] = {
    f"noise {noise:g} until {until:.0%}, penalty {penalty:g}": {
        "noise": noise,
        "until": until,
        "penalty": penalty,
    }
    for noise in (0.3, 0.6, 1.0)
    for until in (0.5, 0.8)
    for penalty in (0.03, 0.1)
}
SETTINGS = [
    name
    for name, s in CONFIRM.items()
    if s.cache == "embedded" and s.dict_size == 4 * s.activation_dim
]
MEASURES = (PRIMARY, "fve")
"""Tested against the rival."""


@dataclass(frozen=True)
class AgainstRival:
    """The chosen candidate at a setting: what it has more than the best rival, pair by pair."""

    over: dict[str, list[float]]
    """By measure."""
    ahead: dict[str, float]
    """p of "more than the rival's", corrected over the settings; 1 before all pairs are there."""
    behind: dict[str, float]
    """The same of "less"."""


def search(rival: str) -> None:
    """One pair of every candidate, of TopK and of the rival."""
    arms = {TOP_K: {}, RIVAL: RIVALS[rival]} | CANDIDATES
    parts.run_part("stronger", "search", CONFIRM[SETTINGS[0]], arms, SEARCH_SEEDS)


def arm_of(candidate: str, confirmed: str) -> str:
    """The arm whose rows are a candidate's: its own, or the confirmation's if that has the same setting.

    Arguments:
        confirmed: the study's own choice.
    """
    setting = CONFIRM[SETTINGS[0]]
    same = setting.sae(CANDIDATES[candidate], 0) == setting.sae(SAMPLED[confirmed], 0)
    return BOTH if same else STRONGER


def is_again(content: dict[str, Any]) -> bool:
    """Whether the follow-up chose what the study had chosen."""
    found, confirmed = chosen(content), decisions.chosen(content)
    if found is None or confirmed is None:
        return False
    return arm_of(found, confirmed) == BOTH


def confirm(chosen: str, confirmed: str, pairs: int) -> None:
    """The candidate on the confirmation's seeds, beside the arms that have their rows there."""
    if arm_of(chosen, confirmed) == BOTH:
        return
    for name in SETTINGS:
        for seeds in CONFIRM_PAIRS[:pairs]:
            parts.run_part("confirm", name, CONFIRM[name], {STRONGER: CANDIDATES[chosen]}, seeds)


def searched(content: dict[str, Any]) -> list[decisions.Row]:
    return parts_of(content, "stronger", "search")


def chosen(content: dict[str, Any]) -> str | None:
    """The candidate with the highest primary measure among those with at least the rival's FVE, and no
    more near-dead than the study's own choice might have; None if none has, or before the search is whole.
    """
    rows = searched(content)
    if not {TOP_K, RIVAL, *CANDIDATES} <= {row["arm"] for row in rows}:
        return None

    def of(arm: str, measure: str) -> float:
        return statistics.mean(means(rows, arm, measure))

    dead = of(TOP_K, "near_dead_0.1") + NEAR_DEAD_KEPT
    kept = [
        arm
        for arm in CANDIDATES
        if of(arm, "fve") >= of(RIVAL, "fve") and of(arm, "near_dead_0.1") <= dead
    ]
    return max(kept, key=lambda arm: of(arm, PRIMARY)) if kept else None


def against_rival(content: dict[str, Any]) -> dict[str, AgainstRival]:
    """The chosen candidate by setting, those where it has rows. Empty before one is chosen."""
    found, confirmed = chosen(content), decisions.chosen(content)
    if found is None or confirmed is None:
        return {}
    arm = arm_of(found, confirmed)
    rows = {name: parts_of(content, "confirm", name) for name in SETTINGS}
    over = {n: {m: paired(rows[n], arm, RIVAL, m) for m in MEASURES} for n in SETTINGS}
    ahead, behind = (
        {measure: holm({n: _p(over[n][measure], sign) for n in SETTINGS}) for measure in MEASURES}
        for sign in (1, -1)
    )
    return {
        name: AgainstRival(
            over[name],
            {m: ahead[m][name] for m in MEASURES},
            {m: behind[m][name] for m in MEASURES},
        )
        for name in SETTINGS
        if over[name][PRIMARY]
    }


def _p(differences: list[float], sign: int) -> float:
    if len(differences) < len(CONFIRM_PAIRS):
        return 1.0
    return sign_flip([sign * d for d in differences])
