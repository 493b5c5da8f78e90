"""Tables, numbers over seeds, and sentences that the numbers must show."""

import pytest

from experiments.metrics import DIGITS, LABELS, SHOWN, labels_of
from experiments.pages import ClaimError, claim, each, spread, table


def test_a_table_has_a_line_for_each_row():
    assert table("model", {"TopK": ["1", "2"], "vSAE": ["3", ""]}, ["FVE", "L0"]) == [
        "| model | FVE | L0 |",
        "|---|---|---|",
        "| TopK | 1 | 2 |",
        "| vSAE | 3 |  |",
    ]


def test_a_metric_that_does_not_apply_is_left_out():
    assert spread([0.25, 0.75]) == "0.500 ± 0.354"
    assert spread([0.25, 0.75], digits=1) == "0.5 ± 0.4"
    assert spread([None, None]) == ""
    assert each([0.25, None, 0.75]) == "0.250 /  / 0.750"
    assert each([0.25], digits=1) == "0.2"


def test_a_claim_is_its_sentence_if_the_numbers_show_it():
    assert claim("less stable", holds=True) == "less stable"
    with pytest.raises(ClaimError, match=r"'less stable'.*do not show it.*rewrite the sentence"):
        claim("less stable", holds=False)


def test_every_metric_that_is_shown_has_one_label():
    assert len(set(LABELS.values())) == len(LABELS)
    assert labels_of(SHOWN)[:2] == ["FVE", "FVE sampled"]
    assert set(DIGITS) <= set(LABELS)
