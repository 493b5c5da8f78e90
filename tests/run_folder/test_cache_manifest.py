"""A cache that is unfinished, damaged or changed is refused with what to do."""

import json
import shutil

import pytest
from caches import HOOK
from texts import error_of

from dictionary_learning_ext.errors import ActivationsError
from dictionary_learning_ext.run_folder.cache_manifest import (
    MANIFEST,
    CachedHook,
    finished_manifest,
)


@pytest.fixture
def folder(small_cache, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(small_cache, tmp_path / "cache")


def change(folder, edit):
    """Change the content of a manifest."""
    content = json.loads((folder / MANIFEST).read_text())
    edit(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def refused(folder):
    return error_of(lambda: finished_manifest(folder), ActivationsError)


def test_it_says_what_the_cache_holds(folder, cached_run):
    settings = finished_manifest(folder).settings
    for name in ("model", "data", "ctx_len"):
        assert getattr(settings, name) == getattr(cached_run, name)
    assert settings.hooks[HOOK] == CachedHook(layer=1, width=16)
    assert len(settings.language_model) == len(settings.tokenizer) == 64
    assert settings.bos_token_id == 0


def test_an_unfinished_one_is_continued_first(folder):
    change(folder, lambda content: content.update(finished=0))
    assert "(4,000 tokens are written); run its `vsae cache` command again" in refused(folder)


def test_only_the_files_of_a_finished_cache_are_read_while_it_grows(folder):
    change(folder, lambda content: content.update(finished=2))
    assert len(finished_manifest(folder).files) == 2


@pytest.mark.parametrize("name", ["data-00002.arrow", "heldout/documents.npy"])
def test_a_file_that_is_cut_or_missing_is_refused(name, folder):
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-8])
    assert refused(folder).startswith(f"{path}: {size - 8:,} bytes; expected {size:,}; restore it")
    path.unlink()
    assert refused(folder).startswith(f"{path}: 0 bytes; expected {size:,}; restore it")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {"hooks": 3}}'])
def test_a_damaged_manifest_is_refused(content, folder):
    (folder / MANIFEST).write_text(content)
    assert refused(folder).startswith(f"{folder / MANIFEST}: damaged (")


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(files=[]),
        lambda content: content["settings"].update(hooks={}),
        lambda content: content["position"].update(pieces=None),
        lambda content: content["position"].update(text=[]),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(edit, folder):
    change(folder, edit)
    assert refused(folder).startswith(f"{folder / MANIFEST}: damaged (")


@pytest.mark.parametrize(
    ("part", "value"),
    [({"bytes": "many"}, "many"), ({"name": "../elsewhere.arrow"}, "../elsewhere.arrow")],
)
def test_a_file_that_cannot_be_is_refused(part, value, folder):
    change(folder, lambda content: content["files"][0].update(part))
    assert repr(value) in refused(folder)


def test_the_digest_follows_the_settings_and_the_files(folder):
    edits = [
        lambda content: content["settings"].update(data_seed=3),
        lambda content: content.update(finished=2),
    ]
    digests = {finished_manifest(folder).digest}
    for edit in edits:
        change(folder, edit)
        digests.add(finished_manifest(folder).digest)
    assert len(digests) == 3
