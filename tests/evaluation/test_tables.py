"""Tables as text and as Markdown."""

import pytest

from dictionary_learning_ext.evaluation.tables import markdown_table, text_table

HEADER = ["", "FVE", "a wide label"]
ROWS = [["runs/a", "0.9000", "-"], ["b", "-12.3", "1"]]


def test_text_is_aligned_the_first_column_to_the_left():
    assert text_table(HEADER, ROWS).splitlines() == [
        "           FVE  a wide label",
        "----------------------------",
        "runs/a  0.9000             -",
        "b        -12.3             1",
    ]


def test_markdown_escapes_bars_in_the_head_and_in_cells():
    assert markdown_table(["", "a|b"], [["x|y|z", "1"]]).splitlines() == [
        r"|  | a\|b |",
        "|---|---|",
        r"| x\|y\|z | 1 |",
    ]


@pytest.mark.parametrize("draw", [text_table, markdown_table])
def test_a_table_without_rows_is_its_head(draw):
    assert len(draw(HEADER, []).splitlines()) == 2


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        text_table(HEADER, [["a", "1"]])
