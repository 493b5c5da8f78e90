"""Streams of documents: every document once, splits apart, passes alike; with and without a hub."""

import json
import os
import shutil
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.json.json import Json
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import DOCUMENTS, WRITERS, error_of, read, write_jsonl, write_parquet, write_txt

from dictionary_learning_ext.activations import text
from dictionary_learning_ext.activations.language_models import Pretrained, load_language_model
from dictionary_learning_ext.activations.text import names_a_file, open_text
from dictionary_learning_ext.errors import ConfigError, LanguageModelError, TextError
from dictionary_learning_ext.run_folder import files
from dictionary_learning_ext.run_folder.files import fingerprint_of


def assert_resumes_anywhere(make):
    whole = list(make())
    stream = make()
    for place in range(len(whole) + 1):
        state = json.loads(json.dumps(stream.state_dict()))
        other = make()
        other.load_state_dict(state)
        assert list(other) == whole[place:]
        next(stream, None)


# Documents, splits and passes.


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 130), blank=st.integers(1, 9))
def test_splits_are_disjoint_and_complete(tmp_path_factory, count, blank):
    documents = ["" if n % 10 == blank else f"document {n}" for n in range(count)]
    path = write_jsonl(tmp_path_factory.mktemp("splits") / "a.jsonl", documents)
    train, heldout = read(path), read(path, split="heldout")
    assert not set(train) & set(heldout)
    assert sorted(train + heldout) == sorted(filter(None, documents))
    assert len(heldout) == len(list(filter(None, documents))) // 20


def test_blank_documents_are_skipped(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "", " \n ", "two"])
    path.write_text(path.read_text() + '\n\n{"text": null}\n')
    assert read(path) == ["one", "two"]


def test_every_pass_reads_the_same_split(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    assert read(path, passes=3) == read(path) * 3
    assert read(path, passes=2, split="heldout") == read(path, split="heldout") * 2


def test_an_empty_text_ends_however_often_it_is_read(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n \n")
    assert read(tmp_path / "a.txt", passes=1_000_000_000) == []
    few = write_jsonl(tmp_path / "few.jsonl", DOCUMENTS[:3])  # none of which is held out
    assert read(few, split="heldout", passes=None) == []


def test_what_names_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zola").mkdir()
    (tmp_path / "embedded").mkdir()
    files = ("novel.txt", "austen.jsonl", "zola", "./x", "~/x", "/x")
    assert all(map(names_a_file, files))
    assert not any(map(names_a_file, ("embedded", "roneneldan/TinyStories", "austen")))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"name": "nofolder/x.txt"}, TextError, "nofolder/x.txt: "),
        ({"name": "/no/such"}, TextError, "/no/such: "),
        ({"name": "nobody/nothing"}, TextError, "nobody/nothing: "),
        ({"split": "dev"}, ConfigError, "split='dev': "),
    ],
)  # fmt: skip
def test_what_can_not_be_opened_is_refused(options, kind, said):
    assert error_of(lambda: open_text(**{"name": "embedded"} | options), kind).startswith(said)


# Resuming.


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_resumes_at_every_document(tmp_path, name, split):
    WRITERS[name](tmp_path / name, DOCUMENTS[:25])
    write_jsonl(tmp_path / "b.jsonl", ["", *DOCUMENTS[25:]])
    assert_resumes_anywhere(lambda: open_text(str(tmp_path), split=split, passes=2))


@pytest.mark.parametrize(("before", "after"), [("", "/"), ("/", "")])
def test_a_folder_resumes_with_and_without_a_slash_at_its_end(before, after, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    stream = open_text(f"{tmp_path}{before}")
    next(stream)
    other = open_text(f"{tmp_path}{after}")
    other.load_state_dict(stream.state_dict())
    assert list(other) == list(stream)


def test_a_finished_text_goes_on_with_more_passes(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b"])
    once = open_text(str(path))
    assert list(once) == ["a", "b"]
    twice = open_text(str(path), passes=2)
    twice.load_state_dict(once.state_dict())
    assert list(twice) == ["a", "b"]


def test_a_text_that_has_changed_is_not_resumed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    state = open_text(str(path)).state_dict()
    write_jsonl(path, DOCUMENTS[1:])
    changed = open_text(str(path))
    assert repr(str(path)) in error_of(lambda: changed.load_state_dict(state))


@pytest.mark.parametrize(
    ("whole_up_to", "part", "seen"),
    [
        (2000, 16, {0, 4, 15, 1000, 1984, 1999}),
        (1000, 16, {0, 4, 15, 1000, 1984, 1999}),  # 256 parts of 16 bytes, which overlap
        (1000, 2, {0, 1999}),  # 4 lies between the first part and the second
    ],
)
def test_a_changed_byte_shows_in_the_fingerprint_where_it_is_read(
    tmp_path, monkeypatch, whole_up_to, part, seen
):
    monkeypatch.setattr(files, "_HASHED_WHOLE", whole_up_to)
    monkeypatch.setattr(files, "_PART", part)
    path = tmp_path / "a.txt"
    content = bytes(n % 251 for n in range(2000))
    path.write_bytes(content)
    before = fingerprint_of([path])
    assert before == fingerprint_of([path])
    for place in seen | {4}:
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        os.utime(path, ns=(place, place))  # a file system's clock may be slower than this test
        assert (fingerprint_of([path]) != before) == (place in seen), place


# Folders.


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
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
        (["stories", "test-0", "test-1"], ["stories"], ["test-0", "test-1"]),
        (["train/0", "test/0"], ["train/0"], ["test/0"]),
        (["a/train/0", "a/dev/0", "a/test/0"], ["a/train/0"], ["a/dev/0"]),
        (["more", "train0", "val", "valid_1"], ["more", "train0"], ["val", "valid_1"]),
        (["Test", "training"], ["training"], ["Test"]),
        (["alice", "testament", "test2"], ["alice", "testament"], ["test2"]),
        (["alice", "testament"], ["alice", "testament"], []),
    ],
)
def test_a_folder_whose_files_are_named_by_split_is_read_by_split(tmp_path, files, train, heldout):
    for name in files:
        write_parquet(tmp_path / f"{name}.parquet", [name])
    assert read(tmp_path) == train
    assert read(tmp_path, split="heldout") == heldout


def test_a_folder_that_holds_only_held_out_files_can_not_be_trained_on(tmp_path):
    write_parquet(tmp_path / "test.parquet", ["1", "2"])
    assert read(tmp_path, split="heldout") == ["1", "2"]
    assert "train" in error_of(lambda: read(tmp_path))


def test_a_file_or_folder_that_holds_no_text_lists_what_can_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    assert ".jsonl.zst" in error_of(lambda: open_text(str(tmp_path)))
    assert ".jsonl.zst" in error_of(lambda: open_text(str(tmp_path / "a.csv")))


# The embedded text.


@pytest.fixture
def embedded(monkeypatch, tmp_path):
    """An embedded text of 30 passages to train on and 6 held out."""
    columns = {
        "text": [f"passage {n}" for n in range(36)],
        "split": ["heldout" if n % 6 == 5 else "train" for n in range(36)],
    }
    pq.write_table(pa.table(columns), tmp_path / "books.parquet")
    monkeypatch.setattr(text, "EMBEDDED_TEXT", tmp_path / "books.parquet")


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


@pytest.mark.usefixtures("embedded")
def test_the_embedded_text_resumes_at_every_document():
    assert_resumes_anywhere(lambda: open_text("embedded", seed=3, passes=2))


# Data sets on the hub.


@pytest.fixture
def hub_set(tmp_path, monkeypatch):
    """Makes a set that `datasets` finds under this name, but which is no folder to `open_text`."""

    def make(**splits):
        for split, documents in splits.items():
            write_parquet(tmp_path / "nobody" / "stories" / f"{split}.parquet", documents)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(text.Path, "exists", lambda _: False)
        return "nobody/stories"

    return make


def test_a_hub_set_is_read_by_its_own_splits(hub_set):
    name = hub_set(train=["a", "b"], validation=["c"], test=["d"])
    assert read(name, passes=2) == ["a", "b", "a", "b"]
    assert read(name, split="heldout") == ["c"]


def test_a_hub_set_without_a_held_out_split_gives_every_20th(hub_set):
    name = hub_set(train=DOCUMENTS)
    assert read(name, split="heldout") == [DOCUMENTS[19], DOCUMENTS[39]]
    assert len(read(name)) == 43


def test_a_hub_set_resumes_at_every_document(hub_set):
    name = hub_set(train=DOCUMENTS[:23])
    assert_resumes_anywhere(lambda: open_text(name, passes=2))


def test_a_data_sets_own_script_is_never_run(tmp_path, monkeypatch):
    folder = tmp_path / "nobody" / "stories"
    folder.mkdir(parents=True)
    (folder / "stories.py").write_text(f"open({str(tmp_path / 'written')!r}, 'w').close()")
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    monkeypatch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_TRUST_REMOTE_CODE", True, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TextError, match="nobody/stories"):
        text._splits_on_hub("nobody/stories")
    assert not (tmp_path / "written").exists()


# Without a network: what is in the cache loads, and the rest is refused at once, in one line.


def test_offline(tiny_lm_dir, tmp_path, monkeypatch):
    """HF_HUB_OFFLINE is set, see conftest.py."""
    snapshot = tmp_path / "models--somebody--cached" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_lm_dir, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    assert load_language_model("somebody/cached").config.hidden_size == 16
    for call in (load_language_model, lambda name: Pretrained(name).width):
        said = error_of(partial(call, "nobody/nothing"), LanguageModelError)
        assert all(part in said for part in ("'nobody/nothing'", "HF_HUB_OFFLINE"))
    assert "HF_HUB_OFFLINE" in error_of(lambda: open_text("nobody/nothing"), TextError)
    assert not slept, "nothing is tried again"


def test_a_state_is_of_one_text(tmp_path):
    """Not of another data set of the hub, nor of the same file where other documents are held out."""
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()
    names = [text._HubSet(rows, name, "text").fingerprint() for name in ("jane/a", "jane/b")]
    assert names[0] != names[1]
    (tmp_path / "both").mkdir()
    for part in ("train", "validation"):
        write_jsonl(tmp_path / "both" / f"{part}.jsonl", DOCUMENTS)
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "both" / "train.jsonl", tmp_path / "alone")
    both, alone = (open_text(str(tmp_path / name)) for name in ("both", "alone"))
    with pytest.raises(TextError, match="alone"):
        alone.load_state_dict(both.state_dict())


def test_a_data_set_in_the_cache_is_read(monkeypatch, tmp_path):
    """As `datasets` keeps one that it has downloaded."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = write_jsonl(tmp_path / "rows.jsonl", ["once", "upon", "a time"])
    files = {"train": [str(rows)]}
    folder = tmp_path / "somebody___stories" / "default" / "0.0.0" / ("0" * 40)
    builder = Json(dataset_name="stories", data_files=files, cache_dir=str(tmp_path))
    builder.download_and_prepare(str(folder))
    assert list(open_text("somebody/stories")) == ["once", "upon", "a time"]
