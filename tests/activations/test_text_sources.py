"""Folders, the embedded text and data sets on the hub: their splits, orders, and resuming them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import DOCUMENTS, WRITERS, error_of, read, write_jsonl, write_parquet, write_txt

from dictionary_learning_ext.activations import text, text_sources
from dictionary_learning_ext.activations.text import TextStream, open_text
from dictionary_learning_ext.activations.text_sources import fingerprint_of
from dictionary_learning_ext.errors import TextError


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
        (["train/0", "test/0"], ["train/0"], ["test/0"]),
        (["a/train/0", "a/dev/0", "a/test/0"], ["a/train/0"], ["a/dev/0"]),
        (["more", "train0", "val", "valid_1"], ["more", "train0"], ["val", "valid_1"]),
        (["Test", "training"], ["training"], ["Test"]),
        (["alice", "testament", "test2"], ["alice", "testament"], ["test2"]),
    ],
)
def test_a_folder_whose_files_are_named_by_split_is_read_by_split(
    tmp_path: Path, files: list[str], train: list[str], heldout: list[str]
):
    for name in files:
        write_parquet(tmp_path / f"{name}.parquet", [name])
    assert read(tmp_path) == train
    assert read(tmp_path, split="heldout") == heldout


def test_a_file_that_only_begins_like_a_split_is_text_to_train_on(tmp_path: Path):
    for name in ("alice", "testament"):
        write_parquet(tmp_path / f"{name}.parquet", [name])
    assert read(tmp_path) == ["alice", "testament"]


def test_a_folder_that_holds_only_held_out_files_can_not_be_trained_on(tmp_path: Path):
    write_parquet(tmp_path / "test.parquet", ["1", "2"])
    assert read(tmp_path, split="heldout") == ["1", "2"]
    said = "test.parquet is held out by its name, and no file is left to train on; add one"
    assert said in error_of(lambda: read(tmp_path))


def test_a_file_or_folder_that_holds_no_text_lists_what_can_be_read(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b")
    assert ".jsonl.zst" in error_of(lambda: open_text(str(tmp_path)))
    assert ".jsonl.zst" in error_of(lambda: open_text(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_resumes_at_every_document(tmp_path: Path, name: str, split: Any):
    WRITERS[name](tmp_path / name, DOCUMENTS[:25])
    write_jsonl(tmp_path / "b.jsonl", ["", *DOCUMENTS[25:]])
    assert_resumes_anywhere(lambda: open_text(str(tmp_path), split=split, passes=2))


def test_a_folder_resumes_with_and_without_a_slash_at_its_end(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    for before, after in (("", "/"), ("/", "")):
        stream = open_text(f"{tmp_path}{before}")
        next(stream)
        other = open_text(f"{tmp_path}{after}")
        other.load_state_dict(stream.state_dict())
        assert list(other) == list(stream)


@pytest.mark.parametrize("whole_up_to", [1000, 2000])
def test_a_changed_byte_shows_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_up_to: int
):
    """In a file that is hashed whole, and in one that is hashed in 256 parts, which cover it here."""
    monkeypatch.setattr(text_sources, "_HASHED_WHOLE", whole_up_to)
    monkeypatch.setattr(text_sources, "_PART", 16)
    path = tmp_path / "a.txt"
    content = bytes(n % 251 for n in range(2000))
    path.write_bytes(content)
    before = fingerprint_of([path])
    assert before == fingerprint_of([path])
    for place in (0, 15, 16, 1000, 1984, 1999):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert fingerprint_of([path]) != before, place


def test_only_parts_of_a_large_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_sources, "_HASHED_WHOLE", 1000)
    monkeypatch.setattr(text_sources, "_PART", 2)
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(2000))
    before = fingerprint_of([path])
    path.write_bytes(bytes(4) + b"x" + bytes(1995))  # between the first part and the second
    assert fingerprint_of([path]) == before
    path.write_bytes(bytes(1999) + b"x")
    assert fingerprint_of([path]) != before, "the end is read"


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


@pytest.mark.usefixtures("embedded")
def test_the_embedded_text_resumes_at_every_document():
    assert_resumes_anywhere(lambda: open_text("embedded", seed=3, passes=2))


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


def test_a_hub_set_resumes_at_every_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = hub_set(tmp_path, monkeypatch, train=DOCUMENTS[:23])
    assert_resumes_anywhere(lambda: open_text(name, passes=2))


def test_a_data_sets_own_script_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "nobody" / "stories"
    folder.mkdir(parents=True)
    (folder / "stories.py").write_text(f"open({str(tmp_path / 'written')!r}, 'w').close()")
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    monkeypatch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_TRUST_REMOTE_CODE", True, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TextError, match=r"couldn't fetch a data set|no data set of this name"):
        text_sources.open_hub_set("nobody/stories", "train")
    assert not (tmp_path / "written").exists()
