"""Tokens as the report shows them."""

from dictionary_learning_ext.features.contexts import LONGEST_TOKEN, visible
from dictionary_learning_ext.report.feature_pages import Vocabulary


def test_controls_and_marks_are_named_and_long_text_is_cut():
    assert visible(" a\nb\tc") == " a↵b⇥c"
    assert visible("\u200f\u2066x\u0000") == "‹U+200F›‹U+2066›x‹U+0000›"
    assert visible("é漢🙂") == "é漢🙂"
    cut = visible("y" * 100_000)
    assert cut.startswith("y" * LONGEST_TOKEN + "…")
    assert len(cut) < LONGEST_TOKEN + 30


def test_tokens_are_shown_as_they_stand_in_the_text(tiny_lm):
    vocabulary = Vocabulary(tiny_lm.tokenizer)
    ids = tiny_lm.tokenizer("It was the ü")["input_ids"]
    texts = [vocabulary.text(i) for i in ids]
    assert "".join(texts[:-2]) == "It was the "
    assert "\ufffd" not in "".join(texts)  # pieces of a character keep the tokenizer's spelling
    assert vocabulary.number(ids[0]) == 0
    assert vocabulary.text(5000) == "[5000]"
