"""Documents of a file of each format, in bounded memory. Errors name the place in the file."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from texts import DOCUMENTS, WRITERS, error_of, read, write_txt

from dictionary_learning_ext.activations import text_files
from dictionary_learning_ext.activations.text import open_text

PLAIN = "the cat sat on the mat"


@pytest.fixture
def path(tmp_path):
    def make(name, raw):
        (tmp_path / name).write_bytes(raw)
        return str(tmp_path / name)

    return make


def row(text):
    return json.dumps({"text": text}).encode() + b"\n"


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_yields_its_documents_in_order(tmp_path, name):
    path = WRITERS[name](tmp_path / name, DOCUMENTS)
    both = [*enumerate(DOCUMENTS, start=1)]
    assert read(path) == [document for n, document in both if n % 20]
    assert read(path, split="heldout") == [document for n, document in both if n % 20 == 0]


def test_paragraphs_are_grouped_up_to_2000_characters(path):
    paragraphs = [f"{n} " + "word " * 99 + "end" for n in range(20)]
    documents = read(path("a.txt", "\r\n  \r\n\r\n".join(paragraphs).encode()))
    assert [len(document) < 2_010 for document in documents] == [True] * len(documents)
    assert len(documents) == 7
    assert "\n\n".join(documents).split("\n\n") == paragraphs


def test_markers_make_documents_whatever_their_length(tmp_path):
    documents = ["short", "long\n\n" * 1_000 + "end", "é" * 40_000, "last"]
    write_txt(tmp_path / "a.txt", documents)
    assert read(tmp_path / "a.txt") == documents


@pytest.mark.parametrize("shift", range(0, 14, 3))
def test_a_marker_across_two_reads_is_found(path, shift):
    documents = ["x" * (text_files._PIECE - shift), "y"]
    assert read(path("a.txt", "<|endoftext|>".join(documents).encode())) == documents


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
def test_one_huge_line_is_cut_in_bounded_memory(tmp_path, end):
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
    assert longest <= limit + text_files._PIECE * bool(end)
    # every 20th document is held out
    assert words == pytest.approx(2_000_000 * (1 if documents < 20 else 0.95), rel=0.001)
    assert peak < 10e6


def test_a_line_without_spaces_is_cut_too(path):
    documents = read(path("a.txt", b"x" * 150_000))
    assert sum(map(len, documents)) >= 150_000 * 18 / 20
    assert max(map(len, documents)) == text_files.PARAGRAPHS


def test_a_long_line_of_jsonl_is_one_document(path):
    words = (PLAIN + " ") * 50_000
    assert read(path("a.jsonl", row(words))) == [words]


def test_what_is_no_text_of_a_file_is_left_out(tmp_path, path):
    """A byte order mark, Windows line ends, a nested column."""
    path("a.txt", b"\xef\xbb\xbfhello")
    path("b.jsonl", b'\xef\xbb\xbf{"text": "hello"}\r\n{"text": "two"}\r\n')
    path("c.jsonl", b'{"text": "three", "n": ' + b"[" * 50 + b"]" * 50 + b"}\n")
    path("d.jsonl", row("a 🐈"))  # as a pair of surrogates
    assert b"ud83d" in row("🐈")
    assert read(tmp_path) == ["hello", "hello", "two", "three", "a 🐈"]


NOT_PARQUET = b"nonsense" * 10
FIRST = row(PLAIN)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.txt", b"the cat \xc3", ["0xc3"]),
        ("a.txt", b"the cat\n\n" * 50_000 + b"\xe9", ["0xe9"]),
        ("a.txt", PLAIN.encode("utf-16"), ["0xff"]),
        ("a.jsonl", FIRST + b'{"text": "\xff"}\n', ["0xff"]),
        ("a.jsonl", FIRST + b'{"text": two}\n', ["line 2 ", "JSON"]),
        ("a.jsonl", b'{"text": "a\tb"}\n', ["line 1 ", "JSON"]),
        ("a.jsonl", b'{"body": "x", "title": "y"}', ["line 1 ", "'text'", "'body', 'title'", "text_column"]),
        ("a.jsonl", b'["x"]', ["line 1 ", "list", "'text'"]),
        ("a.jsonl", b'{"text": 3}', ["line 1 ", "'text'", "int", "text_column"]),
        ("a.jsonl", FIRST + row("the \ud800"), ["line 2 ", r"'\ud800'"]),
        ("a.jsonl", row("a\udc00\ud800b"), ["line 1 ", r"'\udc00'"]),
        ("a.parquet", NOT_PARQUET, []),
        ("a.jsonl.zst", NOT_PARQUET, []),
        ("a.jsonl.zst", zstandard.compress(FIRST * 9000)[:-9], []),
        ("a.jsonl.zst", zstandard.compress(FIRST)[:-2], []),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_place(name, raw, said, path):
    file = path(name, raw)
    message = error_of(lambda: read(file))
    assert all(part in message for part in (file, *said))


def test_damage_in_parquet_is_named_by_its_byte_or_columns(tmp_path):
    path = tmp_path / "a.parquet"
    values = pa.array([b"good", b"\xe9"], type=pa.binary()).view(pa.utf8())
    pq.write_table(pa.table({"text": values}), path)
    assert "0xe9" in error_of(lambda: read(path))
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), path)
    assert "'body', 'n'" in error_of(lambda: read(path))
    pq.write_table(pa.table({"text": [str(n) * 9 for n in range(20_000)]}), path)
    content = bytearray(path.read_bytes())
    content[1000:9000] = b"x" * 8000
    path.write_bytes(content)
    assert str(path) in error_of(lambda: read(path))
    content[-200:-20] = b"x" * 180
    path.write_bytes(content)
    assert str(path) in error_of(lambda: read(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_another_column_may_hold_the_text(tmp_path, name):
    """Beside a `text` that is none."""
    rows = [{"text": n, "body": document} for n, document in enumerate(DOCUMENTS)]
    lines = "".join(json.dumps(each) + "\n" for each in rows).encode()
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(zstandard.compress(lines) if name.endswith(".zst") else lines)
    as_text = WRITERS["a.jsonl"](tmp_path / "text.jsonl", DOCUMENTS)
    assert read(path, column="body") == read(as_text)
    assert "'text'" in error_of(lambda: read(path))
    assert "'text', 'body'" in error_of(lambda: read(path, column="story"))
    stream = open_text(str(path), column="body")
    for _ in range(3):
        next(stream)
    again = open_text(str(path), column="body")
    again.load_state_dict(stream.state_dict())
    assert list(again) == list(stream)
