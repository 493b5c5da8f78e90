"""Documents from local files, one after the other, in bounded memory.

A document is

- in .jsonl, .jsonl.zst and .parquet: the text in a column of a row;
- in a .txt with `<|endoftext|>` markers: the text between two markers;
- in any other .txt: whole paragraphs, up to 2,000 characters. Blank lines separate paragraphs.

A paragraph of more than 2,000 characters in a .txt is cut at a space, and so is a document of more than 1,000,000
characters between two markers.
"""

# `datasets` reads these formats too, but starting takes 0.8 CPU seconds more. It refuses a .jsonl in which another column
# changes its type or first appears late, and splits a .txt neither at markers nor into bounded documents.

import io
import json
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TextError, first_line

SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
MARKER = "<|endoftext|>"
PARAGRAPHS = 2_000  # characters of whole paragraphs that make a document
LONGEST_DOCUMENT = 1_000_000  # characters between two markers of a .txt
_PIECE = 1 << 16  # characters of a line of a .txt that are read at a time
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_documents(path: Path, column: str = "text") -> Iterator[str]:
    """The documents of a file, in order. Some may be empty.

    Arguments:
        column: the column of the documents, in files of rows.

    Raises: TextError if the file is damaged or not UTF-8, or a row is not JSON or has no such column.
    """
    read = {".txt": _txt_documents, ".parquet": _parquet_documents}.get(
        path.suffix, _jsonl_documents
    )
    try:
        yield from read(path, column)
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8: it contains byte {error.object[error.start]:#x}",
            instead="convert it, e.g. with iconv -f LATIN1 -t UTF-8",
        ) from error


def text_of_row(row: Any, column: str, where: str) -> str:
    """The text in a column of a row. A null counts as an empty text."""
    if not isinstance(row, dict):
        raise TextError(f"{where} is a {type(row).__name__}: expected an object with {column!r}")
    if column not in row:
        raise TextError(
            f"{where} has no column {column!r}, it has {', '.join(map(repr, row)) or 'none'}",
            instead="name the one that holds the text with text_column",
        )
    if not isinstance(row[column], str | None):
        kind = type(row[column]).__name__
        raise TextError(
            f"{where} has a {column!r} of type {kind}: expected a string",
            instead="name the column that holds the text with text_column",
        )
    return row[column] or ""


def _parquet_documents(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    with _damage_named(path, "is not a whole Parquet file"):
        file = pyarrow.parquet.ParquetFile(path)
    with file, _damage_named(path, "is damaged"):
        columns = file.schema_arrow.names
        if column not in columns:
            text_of_row(dict.fromkeys(columns), column, str(path))
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for text in batch.column(column).to_pylist():
                yield text_of_row({column: text}, column, str(path))


@contextmanager
def _damage_named(path: Path, what: str) -> Iterator[None]:
    """Turn pyarrow's error for a damaged file into a TextError. The system's errors, which have a number, stay."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TextError(
            f"{path} {what} ({first_line(error)}); download or write it again"
        ) from error


def _jsonl_documents(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_jsonl_lines(path), start=1):
        if line.isspace():
            continue
        where = f"line {number} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"{error.msg.removesuffix(' at')} at character {error.colno}"
            raise TextError(
                f"{where} is not valid JSON ({what})",
                expected=f'one object per line, e.g. {{"{column}": "…"}}',
            ) from error
        document = text_of_row(row, column, where)
        if "\\u" in line and (half := _SURROGATE.search(document)):  # no tokenizer takes it
            raise TextError(
                f"{where} holds half of a surrogate pair, {half[0]!a}, at character"
                f" {half.start()} of its text: expected whole characters; delete it"
            )
        yield document


def _jsonl_lines(path: Path) -> Iterator[str]:
    if path.suffix != ".zst":
        with path.open("rb") as file:
            yield from _decoded(file)
        return
    import pyarrow

    # It reads several frames, and refuses an incomplete one, which zstandard's reader takes for the end.
    with (
        pyarrow.input_stream(str(path), compression="zstd") as file,
        _damage_named(path, "can't be decompressed"),
    ):
        yield from _decoded(file)


def _decoded(file: Any) -> io.TextIOWrapper:
    """The characters of a file without a byte order mark. Only \\n ends a line, and stays as it is."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")


def _txt_documents(path: Path, _column: str) -> Iterator[str]:
    with path.open("rb") as file:
        lines = _decoded(file)
        pieces = iter(lambda: lines.readline(_PIECE), "")
        yield from _between_markers(pieces) if _has_marker(path) else _joined(_paragraphs(pieces))


def _has_marker(path: Path) -> bool:
    if path.stat().st_size == 0:  # mmap refuses it
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MARKER.encode()) >= 0


def _between_markers(pieces: Iterator[str]) -> Iterator[str]:
    document = ""
    for piece in pieces:
        searched = max(0, len(document) - len(MARKER))  # a marker may span two pieces
        document += piece
        while (end := document.find(MARKER, searched)) >= 0:
            yield document[:end].strip()
            document, searched = document[end + len(MARKER) :], 0
        if len(document) > LONGEST_DOCUMENT:
            end = cut(document, LONGEST_DOCUMENT)
            yield document[:end].strip()
            document = document[end:]
    yield document.strip()


def _joined(paragraphs: Iterator[str]) -> Iterator[str]:
    """Documents of whole paragraphs, up to PARAGRAPHS characters."""
    document = ""
    for paragraph in filter(None, paragraphs):
        if document and len(document) + len(paragraph) > PARAGRAPHS:
            yield document
            document = ""
        document = f"{document}\n\n{paragraph}" if document else paragraph
    yield document


def _paragraphs(pieces: Iterator[str]) -> Iterator[str]:
    paragraph = ""
    for piece in pieces:
        if piece.isspace():
            yield paragraph.strip()
            paragraph = ""
        paragraph += piece
        while len(paragraph) > PARAGRAPHS:
            end = cut(paragraph, PARAGRAPHS)
            yield paragraph[:end].strip()
            paragraph = paragraph[end:]
    yield paragraph.strip()


def cut(text: str, length: int) -> int:
    """The index at which to cut a text to at most `length` characters: the last space before it, if any."""
    last_space = max(text.rfind(" ", 0, length), text.rfind("\n", 0, length))
    return last_space if last_space > 0 else length
