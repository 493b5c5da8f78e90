"""Streams of documents: every document once, splits apart, passes alike."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import DOCUMENTS, error_of, read, write_jsonl

from dictionary_learning_ext.activations.text import names_a_file, open_text
from dictionary_learning_ext.errors import ConfigError


def test_what_names_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zola").mkdir()
    (tmp_path / "embedded").mkdir()
    files = ("novel.txt", "austen.jsonl", "zola", "./x", "~/x", "/x")
    assert all(map(names_a_file, files))
    assert not any(map(names_a_file, ("embedded", "roneneldan/TinyStories", "austen")))


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


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/file", "no-such.txt", "no:such"])
def test_an_unknown_text_is_one_line_that_says_what_to_give(name: str):
    message = error_of(lambda: open_text(name))
    assert repr(name) in message
    assert "'embedded'" in message


def test_a_file_that_is_not_there_has_nothing_to_do_with_the_hub():
    message = error_of(lambda: open_text("nofolder/x.txt"))
    assert message.startswith("no file 'nofolder/x.txt': expected an existing file")
    assert "hub" not in message


def test_a_line_that_is_no_json_says_at_which_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "a\tb"}\n')
    assert "(Invalid control character at character 12): expected" in error_of(
        lambda: read(tmp_path / "a.jsonl")
    )


def test_unknown_split_and_no_passes_are_refused(tmp_path: Path):
    split: Any = "dev"
    message = error_of(lambda: open_text("embedded", split=split), ConfigError)
    assert "split='dev': expected one of train, heldout" in message
    message = error_of(lambda: open_text("embedded", passes=0), ConfigError)
    assert "passes=0: expected at least 1" in message


def test_a_finished_text_goes_on_with_more_passes(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b"])
    once = open_text(str(path))
    assert list(once) == ["a", "b"]
    twice = open_text(str(path), passes=2)
    twice.load_state_dict(once.state_dict())
    assert list(twice) == ["a", "b"]


def test_a_state_of_another_seed_is_refused(tmp_path: Path):
    path = str(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS))
    state = open_text(path, seed=1).state_dict()
    assert "'seed': 1" in error_of(lambda: open_text(path).load_state_dict(state))


def test_a_state_of_a_changed_text_is_refused(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    state = open_text(str(path)).state_dict()
    write_jsonl(path, DOCUMENTS[1:])
    stream = open_text(str(path))
    assert "has changed" in error_of(lambda: stream.load_state_dict(state))
