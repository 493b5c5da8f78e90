"""The study of relative noise: which candidates and which scale are chosen, and when a setting is satisfied."""

import pytest

from experiments.reproducibility import convergence, parts
from experiments.reproducibility.relative_noise import (
    CANDIDATES,
    NOISE,
    NORM,
    OWN,
    RELATIVE_BOTH,
    TOP_K,
    better_scale,
    chosen,
    satisfies,
    with_penalty,
)


def rows_of(part, arm, **measures):
    return {"part": part, "arm": arm} | measures


def tuning(named, special):
    """Candidates with an FVE of 0.8 and no return, but for those in `special`: FVE, return."""
    found = {name: special.get(name, (0.8, 0.0)) for name in named}
    return [
        rows_of("tuning: tuning: 0, 1", name, fve=fve, less_null=returns)
        for name, (fve, returns) in found.items()
    ]


@pytest.fixture
def content(monkeypatch):
    """A function: the search's raw results, with those of the first protocol's tuning in their place."""

    def make(**special):
        special = {name.replace("_", " "): value for name, value in special.items()}
        by_name = {name: special[key] for key, name in KEYS.items() if key in special}
        first = [name for own in convergence.CANDIDATES.values() for name in own]
        monkeypatch.setattr(
            parts, "read", lambda raw: {"saes": [], "pairs": tuning(first, by_name)}
        )
        now = [name for own in CANDIDATES.values() for name in own]
        return {"saes": [], "pairs": tuning(now, by_name)}

    return make


KEYS = {
    "old top k": next(iter(convergence.CANDIDATES[TOP_K])),
    "top k": next(iter(CANDIDATES[TOP_K])),
    "own": next(iter(CANDIDATES[OWN])),
    "own other": [*CANDIDATES[OWN]][1],
    "norm": next(iter(CANDIDATES[NORM])),
    "noise": next(iter(convergence.CANDIDATES[NOISE])),
}


def test_the_better_scale_returns_more_among_those_that_keep_the_chosen_top_ks_fve(content):
    found = content(top_k=(0.90, 0.1), own=(0.8995, 0.3), own_other=(0.898, 0.9), norm=(0.95, 0.2))
    assert better_scale(found) == (OWN, KEYS["own"])
    found = content(old_top_k=(0.91, 0.1), own=(0.8995, 0.3), norm=(0.95, 0.2))
    assert better_scale(found) == (NORM, KEYS["norm"]), "a TopK of the first tuning counts"
    found["pairs"].pop()
    assert better_scale(found) is not None, "it needs no other arm"
    found["pairs"] = [row for row in found["pairs"] if row["arm"] != KEYS["norm"]]
    assert better_scale(found) is None


def test_noise_and_penalty_is_searched_from_the_choice_of_the_better_scale(content):
    found = content(top_k=(0.90, 0.1), norm=(0.90, 0.2))
    named = with_penalty(found)
    scale = CANDIDATES[NORM][KEYS["norm"]]
    assert len(named) == 8
    assert all(own["relative"] == scale["relative"] for own in named.values())
    assert {own["penalty"] for own in named.values()} == {0.01, 0.03}
    assert chosen(found) is None, "not before it is searched, too"
    found["pairs"] += tuning(named, {[*named][3]: (0.9, 0.5)})
    choices = chosen(found)
    assert choices is not None
    assert OWN not in choices
    assert (choices[NORM], choices[RELATIVE_BOTH]) == (KEYS["norm"], [*named][3])


def of_pairs(arm, fve, same, dead):
    return [
        rows_of(str(i), arm, fve=fve, same=each, **{"near_dead_0.1": dead})
        for i, each in enumerate(same)
    ]


@pytest.mark.parametrize(
    ("own", "missed"),
    [
        ((0.8991, [0.4, 0.4], 0.029), set()),
        ((0.8989, [0.4, 0.4], 0.02), {"FVE"}),
        ((0.95, [0.4, 0.4], 0.031), {"near-dead"}),
        ((0.95, [0.9, 0.29], 0.0), {"same in every pair"}),
        ((0.95, [0.4], 0.0), set()),  # of the pairs that both have
    ],
)
def test_a_setting_is_satisfied_by_fve_near_dead_and_function(own, missed):
    rows = of_pairs(TOP_K, 0.9, [0.3, 0.3], 0.02) + of_pairs(OWN, *own)
    found = satisfies(rows, OWN)
    assert found is not None
    assert {what for what, holds in found.items() if not holds} == missed
    assert satisfies(rows, NORM) is None
