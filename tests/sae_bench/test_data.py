"""The data that SAE Bench evaluates on: the embedded books."""

import pytest

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

import pandas as pd

from dictionary_learning_ext.sae_bench import data


@pytest.mark.parametrize(
    ("text", "gender"),
    [
        ("He gave his hat.", "male"),
        ("She said that HER hat was hers.", "female"),
        ("He gave her his hat.", None),
        ("He went.", None),
        ("The hat.", None),
    ],
)
def test_a_passages_gender_is_its_pronouns(text, gender):
    assert data.gender_of(text) == gender


def test_the_books_fill_what_is_asked_of_them(tmp_path):
    sets = data.open_bench_data("embedded", tmp_path)
    frames = {p: pd.read_parquet(tmp_path / data.BOOKS / f"{p}.parquet") for p in ("train", "test")}
    assert not set(frames["train"]["hard_text"]) & set(frames["test"]["hard_text"])
    assert len(frames["test"]) < len(frames["train"]), "every third passage is test data"
    pieces = [*frames["train"]["hard_text"], *frames["test"]["hard_text"]]
    assert {len(piece.split()) for piece in pieces} == {data.WORDS}
    for which, part in enumerate(("train", "test")):
        cells = frames[part].groupby(["profession", "gender"]).size()
        assert sets.class_sizes is not None
        assert sets.class_sizes[which] == 4 * cells.min()


@pytest.mark.parametrize("short", range(2))
def test_a_set_of_scr_is_four_times_the_smallest_cell(short):
    """The smallest of the cells on which a pair's biased probe is not trained."""
    (first, second), *_ = data.PAIRS
    cells = {(label, gender): 1000 for label in data.LABELS.values() for gender in (0, 1)}
    cells[[(data.LABELS[first], 1), (data.LABELS[second], 0)][short]] = 7
    assert data._scr_size(cells) == 28
