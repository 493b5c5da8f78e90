"""The study of the return score: what passes, the AUC of an order, and how far a fit may shrink."""

import numpy as np
import pytest

from experiments.return_score.fitting import Step, auc, smallest
from experiments.return_score.page import passes


def rows(value, single=0.7, rate=0.5):
    return [{"auc": value, "alone": {"margin": single, "firing_rate": rate}}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([rows(0.85), rows(0.80)], True),
        ([rows(0.85), rows(0.79)], False),
        ([rows(0.85), rows(0.85, single=0.81)], False),
        ([rows(0.85), rows(0.85, rate=0.81)], False),
        ([rows(0.70) + rows(0.92)], True),  # the mean of a pair's two SAEs
        ([], False),
    ],
)
def test_an_arm_passes_in_every_pair_or_not_at_all(parts, expected):
    assert passes({str(i): each for i, each in enumerate(parts)}, "margin") is expected


def test_auc_is_the_share_of_pairs_in_order_and_what_has_no_value_comes_last():
    rng = np.random.default_rng(0)
    order = rng.integers(0, 5, 30).astype(float)
    order[:4] = np.nan
    returns = rng.random((2, 30)) < 0.4
    value = np.where(np.isnan(order), -1.0, order)
    expected = [
        np.mean([(a > b) + 0.5 * (a == b) for a in value[label] for b in value[~label]])
        for label in returns
    ]
    assert auc(order, returns) == pytest.approx(np.mean(expected))


def test_the_smallest_set_is_the_last_that_keeps_the_auc():
    path = [Step([*"abc"], {"x": 0.9}), Step([*"ab"], {"x": 0.895}), Step(["a"], {"x": 0.88})]
    assert smallest(path) == ["a", "b"]
