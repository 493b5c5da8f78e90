"""What a measurement is of: a hash follows the content of weights, text and model, and nothing else."""

import json
import os
import shutil

import pytest
from export_folders import of_sae_lens

from dictionary_learning_ext.run_folder.identity import differences, key_of, parts_of, sources_of
from dictionary_learning_ext.run_folder.sae_folder import find_sae


def of_text(path):
    return sources_of({"data": str(path), "model": "embedded"})["data"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_text_is_known_by_its_content(is_folder, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    file = folder / "text.txt"
    file.write_text("one")
    text = folder if is_folder else file
    before, state = of_text(text), file.stat()
    (folder / ".lock").write_text("process 1")  # as when a cache is locked again
    os.utime(file)
    assert of_text(text) == before
    assert (
        of_text(shutil.copytree(folder, tmp_path / "copy") / ("" if is_folder else "text.txt"))
        == before
    )
    file.write_text("two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert of_text(text) not in (before, None)


def test_what_is_not_here_or_shipped_has_no_hash(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path)
    for name in ("embedded", "./gone/lm", "jane/lm"):
        assert sources_of({"data": name, "model": name}) == {"data": None, "model": None}
    commit = tmp_path / "models--jane--lm" / "refs" / "main"
    commit.parent.mkdir(parents=True)
    commit.write_text("abc")
    assert sources_of({"data": None, "model": "jane/lm"})["model"] == "abc"


def test_a_cache_stands_for_its_text_and_model(small_cache, tmp_path):
    settings = {"activations": str(small_cache), "data": "x", "model": "y"}
    (found,) = sources_of(settings).items()
    copy = shutil.copytree(small_cache, tmp_path / "copy")
    assert found == ("activations", sources_of({"activations": str(copy)})["activations"])
    (copy / "manifest.json").unlink()
    assert sources_of({"activations": str(copy)})["activations"] not in (found[1], None)


@pytest.mark.parametrize(
    ("changes", "is_other"),
    [
        ({"ctx_len": 5}, True),
        ({"lm_dtype": "bfloat16"}, True),
        ({"language_model": "abc"}, True),
        ({"text_packing": "truncate"}, True),
        ({"model": "elsewhere/lm", "data_seed": 7, "eval_tokens": 7}, False),
    ],
    ids=str,
)
def test_a_cache_is_another_where_its_held_out_activations_are(
    changes, is_other, small_cache, tmp_path
):
    def hash_of(folder):
        return sources_of({"activations": str(folder)})["activations"]

    path = shutil.copytree(small_cache, tmp_path / "copy") / "manifest.json"
    manifest = json.loads(path.read_text())
    assert all(manifest["settings"][name] != value for name, value in changes.items())
    manifest["settings"] |= changes
    path.write_text(json.dumps(manifest))
    assert (hash_of(path.parent) != hash_of(small_cache)) == is_other


def test_an_sae_is_known_by_its_weights_and_another_librarys_by_its_settings_too(trained, tmp_path):
    one = shutil.copytree(trained / "vsae", tmp_path / "one")
    assert find_sae(one).hash == find_sae(trained / "vsae").hash != find_sae(trained / "top_k").hash
    of_sae_lens(tmp_path / "theirs")
    before = find_sae(tmp_path / "theirs").hash
    config = tmp_path / "theirs" / "cfg.json"
    config.write_text(config.read_text() + " ")
    assert find_sae(tmp_path / "theirs").hash != before


def test_content_counts_where_both_are_hashed_and_names_where_one_is_not():
    was = parts_of({"data": "a", "k": 4}, {"weights": "1", "data": "2", "model": None})
    moved = parts_of({"data": "b", "k": 4}, {"weights": "1", "data": "2", "model": "3"})
    assert differences(was, moved) == []
    assert differences(was, {"data": "a"}) == differences(was, {"k": 4.0}) == []
    assert differences(was, {"data": "b"}) == ["data"], "it may have moved or not"
    other = parts_of({"data": "a", "k": 5}, {"weights": "2", "data": "3"})
    assert differences(was, moved, other) == ["data", "k", "weights"]
    assert differences(was, other, ignoring=("k", "data")) == ["weights"]


def test_what_a_cache_stands_for_is_not_compared_beside_it():
    cached = parts_of({"activations": "a", "data": "x", "model": "y"}, {"activations": "1"})
    copy = parts_of({"activations": "b", "data": "z", "model": "z"}, {"activations": "1"})
    assert differences(cached, copy) == []
    assert key_of(cached) == key_of(copy)
    gone = parts_of({"activations": "a", "data": "x", "model": "y"}, {"activations": None})
    assert differences(cached, gone) == []
    assert differences(copy, gone) == ["activations"]
