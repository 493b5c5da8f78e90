"""A token as readable text."""

from typing import Any


def token_text(tokenizer: Any, token: int) -> str:
    """A token as it appears in text, with its leading space.

    A token that is part of a character (byte-level BPE) is shown in the tokenizer's own spelling.
    """
    text = tokenizer.decode([token])
    spelling = tokenizer.convert_ids_to_tokens(token)
    if spelling is None:  # a row of the embedding that the tokenizer does not use
        return f"[{token}]"
    if "\ufffd" in text:
        return spelling
    if spelling.startswith("▁") and not text.startswith(" "):  # SentencePiece drops the first
        return " " + text
    return text
