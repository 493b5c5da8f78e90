"""Odd texts, through `open_text` and on to tokens: read as they are, or refused in one line."""

import json

import pytest
import torch
from texts import error_of, read

from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream

PLAIN = "the cat sat on the mat"


@pytest.fixture
def path(tmp_path):
    def make(name, raw):
        (tmp_path / name).write_bytes(raw)
        return str(tmp_path / name)

    return make


@pytest.fixture
def tokens(tokenizer):
    """All tokens of a text, packed in contexts of 16."""

    def of(text, **options):
        stream, parts = ContextStream(text, tokenizer, 16, **options), []
        while True:
            try:
                parts.append(stream.next_batch(8)[0].flatten())
            except StopIteration:
                return torch.cat([*parts, torch.empty(0, dtype=torch.int64)])

    return of


def row(text):
    return json.dumps({"text": text}).encode() + b"\n"


def kept(documents, heldout):
    return [text for i, text in enumerate(documents, 1) if (i % 20 == 0) == heldout]


def test_a_line_of_5_mb(path, tokens, tokenizer):
    words = (PLAIN + " ") * (5_000_000 // 23)
    from_txt = read(path("a.txt", words.encode()))
    assert max(map(len, from_txt)) <= 2_000
    assert from_txt[0].startswith(PLAIN)
    (from_jsonl,) = read(path("a.jsonl", row(words)))
    assert from_jsonl == words
    stream = ContextStream(open_text(path("b.jsonl", row(words))), tokenizer, 16)
    input_ids, _ = stream.next_batch(2)
    expected = tokenizer(words[:1000], add_special_tokens=False)["input_ids"][:32]
    assert input_ids.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"the cat \0 sat", "null byte at byte 8"),
        (b"the cat \xff sat", "not UTF-8 at byte 8"),
        (b"the cat \xc3", "not UTF-8 at byte 8"),
        (PLAIN.encode("utf-16"), "UTF-8"),
        (PLAIN.encode("utf-16-le"), "null byte at byte 1"),
    ],
    ids=["NUL", "invalid", "cut", "UTF-16 with BOM", "UTF-16"],
)
def test_text_that_is_not_utf8(raw, message, path):
    assert message in error_of(lambda: read(path("a.txt", raw)))


def test_invalid_utf8_in_a_later_line_of_jsonl(path):
    raw = row(PLAIN) + b'{"text": "\xff"}\n'
    assert f"not UTF-8 at byte {raw.index(0xFF)}" in error_of(lambda: read(path("a.jsonl", raw)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_left_out(name, path):
    raw = row(PLAIN) if name == "a.jsonl" else PLAIN.encode()
    assert read(path(name, b"\xef\xbb\xbf" + raw)) == [PLAIN]


def test_windows_line_ends(path):
    paragraphs = [f"{i} {PLAIN * 60}" for i in range(5)]  # two don't fit into one document
    raw = "\r\n\r\n".join(paragraphs).encode()
    assert read(path("a.txt", raw)) == paragraphs
    rows = b"".join(row(text).replace(b"\n", b"\r\n") for text in paragraphs)
    assert read(path("a.jsonl", rows)) == paragraphs


def test_100_000_tiny_documents(path, tokens, tokenizer):
    documents = [str(i) for i in range(100_000)]
    name = path("a.jsonl", b"".join(map(row, documents)))
    assert read(name) == kept(documents, False)
    heldout = read(name, split="heldout")
    assert heldout == kept(documents, True)
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in heldout[:500]]
    expected = [token for document in ids for token in document]
    given = tokens(iter(heldout[:500])).tolist()
    assert given == expected[: len(given)]
    assert len(expected) - len(given) < 16


@pytest.mark.parametrize("half", ["\ud800", "a\udc00\ud800b"])
def test_half_a_surrogate_pair_names_the_line(half, path, tokens):
    raw = row(PLAIN) + row(f"the {half}")
    message = error_of(lambda: read(path("a.jsonl", raw)))
    assert message.startswith("line 2 of ")
    assert "surrogate" in message
    assert message.isascii() or "\\ud" in message
    assert "document 2 holds half" in error_of(lambda: tokens(iter([PLAIN, f"the {half}"])))


def test_whole_surrogate_pairs_are_characters(path, tokens):
    assert json.dumps("🐈") == '"\\ud83d\\udc08"'
    assert read(path("a.jsonl", row("a 🐈"))) == ["a 🐈"]
    assert len(tokens(iter(["🐈" * 40]))) > 0


@pytest.mark.parametrize(
    "value",
    [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b"1" * 10_000],
    ids=["open", "nested", "integer"],
)
def test_what_python_refuses_to_parse_names_the_line(value, path):
    raw = row(PLAIN) + b'{"text": "a", "n": ' + value + b"}\n"
    message = error_of(lambda: read(path("a.jsonl", raw)))
    assert message.startswith("line 2 of ")
    assert "expected one object per line" in message


def test_a_deeply_nested_value_that_python_can_parse(path):
    raw = b'{"text": "the cat", "n": ' + b"[" * 50 + b"]" * 50 + b"}\n"
    assert read(path("a.jsonl", raw)) == ["the cat"]
