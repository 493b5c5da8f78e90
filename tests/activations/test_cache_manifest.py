"""A cache that is unfinished, damaged or changed is refused with what to do."""

import json
import shutil

import pytest
from caches import HOOK
from texts import error_of

from dictionary_learning_ext.activations.cache_manifest import (
    MANIFEST,
    UNFINISHED,
    CachedHook,
    finished_manifest,
    read_manifest,
)
from dictionary_learning_ext.errors import ActivationsError


@pytest.fixture
def folder(small_cache, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(small_cache, tmp_path / "cache")


def refused(folder):
    return error_of(lambda: finished_manifest(folder), ActivationsError)


def test_it_says_what_the_cache_holds(folder, cached_run):
    manifest = finished_manifest(folder)
    settings = manifest.settings
    for name in ("model", "data", "ctx_len"):
        assert getattr(settings, name) == getattr(cached_run, name)
    assert settings.hooks[HOOK] == CachedHook(layer=1, width=16)
    assert len(settings.language_model) == len(settings.tokenizer) == 64
    assert settings.bos_token_id == 0


def test_an_unfinished_one_is_continued_first(folder):
    (folder / MANIFEST).rename(folder / UNFINISHED)
    said = refused(folder)
    assert said.startswith(f"{folder}: ")
    assert "4,000 tokens" in said
    assert "`vsae cache`" in said


@pytest.mark.parametrize(
    "name", ["data-00002.arrow", "heldout/data-00000.arrow", "heldout/documents.npy"]
)
def test_a_file_of_another_size_is_always_refused(name, folder):
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-8])
    said = f"{path}: {size - 8:,} bytes, expected {size:,}, so it was cut or changed; restore it"
    assert refused(folder).startswith(said)
    path.unlink()
    assert refused(folder).startswith(f"{path}: missing; restore it, or cache ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged (JSONDecodeError"),
        ("[]", "damaged ("),
        ("{}", "damaged (KeyError: 'format')"),
        ('{"format": 2}', "expected format 1"),
    ],
)
def test_a_manifest_of_something_else_is_refused(content, said, folder):
    (folder / MANIFEST).write_text(content)
    line = refused(folder)
    assert line.startswith(f"{folder / MANIFEST}: ")
    assert said in line


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (("files", 0), "bytes", "many"),
        (("settings",), "ctx_len", "x"),
        (("settings",), "hooks", {"h": {"layer": 1}}),
        ((), "heldout", 3),
    ],
)
def test_a_manifest_with_a_value_of_another_type_is_refused(place, name, value, folder):
    content = json.loads((folder / MANIFEST).read_text())
    inner = content
    for each in place:
        inner = inner[each]
    inner[name] = value
    (folder / MANIFEST).write_text(json.dumps(content))
    assert refused(folder).startswith(f"{folder / MANIFEST}: damaged (")


@pytest.mark.parametrize("name", ["../elsewhere.arrow", "/etc/passwd"])
def test_a_file_that_is_not_in_the_folder_is_not_read(name, folder):
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][0]["name"] = name
    (folder / MANIFEST).write_text(json.dumps(content))
    assert repr(name) in refused(folder)


def test_the_digest_follows_the_content(folder):
    manifest = read_manifest(folder)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][0]["sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(folder).digest != manifest.digest
