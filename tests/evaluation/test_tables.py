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


def test_a_table_that_fits_is_the_same_with_a_width():
    assert text_table(HEADER, ROWS, width=28) == text_table(HEADER, ROWS)


def test_a_table_that_is_too_wide_gets_heads_of_several_lines():
    assert text_table(HEADER, ROWS, width=27).splitlines() == [
        "                    a",
        "                 wide",
        "           FVE  label",
        "---------------------",
        "runs/a  0.9000      -",
        "b        -12.3      1",
    ]


def test_and_then_blocks_that_each_have_the_first_column():
    assert text_table(HEADER, ROWS, width=20).splitlines() == [
        "           FVE",
        "--------------",
        "runs/a  0.9000",
        "b        -12.3",
        "",
        "            a",
        "         wide",
        "        label",
        "-------------",
        "runs/a      -",
        "b           1",
    ]


def test_blocks_repeat_as_many_columns_as_are_asked_for():
    table = text_table(["k", "lr", "first", "second"], [["8", "0.1", "1", "2"]], 16, repeated=2)
    assert [line.split() for line in table.splitlines() if line.startswith("k")] == [
        ["k", "lr", "first"],
        ["k", "lr", "second"],
    ]
    names = ["a long name", "lr", "first", "second"]
    table = text_table(names, [["8", "0.1", "1", "2"]], 25, repeated=2)
    assert [line.split()[-1] for line in table.splitlines() if line.startswith("a")] == [
        "first",
        "second",
    ], "lr would leave too little room"


def test_a_long_name_is_broken_where_its_parts_end():
    table = text_table(["", "FVE"], [["vsae_top_k_k64_F1024_seed0", "0.9"], ["b", "0.8"]], width=24)
    assert table.splitlines() == [
        "              FVE",
        "-----------------",
        "vsae_top_k_   0.9",
        "  k64_F1024_",
        "  seed0",
        "b             0.8",
    ]


@pytest.mark.parametrize("width", [1, 20, 40, 80])
def test_no_cell_is_lost_and_no_line_is_wider_than_it_must_be(width):
    header = ["", *(f"metric {i}" for i in range(20))]
    rows = [[f"runs/name_{j}", *(f"{i}.{j}" for i in range(20))] for j in range(3)]
    lines = text_table(header, rows, width).splitlines()
    words = " ".join(lines).split()
    assert all(words.count(cell) == 1 for row in rows for cell in row[1:])
    assert words.count("metric") == 20
    assert max(map(len, lines)) <= max(width, len("runs/name_0  metric"))


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
