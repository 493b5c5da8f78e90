"""A sweep that reads a cache."""

import pytest
import torch as t
from caches import HOOK, OTHER

from dictionary_learning_ext.activations import run_inputs
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
