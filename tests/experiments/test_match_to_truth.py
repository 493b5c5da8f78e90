"""What match_to_truth makes of features whose matches are known."""

import numpy as np
import pytest

from experiments.ground_truth.match_to_truth import BINS, METRICS, STAGES, both_matches


def test_the_correlation_is_of_ranks_and_bins_hold_every_feature_once():
    across_F = np.array([0.1, 0.5, 0.6, 0.95, 1.0])
    found = both_matches(across_F, across_F**3)
    assert found["correlation"] == pytest.approx(1.0)
    shares = [each["share"] for each in found["bins"].values()]
    assert shares == pytest.approx([0.2, 0.4, 0.0, 0.4])
    matches = [each["true_match"] for each in found["bins"].values()]
    assert matches[2] is None
    assert matches[1] == pytest.approx((0.5**3 + 0.6**3) / 2)
    assert both_matches(across_F, -across_F)["correlation"] == pytest.approx(-1.0)


def test_the_page_shows_every_number():
    rows = []
    for seed in range(2):
        row = {"model": "TopK", "seed": seed, "pw_mcc": 0.111 + seed}
        row |= {name: 0.222 + seed + i for i, name in enumerate(METRICS)}
        row |= both_matches(np.linspace(0, 1, 11), np.linspace(0, 0.5, 11) + 0.1 * seed)
        rows.append(row)
    text = "\n".join(STAGES.page({"settings": {"setting": "S"}, "rows": rows}))
    for row in rows:
        for name in (*METRICS, "pw_mcc", "correlation"):
            assert f"{row[name]:.3f}" in text, name
        for name in BINS:
            assert f"| TopK, {name} " in text
            assert f"{row['bins'][name]['true_match']:.3f}" in text
