"""Text files of every format, and what is read from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.errors import TextError

DOCUMENTS = [f"Document {n}. It has {n % 7} lines." for n in range(45)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in documents))
    return path


def write_zst(path: Path, documents: list[str]) -> Path:
    half = len(documents) // 2  # two frames, as appending to a file makes them
    frames = [write_jsonl(path, part).read_bytes() for part in (documents[:half], documents[half:])]
    path.write_bytes(b"".join(map(zstandard.compress, frames)))
    return path


def write_parquet(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"n": list(range(len(documents))), "text": documents})
    pq.write_table(table, path, row_group_size=7)
    return path


def write_txt(path: Path, documents: list[str]) -> Path:
    path.write_text("\n<|endoftext|>\n".join(documents))
    return path


WRITERS: dict[str, Callable[[Path, list[str]], Path]] = {
    "a.jsonl": write_jsonl,
    "a.jsonl.zst": write_zst,
    "a.parquet": write_parquet,
    "a.txt": write_txt,
}


def error_of(call: Callable[[], Any], kind: type[Exception] = TextError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def read(name: Path | str, **options: Any) -> list[str]:
    return list(open_text(str(name), **options))
