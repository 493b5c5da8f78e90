"""What a user gives as a text in Python, as documents."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from ..activations.text import open_text
from ..activations.text_files import SUFFIXES
from ..errors import Setting, TextError

Text = str | Path | Iterable[str]
"""A text itself, several, or where to read them, see `documents_of`."""


def documents_of(text: Text) -> Iterator[str]:
    """The documents of a text.

    Arguments:
        text: one of
            - a text itself: one document;
            - "embedded", or a file or folder, as a Path or a str. All of it is read, its held-out part
              first;
            - an iterable of documents, e.g. a list, or `open_text("roneneldan/TinyStories")`. A list
              also holds what would be taken for a path.

    Raises: TextError if there is no such file or folder, or a document is not a str.
    """
    if isinstance(text, str) and not _is_a_path(text):
        return iter([text])
    if isinstance(text, str | Path):
        return chain.from_iterable(open_text(str(text), split=s) for s in ("heldout", "train"))
    if not isinstance(text, Iterable):
        raise TextError(
            f"text is a {type(text).__name__}: expected a text, a list of texts, or a file or folder"
        )
    return _checked(text)


def _is_a_path(text: str) -> bool:
    """Whether a str is a path or "embedded". Raises TextError for one that looks like a path."""
    if text == "embedded" or os.path.exists(text):
        return True
    is_one_word = len(text.split()) == 1
    if is_one_word and "/" in text and not text.endswith(SUFFIXES):
        raise TextError(
            "there is no such file or folder",
            name="text",
            value=text,
            instead=(
                f"for a data set on the hub, use open_text({text!r}); for this word itself, ",
                Setting("text", [text]),
            ),
        )
    return is_one_word and text.endswith(SUFFIXES)  # `open_text` says that it isn't there


def _checked(documents: Iterable[object]) -> Iterator[str]:
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, str):
            raise TextError(
                f"document {number} of the text is a {type(document).__name__}: expected a str"
            )
        yield document
