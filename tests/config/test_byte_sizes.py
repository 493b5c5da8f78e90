"""Sizes in bytes, as people read them."""

import pytest

from dictionary_learning_ext.config.checks import in_words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (41e12, "41 TB"), (5e22, "50000 EB")],
)
def test_bytes_in_words(number, words):
    assert in_words(number) == words
