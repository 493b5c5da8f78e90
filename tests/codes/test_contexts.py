"""Tokens as cards and the report show them."""

from dictionary_learning_ext.codes.contexts import LONGEST_TOKEN, token_text, visible


def test_controls_and_marks_are_named_and_long_text_is_cut():
    assert visible(" a\nb\tc") == " a↵b⇥c"
    assert visible("\u200f\u2066x\u0000") == "‹U+200F›‹U+2066›x‹U+0000›"
    assert visible("é漢🙂") == "é漢🙂"
    cut = visible("y" * 100_000)
    assert cut.startswith("y" * LONGEST_TOKEN + "…")
    assert len(cut) < LONGEST_TOKEN + 30


def test_tokens_are_shown_as_they_stand_in_the_text(tiny_lm):
    ids = tiny_lm.tokenizer("It was the ü")["input_ids"]
    texts = [token_text(tiny_lm.tokenizer, i) for i in ids]
    assert "".join(texts[:-2]) == "It was the "
    assert "\ufffd" not in "".join(texts)  # pieces of a character keep the tokenizer's spelling
    assert token_text(tiny_lm.tokenizer, 5000) == "[5000]"
