"""SAEs of several hook points in one run: each as in a run of its own, to the bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from interrupted_runs import assert_equal, results, resumed, sae_of, stopped_at

from dictionary_learning_ext import train
from dictionary_learning_ext.errors import Interrupted
from dictionary_learning_ext.evaluation.folders import evaluate_folders

HOOKS = {"early": "blocks.0.hook_mlp_out", "late": "blocks.2.hook_resid_pre"}
SAES = {"early": sae_of(), "late": sae_of("top_k", dict_size=24)}


def settings_of(folder):
    settings = json.loads((folder / "config.json").read_text())["run"]["settings"]
    return {name: value for name, value in settings.items() if name != "save_dir"}


@pytest.fixture
def alone(run, tmp_path):
    folders = {}
    for name, hook in HOOKS.items():
        own = replace(run, hook=hook, save_dir=str(tmp_path / "alone" / name))
        folders |= train(own, {name: SAES[name]})
    return folders


def test_each_is_the_run_of_its_own_and_stays_so_when_stopped_and_resumed(run, alone, monkeypatch):
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted, match=f"`vsae train --resume {run.save_dir}`$"):
        train(run, SAES, HOOKS)
    together = resumed(run.save_dir)
    for name in HOOKS:
        assert together[name] == Path(run.save_dir) / name
        assert_equal(results(together[name]), results(alone[name]))
        assert settings_of(together[name]) == settings_of(alone[name])
        assert settings_of(together[name])["hook"] == HOOKS[name]


def test_the_hook_of_the_run_is_that_of_saes_without_one(run):
    quiet = replace(run, steps=2, eval_tokens=0, hook="blocks.1.hook_resid_post")
    folders = train(quiet, SAES, {"early": HOOKS["early"]})
    found = {name: settings_of(folder)["hook"] for name, folder in folders.items()}
    assert found == {"early": HOOKS["early"], "late": "blocks.1.hook_resid_post"}


def test_folders_of_several_hook_points_are_evaluated_together(run):
    folders = train(replace(run, steps=3), SAES, HOOKS)
    again = evaluate_folders(list(folders.values()))
    assert list(again) == [str(folder) for folder in folders.values()]
    for name, folder in folders.items():
        written = json.loads((folder / "metrics.json").read_text())
        assert written["measured_on"]["hook"] == HOOKS[name]
        assert again[str(folder)] == written
