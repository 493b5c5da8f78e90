"""The rule of experiments/paper/PROTOCOL_BETA.md."""

import pytest

from experiments.paper.beta import BETAS, verdict, with_losses


def rows(**by_beta):
    """Two seeds of TopK, alive 0.9 and FVE 0.95, and of an arm: its (alive, FVE) of each seed, by beta."""
    place = {"scale": "unit", "multiple": 16}
    found = [
        {"arm": "TopK", "beta": None, "alive": 0.9, "fve": 0.95, "seed": seed} | place
        for seed in (0, 1)
    ]
    for beta in BETAS:
        for seed, (alive, fve) in enumerate(by_beta.get(f"at_{beta:g}", [(0.9, 0.94)] * 2)):
            found.append(
                {"arm": "a", "beta": beta, "alive": alive, "fve": fve, "seed": seed} | place
            )
    return [row for row in with_losses(found) if row["arm"] == "a"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "does not hold"),
        ({"at_50": [(0.2, 0.92), (0.5, 0.92)]}, "does not hold"),  # one seed is not enough
        ({"at_50": [(0.2, 0.1), (0.2, 0.92)]}, "holds in part"),
        ({"at_50": [(0.2, 0.92), (0.2, 0.91)], "at_100": [(0.1, 0.0)] * 2}, "holds** at beta 50"),
    ],
)
def test_a_claim_holds_where_both_seeds_lose_features_and_little_else(given, says):
    assert says in verdict(rows(**given))
