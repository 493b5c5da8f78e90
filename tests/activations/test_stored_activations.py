"""What a folder of activations is, and whether it is what a run asks for."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from caches import HOOK, OTHER, write_small

from dictionary_learning_ext.activations import stored_activations
from dictionary_learning_ext.activations.stored_activations import UNKNOWN, open_stored
from dictionary_learning_ext.activations.text_sources import fingerprint_of
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ActivationsError


@pytest.fixture
def own(tmp_path):
    """60 rows of width 6, in two files."""
    folder = tmp_path / "own"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones((50, 6), np.float32))
    np.save(folder / "b.npy", np.ones((10, 6), np.float32))
    return folder


def test_a_cache_gives_the_settings_of_a_run(small_cache, cached_run):
    stored = open_stored(small_cache)
    run = replace(RunConfig(hook=HOOK), **stored.settings)
    names = ("model", "data", "text_packing", "ctx_len")
    assert [getattr(run, name) for name in names] == [getattr(cached_run, name) for name in names]
    assert run.activations == str(small_cache)
    assert run.hook == HOOK, "one of two"
    stored.require_fit(run, [run.hook])
    assert stored.tokens["train"] == 4000
    assert [part.stop for part in stored.parts("train")] == [32, 32, 32, 29]


def test_of_one_hook_point_the_name_follows_too(cached_run, tmp_path):
    write_small(tmp_path / "cache", cached_run, 100)
    assert open_stored(tmp_path / "cache").settings["hook"] == HOOK


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook": "blocks.2.hook_resid_post"}, f" has {HOOK}, {OTHER}; give one of these"),
        ({"hook": f"{HOOK},blocks.2.hook_resid_post"}, "hook='blocks.2.hook_resid_post': "),
        ({"model": "embedded"}, "model='embedded': "),
        ({"data": "embedded"}, "data='embedded': "),
        ({"ctx_len": 64}, "ctx_len=64: "),
        ({"text_packing": "truncate"}, "text_packing='truncate': "),
    ],
)  # fmt: skip
def test_what_differs_is_refused_with_the_difference(changes, said, small_cache):
    stored = open_stored(small_cache)
    run = replace(replace(RunConfig(hook=HOOK), **stored.settings), **changes)
    with pytest.raises(ActivationsError) as raised:
        stored.require_fit(run, run.hook.split(","))
    assert said in str(raised.value)
    assert f": the cache {small_cache} has " in str(raised.value)


def test_a_text_is_the_same_under_another_name_and_another_if_it_changed(
    small_cache, cached_run, tmp_path
):
    stored = open_stored(small_cache)
    run = replace(RunConfig(hook=HOOK), **stored.settings)
    (tmp_path / "there").mkdir()
    copy = shutil.copy(cached_run.data, tmp_path / "there")
    stored.require_fit(replace(run, data=str(copy)), [HOOK])
    with open(copy, "a") as file:
        file.write("more")
    with pytest.raises(ActivationsError, match="leave it out"):
        stored.require_fit(replace(run, data=str(copy)), [HOOK])
    write_small(tmp_path / "cache", replace(cached_run, data=str(copy)), 100)
    with open(copy, "a") as file:
        file.write("more")
    stored = open_stored(tmp_path / "cache")
    run = replace(RunConfig(), **stored.settings)
    with pytest.raises(ActivationsError, match="has changed since it was cached"):
        stored.require_fit(run, [run.hook])
    copy_path = tmp_path / "there"
    shutil.rmtree(copy_path)
    stored.require_fit(run, [run.hook])  # a text that isn't here any more is not needed


def test_own_activations_are_rows_and_the_last_5_percent_are_held_out(own):
    stored = open_stored(own)
    assert stored.kind == "own activations"
    assert stored.tokens == {"train": 57, "heldout": 3}
    assert [(part.path.name, part.start, part.stop) for part in stored.parts("train")] == [
        ("a.npy", 0, 50),
        ("b.npy", 0, 7),
    ]
    assert [(part.start, part.stop) for part in stored.parts("heldout")] == [(7, 10)]
    assert stored.settings == {
        "activations": str(own),
        "model": UNKNOWN,
        "hook": UNKNOWN,
        "data": str(own),
    }
    assert stored.hook("blocks.3.hook_mlp_out").width == 6, "whatever it is called"


def test_the_name_of_own_activations_gives_their_layer(own):
    stored = open_stored(own)
    layers = {name: stored.hook(name).layer for name in ("blocks.12.hook_resid_post", UNKNOWN)}
    assert layers == {"blocks.12.hook_resid_post": 12, UNKNOWN: 0}


def test_the_digest_of_own_activations_follows_their_sizes(own):
    before = open_stored(own).digest
    np.save(own / "b.npy", np.ones((11, 6), np.float32))
    assert open_stored(own).digest != before


def test_the_digest_of_own_activations_follows_their_values(own):
    before = open_stored(own).digest
    assert open_stored(own).digest == before
    np.save(own / "b.npy", np.full((10, 6), 2, np.float32))
    os.utime(own / "b.npy", (0, 0))  # a file system's clock may be slower than this test
    assert open_stored(own).digest != before


def test_files_that_have_not_changed_are_hashed_once(own, monkeypatch):
    hashed = []

    def counted(files):
        hashed.extend(file.name for file in files)
        return fingerprint_of(files)

    monkeypatch.setattr(stored_activations, "fingerprint_of", counted)
    assert open_stored(own).digest == open_stored(own).digest
    assert hashed == ["a.npy", "b.npy"]


def test_what_holds_no_activations_is_refused(tmp_path):
    with pytest.raises(ActivationsError) as raised:
        open_stored(tmp_path / "nowhere")
    assert str(raised.value) == (
        f"activations={str(tmp_path / 'nowhere')!r}: no such folder; expected a cache (`vsae cache`, or"
        " SAELens's CacheActivationsRunner) or a folder of .npy or .safetensors files with a row per"
        " token"
    )
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(
        ActivationsError, match=r"thesis.tex': is a file; expected a cache .* a folder"
    ):
        open_stored(tmp_path / "thesis.tex")
    with pytest.raises(ActivationsError, match=r"holds thesis.tex; expected a cache"):
        open_stored(tmp_path)
    np.save(tmp_path / "x.npy", np.ones((1, 6), np.float32))
    with pytest.raises(ActivationsError, match="1 contexts or rows, expected at least 2"):
        open_stored(tmp_path)
