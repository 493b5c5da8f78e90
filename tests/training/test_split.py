"""Runs of split SAEs, in several processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as t

from dictionary_learning_ext import RunConfig, load_dictionary, train
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import (
    ProbabilisticTopKConfig,
    TopKConfig,
    VSAEConfig,
    VSAETopKConfig,
    sae_settings,
)
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder.files import divided
from dictionary_learning_ext.run_folder.reading import read_history
from dictionary_learning_ext.run_folder.resume_points import steps_of
from dictionary_learning_ext.training.plan import plan
from dictionary_learning_ext.training.processes import Processes

SAE = {"dict_size": 64, "k": 4, "noise_on": "selection", "noise_to_signal": 0.1, "beta": 0.1}
SAE |= {"dead_feature_threshold": 400}
GATES = {"architecture": "probabilistic_top_k", "dict_size": 32, "k": 4}
SAES = {"vsae": SAE, "gates": GATES}
STOPPED = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On activations from disk, with a resume point every 20 steps."""
    folder = tmp_path_factory.mktemp("split_runs")
    random = np.random.default_rng(0)
    rows = random.standard_normal((20_000, 16)) @ random.standard_normal((16, 16))
    (folder / "rows").mkdir()
    np.save(folder / "rows" / "rows.npy", rows.astype("float32"))
    sizes = {"steps": 40, "batch_size": 64, "n_ctxs": 8, "ctx_len": 32, "eval_tokens": 500}
    how = {"save_every": "20", "log_steps": 20, "device": "cpu", "save_dir": str(folder / "run")}
    return RunConfig(activations=str(folder / "rows"), **sizes, **how)


def at(run, name, **changes):
    return replace(run, save_dir=str(Path(run.save_dir).parent / name), **changes)


def furthest(folder, other):
    """The largest difference of two SAEs' weights."""
    one, two = (load_dictionary(each)[0].state_dict() for each in (folder, other))
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def in_one_part(run):
    """The folder of a run that is split into one part, in this process."""
    run = at(run, "one", split=1)
    return train(run, {"sae": sae_settings("vsae_top_k", SAE)})["sae"]


@pytest.fixture(scope="module")
def in_four_processes(run, four_ranks, tmp_path_factory):
    """Runs of two SAEs in four processes: one in two parts that a signal stops, one that continues
    it in four parts, and one in two parts that isn't stopped. And a run of one of them in two parts, so that two
    processes have nothing to do."""
    parts = {"stopped": 2, "in_four": 4, "two": 2, "alone": 2}
    stopped, continued, two, alone = (at(run, name, split=n) for name, n in parts.items())
    runs = [
        {"run": stopped, "stops_at": STOPPED},
        {"run": continued, "continues": stopped.save_dir},
        {"run": two},
        {"run": alone, "only": ["gates"]},
    ]
    four_ranks.run(tmp_path_factory.mktemp("ranks"), {"split_runs": [SAES, runs]})
    assert steps_of(Path(stopped.save_dir, "vsae"))[-1] == STOPPED + 1
    return {"stopped": stopped, "in_four": continued, "two": two, "alone": alone}


@pytest.mark.slow
@pytest.mark.commands
def test_a_stopped_run_is_continued_in_another_number_of_parts(in_four_processes, in_one_part):
    folder = Path(in_four_processes["in_four"].save_dir, "vsae")
    assert furthest(folder, in_one_part) <= 1e-6
    logs = [read_history(each) for each in (folder, in_one_part)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5, nan_ok=True)
    measured = [
        json.loads((each / "metrics.json").read_text())["fve"] for each in (folder, in_one_part)
    ]
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)
    assert json.loads((folder / "config.json").read_text())["run"]["settings"]["split"] == 4


@pytest.mark.slow
@pytest.mark.commands
def test_a_stopped_run_is_continued_in_one_process(in_four_processes, in_one_part):
    stopped = in_four_processes["stopped"]
    run = at(stopped, "in_one", split=1)
    shutil.copytree(stopped.save_dir, run.save_dir)
    folder = train(
        run,
        {n: sae_settings(sae.get("architecture", "vsae_top_k"), sae) for n, sae in SAES.items()},
        resume=True,
    )["vsae"]
    assert furthest(folder, in_one_part) <= 1e-6


@pytest.mark.slow
@pytest.mark.commands
def test_a_point_that_lacks_a_part_is_skipped(run, caplog):
    run = at(run, "damaged", split=1)
    folder = train(run, {"sae": sae_settings("vsae_top_k", SAE)})["sae"]
    before = load_dictionary(folder)[0].state_dict()
    assert steps_of(folder) == [20, 40]
    for part in divided(folder, 40).glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:-1])
    (folder / "ae.pt").unlink()
    (folder / "metrics.json").unlink()
    train(run, {"sae": sae_settings("vsae_top_k", SAE)}, resume=True)
    assert "step_00000040.parts" in caplog.text
    after = load_dictionary(folder)[0].state_dict()
    assert all(t.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
@pytest.mark.commands
def test_several_split_saes_are_dealt_to_the_processes(in_four_processes, in_one_part):
    folder = Path(in_four_processes["two"].save_dir)
    assert furthest(folder / "vsae", in_one_part) <= 1e-6
    assert load_dictionary(folder / "gates")[0].dict_size == 32
    assert all((folder / name / "metrics.json").is_file() for name in SAES)
    assert furthest(in_four_processes["alone"].save_dir, folder / "gates") <= 1e-6


def test_the_number_of_parts_is_no_part_of_a_run_but_that_it_is_split_is():
    whole, two, four = (TrainConfig(run=RunConfig(split=split)).digest for split in (None, 2, 4))
    assert two == four != whole


def test_neighbouring_processes_hold_the_parts_of_an_sae(run, monkeypatch):
    monkeypatch.setattr("dictionary_learning_ext.training.plan.launched", lambda: Processes(0, 4))
    run = at(run, "dealt", split=2)
    planned = plan(run, {"a": VSAETopKConfig(dict_size=64), "b": VSAETopKConfig(dict_size=128)})
    names = [[job.name for job in jobs] for jobs in planned.dealt(4)]
    assert names == [["b"], ["b"], ["a"], ["a"]]


@pytest.mark.parametrize(
    ("sae", "changes", "said"),
    [
        (TopKConfig(), {}, "architecture='top_k'.*vsae_top_k"),
        (VSAEConfig(), {}, "architecture='vsae'.*vsae_top_k"),
        (VSAETopKConfig(), {"split": 3}, "split=3.*power of two"),
        (VSAETopKConfig(dict_size=1026), {"split": 4}, "split=4.*dict_size=1026"),
        (ProbabilisticTopKConfig(), {"split": 8}, "split=8.*torchrun"),
        (VSAETopKConfig(), {"eval_every": 10}, "eval_every=10.*split=4"),
    ],
    ids=str,
)
def test_what_cant_be_split_is_refused(run, sae, changes, said, monkeypatch):
    monkeypatch.setattr("dictionary_learning_ext.training.plan.launched", lambda: Processes(0, 4))
    with pytest.raises(ConfigError, match=said):
        plan(at(run, "refused", **{"split": 4} | changes), {"sae": sae})
