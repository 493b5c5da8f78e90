"""A sweep that reads a cache."""

import pytest
import torch as t
from caches import HOOK, OTHER

from dictionary_learning_ext.activations import language_models as run_inputs
from dictionary_learning_ext.cli import main


def test_runs_of_two_hook_points_read_one_cache_and_need_no_language_model(
    sweep_file, small_cache, tmp_path, monkeypatch
):
    path = sweep_file(parameters={"hook": {"values": [HOOK, OTHER]}, "k": {"values": [2, 4]}})
    monkeypatch.setattr(
        run_inputs, "load_language_model", lambda *_, **__: pytest.fail("a model is loaded")
    )
    flags = [f"--activations={small_cache}", "--eval-tokens=0"]
    assert main(["sweep", str(path), *flags, f"--save-dir={tmp_path / 's'}"]) == 0
    folders = sorted(path.parent for path in (tmp_path / "s").glob("*/ae.pt"))
    assert len(folders) == 4
    one = folders[0]
    again = ["train", f"--config={one}", f"--save-dir={tmp_path / 'alone'}"]
    assert main(again) == 0
    ours, single = (t.load(folder / "ae.pt") for folder in (one, tmp_path / "alone"))
    assert all(t.equal(ours[key], single[key]) for key in ours)


@pytest.mark.parametrize("ks", [[4], [2, 4]])
def test_a_hook_point_that_the_cache_lacks_is_refused_before_anything_is_written(
    ks, sweep_file, small_cache, tmp_path, capsys
):
    path = sweep_file(parameters={"k": {"values": ks}})
    flags = [f"--activations={small_cache}", "--hook=blocks.9.hook_mlp_out"]
    assert main(["sweep", str(path), *flags, f"--save-dir={tmp_path / 's'}"]) == 2
    printed = capsys.readouterr()
    assert (
        f"--hook blocks.9.hook_mlp_out: the cache {small_cache} has {HOOK}, {OTHER}; give one of these"
        in printed.err
    )
    assert printed.out == ""
    assert not (tmp_path / "s").exists()


def test_a_sweep_whose_language_model_lacks_the_hook_point_leaves_no_folder(
    sweep_file, tmp_path, capsys
):
    path = sweep_file(parameters={"k": {"values": [2, 4]}})
    folder = tmp_path / "s"
    command = ["sweep", str(path), "--hook=blocks.9.hook_mlp_out", f"--save-dir={folder}"]
    assert main(command) == 2
    assert "blocks.9.hook_mlp_out" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert main(command) == 2
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
