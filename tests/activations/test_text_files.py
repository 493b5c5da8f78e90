"""Documents of a file of each format, in bounded memory. Errors name the place in the file."""

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import DOCUMENTS, WRITERS, error_of, read, write_txt

from dictionary_learning_ext.activations import text_files
from dictionary_learning_ext.activations.text import open_text


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_yields_its_documents_in_order(tmp_path: Path, name: str):
    path = WRITERS[name](tmp_path / name, DOCUMENTS)
    both = [*enumerate(DOCUMENTS, start=1)]
    assert read(path) == [document for n, document in both if n % 20]
    assert read(path, split="heldout") == [document for n, document in both if n % 20 == 0]


def test_paragraphs_are_grouped_up_to_2000_characters(tmp_path: Path):
    paragraphs = [f"{n} " + "word " * 99 + "end" for n in range(20)]
    (tmp_path / "a.txt").write_bytes("\r\n  \r\n\r\n".join(paragraphs).encode())
    documents = read(tmp_path / "a.txt")
    assert [len(document) < 2_010 for document in documents] == [True] * len(documents)
    assert len(documents) == 7
    assert "\n\n".join(documents).split("\n\n") == paragraphs


def test_markers_make_documents_whatever_their_length(tmp_path: Path):
    documents = ["short", "long\n\n" * 1_000 + "end", "é" * 40_000, "last"]
    write_txt(tmp_path / "a.txt", documents)
    assert read(tmp_path / "a.txt") == documents


@pytest.mark.parametrize("shift", range(0, 14, 3))
def test_a_marker_across_two_reads_is_found(tmp_path: Path, shift: int):
    documents = ["x" * (text_files._CHUNK - shift), "y"]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    assert read(tmp_path / "a.txt") == documents


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
def test_one_huge_line_is_cut_in_bounded_memory(tmp_path: Path, end: str):
    path = tmp_path / "a.txt"
    path.write_text("wörd " * 2_000_000 + end)  # 12 MB
    tracemalloc.start()
    documents = words = longest = 0
    for document in open_text(str(path)):
        documents += 1
        words += document.count("wörd")
        longest = max(longest, len(document))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    limit = text_files.LONGEST_DOCUMENT if end else text_files.PARAGRAPHS
    assert longest <= limit + text_files._CHUNK * bool(end)
    # every 20th document is held out
    assert words == pytest.approx(2_000_000 * (1 if documents < 20 else 0.95), rel=0.001)
    assert peak < 10e6


def test_a_line_without_spaces_is_cut_too(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * 150_000)
    assert sum(len(d) for d in read(tmp_path / "a.txt")) >= 150_000 * 18 / 20
    assert max(map(len, read(tmp_path / "a.txt"))) == text_files.PARAGRAPHS


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "hello"}', encoding="utf-8-sig")
    assert read(tmp_path) == ["hello", "hello"]


@pytest.mark.parametrize("bad_at", [0, 5, text_files._CHUNK - 1, 200_000])
@pytest.mark.parametrize("newline", [b"\n", b""])
def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(
    tmp_path: Path, bad_at: int, newline: bytes
):
    good = (b"a" * 99 + (newline or b" ")) * 2_001
    (tmp_path / "a.txt").write_bytes(good[:bad_at] + b"\xff" + good[bad_at:])
    message = error_of(lambda: read(tmp_path / "a.txt"))
    assert str(tmp_path / "a.txt") in message
    assert f"at byte {bad_at}:" in message
    assert "iconv" in message


def test_a_character_cut_off_at_the_end_of_the_file_is_an_error(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"abc\xc3")
    assert "at byte 3:" in error_of(lambda: read(tmp_path / "a.txt"))


def test_null_bytes_are_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("one\ntwo".encode("utf-16-le"))
    assert "null byte at byte 1" in error_of(lambda: read(tmp_path / "a.txt"))


def test_bad_utf8_in_jsonl_is_named_by_its_place_in_the_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "\xe9"}\n')
    assert "at byte 26:" in error_of(lambda: read(tmp_path / "a.jsonl"))


def test_bad_utf8_in_parquet_is_named_by_its_row(tmp_path: Path):
    values = pa.array([b"good", b"\xe9"], type=pa.binary()).view(pa.utf8())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    message = error_of(lambda: read(tmp_path / "a.parquet"))
    assert "row 2 of" in message
    assert "at byte 0:" in message


def test_bad_json_is_named_by_its_line(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": two}\n')
    assert f"line 2 of {tmp_path / 'a.jsonl'}" in error_of(lambda: read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("row", ['{"body": "x", "title": "y"}', '["x"]', '{"text": 3}'])
def test_a_row_without_text_is_named_by_line_and_what_it_has(tmp_path: Path, row: str):
    (tmp_path / "a.jsonl").write_text(row)
    message = error_of(lambda: read(tmp_path / "a.jsonl"))
    assert "line 1 of" in message
    assert ("'body', 'title'" in message) == ("body" in row)


def test_parquet_without_text_lists_its_columns(tmp_path: Path):
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    assert "'body', 'n'" in error_of(lambda: read(tmp_path / "a.parquet"))


def test_a_damaged_file_is_an_error(tmp_path: Path):
    for name in ("a.parquet", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"nonsense" * 10)
        assert name in error_of(lambda name=name: read(tmp_path / name))
