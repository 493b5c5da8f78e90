"""The embedded books as a labelled data set of SAE Bench."""

import pytest

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

from experiments.paper import labelled_books

pytestmark = pytest.mark.extra


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
    assert labelled_books.gender_of(text) == gender


def test_pieces_of_a_passage_are_in_one_part():
    parts = labelled_books.passages()
    train, test = set(parts["train"]["hard_text"]), set(parts["test"]["hard_text"])
    assert not train & test
    assert len(test) < len(train), "every third passage is test data"
    assert {len(piece.split()) for piece in train | test} == {labelled_books.WORDS}
