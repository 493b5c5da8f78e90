"""The study's returning features by other thresholds, and without near-dead ones."""

import pytest
from study_rows import NAME, confirmed

from experiments.reproducibility import thresholds
from experiments.reproducibility.parts import read
from experiments.reproducibility.settings import TOP_K


def test_a_share_is_of_the_bins_above():
    matches = [0] * 20
    matches[9], matches[10], matches[14], matches[19] = 1, 2, 3, 4
    assert thresholds.share_above(matches, 0.5) == 0.9
    assert thresholds.share_above(matches, 0.7) == 0.7
    assert thresholds.share_above(matches, 0.9) == 0.4


def test_at_07_and_09_it_is_what_was_measured():
    for row in read()["pairs"]:
        for least in (0.7, 0.9):
            share = thresholds.share_above(row["matches"], least)
            assert share == pytest.approx(row[f"returning_{least:g}"], abs=1e-9), row["part"]


def test_near_dead_features_bound_what_returns_of_the_others():
    """Of 10 features 4 return and 2 are near-dead: of the 8 others 2 to 4 do."""
    assert thresholds.among_living(0.4, 0.2) == pytest.approx((2 / 8, 4 / 8))
    assert thresholds.among_living(0.1, 0.2) == pytest.approx((0.0, 1 / 8))
    assert thresholds.among_living(0.9, 0.2) == pytest.approx((7 / 8, 1.0))


def test_a_setting_that_has_run_has_a_table():
    content = confirmed({TOP_K: 0.1}, **{TOP_K: {"near_dead_0.1": 0.5}})
    for row in content["pairs"]:
        row |= {"matches": [1] * 20, "returning_0.7": 0.3}
    found = thresholds.lines(content)
    assert f"### {NAME}" in found
    assert f"| {TOP_K} | 0.500 | 0.400 | 0.300 | 0.200 | 0.100 | 0.000 to 0.600 |" in found
    assert thresholds.lines(confirmed({})) == []
