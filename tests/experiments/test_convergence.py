"""The comparison at convergence: which candidates are chosen, and which arm wins."""

import pytest

from experiments.reproducibility.convergence import (
    ARMS,
    BOTH,
    CANDIDATES,
    NOISE,
    PAIRS,
    PROBABILISTIC,
    TOP_K,
    chosen,
    winner,
)


def rows_of(part, arm, fve, less_null):
    return [{"part": part, "arm": arm, "fve": fve, "less_null": less_null}]


def tuning(special):
    """All candidates with an FVE of 0.8 and no return, but for those in `special`: FVE, return."""
    pairs = []
    for own in CANDIDATES.values():
        for name in own:
            pairs += rows_of("tuning: tuning: 0, 1", name, *special.get(name, (0.8, 0.0)))
    return {"pairs": pairs, "saes": []}


def test_an_arm_is_tuned_for_return_among_those_that_keep_fve():
    top_k, noise, both, _ = (list(CANDIDATES[arm]) for arm in ARMS)
    content = tuning(
        {
            top_k[0]: (0.9000, 0.1),  # the best FVE
            top_k[1]: (0.8991, 0.2),
            top_k[2]: (0.8989, 0.3),
            noise[0]: (0.8980, 0.4),  # more than 0.001 below the chosen TopK
            noise[1]: (0.8982, 0.3),
            noise[2]: (0.9990, 0.2),
            both[0]: (0.8900, 0.1),  # nothing of this arm keeps FVE
            both[1]: (0.8890, 0.9),
        }
    )
    found = chosen(content)
    assert (found[TOP_K], found[NOISE], found[BOTH]) == (top_k[1], noise[1], both[0])
    content["pairs"].pop()
    assert chosen(content) is None


def pairs_of(**arms):
    """The rows of all pairs of TopK, and of the other arms where they differ from it."""
    fve, returns = dict.fromkeys(ARMS, 0.9), dict.fromkeys(ARMS, [0.1] * len(PAIRS))
    named = {"noise": NOISE, "both": BOTH, "probabilistic": PROBABILISTIC}
    for name, (own_fve, own_returns) in arms.items():
        fve[named[name]], returns[named[name]] = own_fve, own_returns
    return [
        row
        for i in range(len(PAIRS))
        for arm in ARMS
        for row in rows_of(str(i), arm, fve[arm], returns[arm][i])
    ]


MORE, MOST, MIXED = [0.2] * len(PAIRS), [0.3] * len(PAIRS), [0.3] * (len(PAIRS) - 1) + [0.1]


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({}, None),
        ({"noise": (0.9, MORE)}, NOISE),
        ({"noise": (0.9, MORE), "both": (0.9, MOST)}, BOTH),
        ({"noise": (0.9, MORE), "both": (0.9, MIXED)}, None),  # behind in one pair
        ({"noise": (0.9, MORE), "probabilistic": (0.8985, MOST)}, NOISE),  # doesn't keep FVE
        ({"noise": (0.8985, MORE)}, TOP_K),
    ],
)
def test_the_winner_returns_more_in_every_pair_at_top_k_s_fve(arms, expected):
    if expected == TOP_K:  # the others that keep FVE return less
        arms |= {name: (0.9, [0.0] * len(PAIRS)) for name in ("both", "probabilistic")}
    assert winner(pairs_of(**arms)) == expected
    assert winner(pairs_of(**arms)[: -len(ARMS)]) is None  # a pair is missing
