"""A sweep over hook points: one pass of the language model, and the weights of single runs."""

import csv
import re

import pytest
import torch as t
from language_model_reads import counted_passes
from sweep_flags import train_config

from dictionary_learning_ext import train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.sweep.runner import run_sweep
from dictionary_learning_ext.sweep.sweep_file import configurations, read_sweep

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.fixture
def path(sweep_file):
    return sweep_file(parameters={"hook": {"values": HOOKS}, "k": {"values": [2, 4]}})


def test_the_hook_points_share_the_passes_of_the_language_model(path, tmp_path, monkeypatch):
    configs = configurations(read_sweep(path), train_config)
    assert len(configs) == 4
    monkeypatch.setattr("dictionary_learning_ext.training.loop._evaluate", lambda *_: None)
    with counted_passes() as together:
        run_sweep(configs, tmp_path / "s", at_once=4)
    with counted_passes() as alone:
        for name, config in configs.items():
            run = train_config([*read_sweep(path).flags, f"--hook={config.run.hook}"]).run
            values = vars(run) | {"save_dir": str(tmp_path / "alone" / name)}
            (folder,) = train(type(run)(**values), {"x": config.sae}).values()
            one, other = (
                t.load(each / "ae.pt", weights_only=True)
                for each in (folder, tmp_path / "s" / name)
            )
            assert all(t.equal(one[key], other[key]) for key in one)
    checks = 1  # that an MLP's output is what its block adds: one context, once a run
    assert alone.count(1) == 2 * checks
    assert together.count(1) == checks
    assert len(together) - checks == (len(alone) - 2 * checks) / len(configs)


def test_the_results_show_the_hook_point_and_the_best_at_each(path, tmp_path, capsys):
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    assert "Lowest description length for each hook and k, out of 4 runs" in shown
    for hook in HOOKS:
        assert re.search(rf"\n  hook={hook}, k=2[^\n]*\n    vsae_top_k_k2_", shown), shown
    rows = list(csv.DictReader((tmp_path / "s" / "results.csv").open()))
    assert sorted(row["hook"] for row in rows) == sorted(HOOKS * 2)
    page = (tmp_path / "s" / "results.html").read_text()
    assert "Best for each hook and k" in page


def test_several_hook_points_in_one_run_are_refused(sweep_file):
    both = ",".join(HOOKS)
    sweep = read_sweep(sweep_file(parameters={"hook": {"values": [both]}, "k": {"value": 4}}))
    with pytest.raises(ConfigError, match=r"a run of a sweep has one hook point; to train on"):
        configurations(sweep, train_config)
    plain = read_sweep(sweep_file())
    with pytest.raises(ConfigError, match=r"give .*sweep\.yaml the parameter hook with values \["):
        configurations(plain, train_config, ["--hook", both])
