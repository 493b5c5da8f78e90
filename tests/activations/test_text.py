"""Text streams: every document once, splits apart, errors that say where, resume at any place."""

import json
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations import text, text_files, text_sources
from dictionary_learning_ext.activations.text import TextStream, open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.errors import ConfigError, TextError

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


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An embedded text of 30 passages to train on and 6 held out."""
    columns = {
        "text": [f"passage {n}" for n in range(36)],
        "book": ["Emma"] * 36,
        "author": ["Austen"] * 36,
        "split": ["heldout" if n % 6 == 5 else "train" for n in range(36)],
    }
    pq.write_table(pa.table(columns), tmp_path / "books.parquet")
    monkeypatch.setattr(text_sources, "EMBEDDED_TEXT", tmp_path / "books.parquet")
    return tmp_path


def hub_set(folder: Path, monkeypatch: pytest.MonkeyPatch, **splits: list[str]) -> str:
    """A set that `datasets` finds under this name, but which is no folder to `open_text`."""
    for split, documents in splits.items():
        write_parquet(folder / "nobody" / "stories" / f"{split}.parquet", documents)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(text.Path, "exists", lambda _: False)
    return "nobody/stories"


def error_of(call: Callable[[], Any], kind: type[Exception] = TextError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def read(name: Path | str, **options: Any) -> list[str]:
    return list(open_text(str(name), **options))


# Files


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_yields_its_documents_in_order(tmp_path: Path, name: str):
    path = WRITERS[name](tmp_path / name, DOCUMENTS)
    both = [*enumerate(DOCUMENTS, start=1)]
    assert read(path) == [document for n, document in both if n % 20]
    assert read(path, split="heldout") == [document for n, document in both if n % 20 == 0]


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path):
    write_jsonl(tmp_path / "b.jsonl", ["3", "4"])
    write_txt(tmp_path / "c.txt", ["5"])
    write_parquet(tmp_path / "a" / "x.parquet", ["1", "2"])
    write_txt(tmp_path / ".cache.txt", ["hidden"])
    (tmp_path / "notes.md").write_text("not text to read")
    assert read(tmp_path) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("files", "train", "heldout"),
    [
        (["train-0", "train-1", "validation", "test"], ["train-0", "train-1"], ["validation"]),
        (["train", "test"], ["train"], ["test"]),
        (["stories", "test-0", "test-1"], ["stories"], ["test-0", "test-1"]),
    ],
)
def test_a_folder_whose_files_are_named_by_split_is_read_by_split(
    tmp_path: Path, files: list[str], train: list[str], heldout: list[str]
):
    for name in files:
        write_parquet(tmp_path / f"{name}.parquet", [name])
    assert read(tmp_path) == train
    assert read(tmp_path, split="heldout") == heldout


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 130), blank=st.integers(1, 9))
def test_splits_are_disjoint_and_complete(
    tmp_path_factory: pytest.TempPathFactory, count: int, blank: int
):
    documents = ["" if n % 10 == blank else f"document {n}" for n in range(count)]
    path = write_jsonl(tmp_path_factory.mktemp("splits") / "a.jsonl", documents)
    train, heldout = read(path), read(path, split="heldout")
    assert not set(train) & set(heldout)
    assert sorted(train + heldout) == sorted(filter(None, documents))
    assert len(heldout) == len(list(filter(None, documents))) // 20


def test_blank_documents_are_skipped(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "", " \n ", "two"])
    path.write_text(path.read_text() + '\n\n{"text": null}\n')
    assert read(path) == ["one", "two"]


def test_every_pass_reads_the_same_split(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    assert read(path, passes=3) == read(path) * 3
    assert read(path, passes=2, split="heldout") == read(path, split="heldout") * 2


def test_an_empty_text_ends_however_often_it_is_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text(" \n\n \n")
    assert read(tmp_path / "a.txt", passes=1_000_000_000) == []


# Plain text


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


# Errors


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


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/file", "no-such.txt", "no:such"])
def test_an_unknown_text_is_one_line_that_says_what_to_give(name: str):
    message = error_of(lambda: open_text(name))
    assert repr(name) in message
    assert "'embedded'" in message


def test_a_file_or_folder_that_holds_no_text_lists_what_can_be_read(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b")
    assert ".jsonl.zst" in error_of(lambda: open_text(str(tmp_path)))
    assert ".jsonl.zst" in error_of(lambda: open_text(str(tmp_path / "a.csv")))


def test_unknown_split_and_no_passes_are_refused(tmp_path: Path):
    split: Any = "dev"
    message = error_of(lambda: open_text("embedded", split=split), ConfigError)
    assert "split='dev': expected one of train, heldout" in message
    message = error_of(lambda: open_text("embedded", passes=0), ConfigError)
    assert "passes=0: expected at least 1" in message


# The embedded text


@pytest.mark.usefixtures("embedded")
def test_the_embedded_text_has_its_own_split():
    train, heldout = read("embedded"), read("embedded", split="heldout")
    assert len(train) == 30
    assert heldout != sorted(heldout)
    assert sorted(heldout) == sorted(f"passage {n}" for n in range(5, 36, 6))
    assert not set(train) & set(heldout)


@pytest.mark.usefixtures("embedded")
def test_the_embedded_text_has_another_order_each_pass_and_seed():
    passes = read("embedded", passes=2)
    first, second = passes[:30], passes[30:]
    assert first != second
    assert sorted(first) == sorted(second)
    assert first == read("embedded")
    assert first != read("embedded", seed=1)


def test_a_missing_embedded_text_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(text_sources, "EMBEDDED_TEXT", tmp_path / "gone")
    assert "missing" in error_of(lambda: open_text("embedded"))


# Sets of the hub


def test_a_hub_set_is_read_by_its_own_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = hub_set(tmp_path, monkeypatch, train=["a", "b"], validation=["c"], test=["d"])
    assert read(name, passes=2) == ["a", "b", "a", "b"]
    assert read(name, split="heldout") == ["c"]


def test_a_hub_set_without_a_held_out_split_gives_every_20th(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = hub_set(tmp_path, monkeypatch, train=DOCUMENTS)
    assert read(name, split="heldout") == [DOCUMENTS[19], DOCUMENTS[39]]
    assert len(read(name)) == 43


def test_a_hub_set_without_text_lists_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = hub_set(tmp_path, monkeypatch, train=["a"])
    pq.write_table(pa.table({"story": ["a"]}), tmp_path / name / "train.parquet")
    assert "it has 'story'" in error_of(lambda: read(name))


def test_a_hub_set_with_a_wrong_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = hub_set(tmp_path, monkeypatch, train=["a"])
    assert "'default'" in error_of(lambda: read(f"{name}:other"))


def test_a_local_folder_named_like_a_hub_set_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        name = hub_set(tmp_path, patch, train=DOCUMENTS, validation=["v"])
        from_hub = read(name), read(name, split="heldout")
    monkeypatch.chdir(tmp_path)
    assert (read(name), read(name, split="heldout")) == from_hub


# Resuming a text


def assert_resumes_anywhere(make: Callable[[], TextStream]) -> None:
    whole = list(make())
    stream = make()
    for place in range(len(whole) + 1):
        state = json.loads(json.dumps(stream.state_dict()))
        other = make()
        other.load_state_dict(state)
        assert other.documents_read == place
        assert list(other) == whole[place:]
        next(stream, None)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_resumes_at_every_document(tmp_path: Path, name: str, split: Any):
    WRITERS[name](tmp_path / name, DOCUMENTS[:25])
    write_jsonl(tmp_path / "b.jsonl", ["", *DOCUMENTS[25:]])
    assert_resumes_anywhere(lambda: open_text(str(tmp_path), split=split, passes=2))


@pytest.mark.usefixtures("embedded")
def test_the_embedded_text_resumes_at_every_document():
    assert_resumes_anywhere(lambda: open_text("embedded", seed=3, passes=2))


def test_a_hub_set_resumes_at_every_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = hub_set(tmp_path, monkeypatch, train=DOCUMENTS[:23])
    assert_resumes_anywhere(lambda: open_text(name, passes=2))


def test_a_finished_text_goes_on_with_more_passes(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b"])
    once = open_text(str(path))
    assert list(once) == ["a", "b"]
    twice = open_text(str(path), passes=2)
    twice.load_state_dict(once.state_dict())
    assert list(twice) == ["a", "b"]


@pytest.mark.usefixtures("embedded")
def test_a_state_of_another_text_is_refused():
    state = open_text("embedded", seed=1).state_dict()
    assert "'seed': 1" in error_of(lambda: open_text("embedded").load_state_dict(state))


# Contexts


def contexts_of(
    documents: list[str], tokenizer: Any, ctx_len: int = 8, n: int = 3, **options: Any
) -> tuple[list[list[int]], list[list[int]]]:
    stream = ContextStream(iter(documents), tokenizer, ctx_len, **options)
    ids: list[list[int]] = []
    masks: list[list[int]] = []
    for input_ids, mask in batches_of(stream, n):
        assert input_ids.shape == mask.shape == (len(mask), ctx_len)
        assert input_ids.dtype == mask.dtype == torch.int64
        assert 1 <= len(mask) <= n
        ids += input_ids.tolist()
        masks += mask.tolist()
    return ids, masks


def batches_of(stream: ContextStream, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        try:
            yield stream.next_batch(n)
        except StopIteration:
            return


def packed(documents: list[str], tokenizer: Any, ctx_len: int) -> list[list[int]]:
    tokens = [
        token
        for document in documents
        for token in [*tokenizer.encode(document, add_special_tokens=False), 0]
    ]
    return [tokens[at : at + ctx_len] for at in range(0, len(tokens) - ctx_len + 1, ctx_len)]


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.text(min_size=1, max_size=60), max_size=70),
    ctx_len=st.integers(1, 40),
    n=st.integers(1, 9),
)
def test_packing_is_the_documents_with_end_of_text_between_cut_evenly(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], ctx_len: int, n: int
):
    ids, masks = contexts_of(documents, tokenizer, ctx_len, n)
    assert ids == packed(documents, tokenizer, ctx_len)
    assert all(set(mask) == {1} for mask in masks)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncating_is_what_the_tokenizer_makes_of_each_document(
    tokenizer: PreTrainedTokenizerFast, side: str
):
    documents = ["a", DOCUMENTS[0], "It was", "the cat sat on the mat " * 9]
    own: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side=side,
    )
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", 0)],
    )
    expected = own(documents, truncation=True, max_length=12, padding="max_length")
    ids, masks = contexts_of(documents, own, 12, packing="truncate")
    assert ids == expected["input_ids"]
    assert masks == expected["attention_mask"]
    assert ids[1][0] == 0


def test_a_long_document_is_packed_in_pieces_without_a_seam(tokenizer: PreTrainedTokenizerFast):
    document = "Call me Ishmael. " * 12_000
    ids, _ = contexts_of([document, "end"], tokenizer, 128, n=64)
    assert ids == packed([document, "end"], tokenizer, 128)


def test_a_huge_document_is_tokenised_in_bounded_memory(tokenizer: PreTrainedTokenizerFast):
    document = "the cat sat on the mat " * 200_000  # 4.6 MB
    stream = ContextStream(iter([document]), tokenizer, 128)
    stream.next_batch(1)
    held = sum(len(tokens) for tokens in stream._tokens)
    assert held < 1_100_000


def test_no_warning_of_long_sequences(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, monkeypatch: Any
):
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        contexts_of(["the cat sat on the mat " * 99], tokenizer)
    assert not caplog.records


def test_counters_count_documents_and_tokens(tokenizer: PreTrainedTokenizerFast):
    stream = ContextStream(iter(DOCUMENTS[:3]), tokenizer, 4)
    tokens = [len(tokenizer.encode(document)) + 1 for document in DOCUMENTS[:3]]
    stream.next_batch(2)
    assert (stream.tokens_read, stream.documents_read) == (8, 0)
    list(batches_of(stream, 5))
    assert (stream.tokens_read, stream.documents_read) == (sum(tokens), 3)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_contexts_resume_at_every_place(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, packing: Any
):
    path = write_jsonl(tmp_path / "a.jsonl", [d * (n % 5 + 1) for n, d in enumerate(DOCUMENTS)])

    def make() -> ContextStream:
        text = open_text(str(path), passes=2)
        return ContextStream(text, tokenizer, 30, packing=packing, piece_characters=40)

    def rest(stream: ContextStream) -> list[list[int]]:
        return [row for ids, _ in batches_of(stream, 5) for row in ids.tolist()]

    whole = rest(make())
    stream = make()
    pieces = set()
    for place in range(0, len(whole) + 1, 4):  # 32 too, where documents are read ahead to
        state = json.loads(json.dumps(stream.state_dict()))
        pieces.add(state["pieces"])
        other = make()
        other.load_state_dict(state)
        assert other.tokens_read == stream.tokens_read
        assert rest(other) == whole[place:]
        if place < len(whole):
            stream.next_batch(4)
    # 32 documents are read ahead. Only a packed one is cut into several pieces.
    assert (max(pieces) > 32) == (packing == "pack")


def test_contexts_of_a_generator_can_be_read_but_not_resumed(tokenizer: PreTrainedTokenizerFast):
    stream = ContextStream((document for document in DOCUMENTS), tokenizer, 8)
    assert len(stream.next_batch(2)[0]) == 2
    assert "open_text" in error_of(stream.state_dict)


@pytest.mark.parametrize("options", [{"ctx_len": 0}, {"packing": "squeeze"}])
def test_impossible_contexts_are_refused(tokenizer: Any, options: dict[str, Any]):
    given: dict[str, Any] = {"ctx_len": 8} | options
    error_of(lambda: ContextStream(iter([]), tokenizer, **given), ConfigError)


def test_packing_needs_an_end_of_text_token(tokenizer: PreTrainedTokenizerFast):
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert "'truncate'" in error_of(lambda: ContextStream(iter([]), own, 8), ConfigError)
