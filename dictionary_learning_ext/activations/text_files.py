"""Documents from local files, one after the other, in bounded memory.

A document is

- in .jsonl, .jsonl.zst and .parquet: the text in a column of a row;
- in a .txt with `<|endoftext|>` markers: the text between two markers;
- in any other .txt: a group of whole paragraphs, up to 2,000 characters. Blank lines separate
  paragraphs.

A paragraph of more than 2,000 characters in a .txt is cut at a space, and so is a document of more than 1,000,000
characters between two markers.
"""

# `datasets` reads these formats too, but not a .jsonl in which another column changes its type or first appears in a
# later row. Its errors name neither the line nor the byte, and version 3.6 reads a truncated .zst without any error.

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import TextError

SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
MARKER = "<|endoftext|>"
PARAGRAPHS = 2_000  # characters in a group of paragraphs
LONGEST_DOCUMENT = 1_000_000  # characters between two markers of a .txt
_CHUNK = 1 << 16  # bytes that are read at a time
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_documents(path: Path, column: str = "text") -> Iterator[str]:
    """The documents of a file, in order. Some may be empty.

    Arguments:
        column: the column of the documents, in files of rows.

    Raises: TextError if the file is damaged or not UTF-8, or a row is not JSON or has no such column.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, column)
        return
    with path.open("rb") as file:
        if path.suffix == ".txt":
            split = _between_markers if _has_marker(path) else _paragraph_groups
            yield from split(_decoded(file, path))
        elif path.suffix == ".zst":
            yield from _zst_rows(file, path, column)
        else:
            yield from _jsonl_rows(file, path, column)


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


def _not_utf8(where: str, offset: int) -> TextError:
    return TextError(
        f"{where} is not UTF-8 at byte {offset}: expected UTF-8 text; convert it, e.g. with"
        " iconv -f LATIN1 -t UTF-8"
    )


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise TextError(f"{path} is not a Parquet file ({error}); write it again") from error
    with file:
        columns = file.schema_arrow.names
        if column not in columns:
            text_of_row(dict.fromkeys(columns), column, str(path))
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for text in batch.column(column):
                row += 1
                try:
                    document = text.as_py()
                except UnicodeDecodeError as error:
                    raise _not_utf8(f"row {row} of {path}", error.start) from error
                yield text_of_row({column: document}, column, f"row {row} of {path}")


def _zst_rows(packed: BinaryIO, path: Path, column: str) -> Iterator[str]:
    import zstandard

    # A file may consist of several compressed frames.
    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    try:
        with reader as file:
            yield from _jsonl_rows(io.BufferedReader(file), path, column)
    except zstandard.ZstdError as error:
        raise TextError(
            f"{path} can't be decompressed ({error}): expected a zstandard file; download it again"
        ) from error


def _jsonl_rows(file: BinaryIO, path: Path, column: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(file, start=1):
        where = f"line {number} of {path}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(str(path), offset + error.start) from error
        offset += len(line)
        if text.isspace():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            what = f"{error.msg.removesuffix(' at')} at character {error.colno}"
            raise TextError(
                f"{where} is not valid JSON ({what})",
                expected=f'one object per line, e.g. {{"{column}": "…"}}',
            ) from error
        document = text_of_row(row, column, where)
        if "\\u" in text and (half := _SURROGATE.search(document)):  # no tokenizer takes it
            raise TextError(
                f"{where} holds half of a surrogate pair, {half[0]!a}, at character"
                f" {half.start()} of its text: expected whole characters; delete it"
            )
        yield document


def _decoded(file: BinaryIO, path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends. Long lines come in several pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, undecoded = 0, 0
    for piece in iter(lambda: file.readline(_CHUNK), b""):
        try:
            text = decoder.decode(piece)
        except UnicodeDecodeError as error:
            raise _not_utf8(str(path), offset - undecoded + error.start) from error
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(piece)
        undecoded = len(decoder.getstate()[0])
        yield text
    if undecoded:
        raise _not_utf8(str(path), offset - undecoded)


def _has_marker(path: Path) -> bool:
    marker, tail = MARKER.encode(), b""
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            if marker in tail + chunk:
                return True
            tail = chunk[-len(marker) :]
    return False


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


def _paragraph_groups(pieces: Iterator[str]) -> Iterator[str]:
    group = ""
    for paragraph in filter(None, _paragraphs(pieces)):
        if group and len(group) + len(paragraph) > PARAGRAPHS:
            yield group
            group = ""
        group = f"{group}\n\n{paragraph}" if group else paragraph
    yield group


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
