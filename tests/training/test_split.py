"""Runs of split SAEs, in processes that the real torchrun starts."""

import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import split_runs
import torch as t
from torchrun import ended, torchrun

from dictionary_learning_ext import RunConfig, SAEConfig, load_dictionary, train
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import ProbabilisticTopKConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder.files import divided
from dictionary_learning_ext.run_folder.reading import read_history
from dictionary_learning_ext.run_folder.resume_points import steps_of
from dictionary_learning_ext.training.plan import plan
from dictionary_learning_ext.training.processes import Processes

SAE = {"dict_size": 64, "k": 4, "noise_on": "selection", "noise_to_signal": 0.1, "beta": 0.1}
SAE |= {"dead_feature_threshold": 400}
KILLED = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On activations from disk, with a resume point every 20 steps."""
    folder = tmp_path_factory.mktemp("split_runs")
    random = np.random.default_rng(0)
    rows = random.standard_normal((20_000, 16)) @ random.standard_normal((16, 16))
    (folder / "rows").mkdir()
    np.save(folder / "rows" / "rows.npy", rows.astype("float32"))
    sizes = {"steps": 60, "batch_size": 64, "n_ctxs": 8, "ctx_len": 32, "eval_tokens": 500}
    how = {"save_every": "20", "log_steps": 20, "device": "cpu", "save_dir": str(folder / "run")}
    return RunConfig(activations=str(folder / "rows"), **sizes, **how)


def in_processes(count, run, saes=None, *, resume=False, killed=None):
    """Train in so many processes. Returns the exit code of torchrun, and what was printed."""
    settings = {"run": asdict(run), "saes": saes or {"sae": SAE}, "resume": resume}
    settings |= {} if killed is None else {"killed": killed}
    process = torchrun(count, Path(split_runs.__file__), json.dumps(settings))
    _, error = ended(process)
    return process.returncode, error


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
    return train(run, {"sae": SAEConfig(**SAE)})["sae"]


@pytest.fixture(scope="module")
def killed(run):
    """A run in two parts, one of whose processes is killed at step KILLED."""
    run = at(run, "killed", split=2)
    code, error = in_processes(2, run, killed=(KILLED, 1, signal.SIGKILL))
    assert code != 0, error
    assert steps_of(Path(run.save_dir)) == [20]
    return run


def resumed(killed, name, split):
    """A copy of the killed run, to be resumed in other parts."""
    run = at(killed, name, split=split)
    shutil.copytree(killed.save_dir, run.save_dir)
    return run


@pytest.mark.slow
@pytest.mark.commands
def test_a_killed_run_is_continued_in_another_number_of_parts(killed, in_one_part):
    run = resumed(killed, "in_four", 4)
    code, error = in_processes(4, run, resume=True)
    assert code == 0, error
    folder = Path(run.save_dir)
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
def test_a_killed_run_is_continued_in_one_process(killed, in_one_part):
    run = resumed(killed, "in_one", 1)
    train(run, {"sae": SAEConfig(**SAE)}, resume=True)
    assert furthest(Path(run.save_dir), in_one_part) <= 1e-6


@pytest.mark.slow
@pytest.mark.commands
def test_a_point_that_lacks_a_part_is_skipped(run, caplog):
    run = at(run, "damaged", split=1)
    folder = train(run, {"sae": SAEConfig(**SAE)})["sae"]
    before = load_dictionary(folder)[0].state_dict()
    assert steps_of(folder) == [40, 60]
    for part in divided(folder, 60).glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:-1])
    (folder / "ae.pt").unlink()
    (folder / "metrics.json").unlink()
    train(run, {"sae": SAEConfig(**SAE)}, resume=True)
    assert "step_00000060.parts" in caplog.text
    after = load_dictionary(folder)[0].state_dict()
    assert all(t.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
@pytest.mark.commands
def test_several_split_saes_are_dealt_to_the_processes(run, in_one_part):
    run = at(run, "two", split=2)
    other = {"architecture": "probabilistic_top_k", "dict_size": 32, "k": 4}
    code, error = in_processes(4, run, {"vsae": SAE, "gates": other})
    assert code == 0, error
    folder = Path(run.save_dir)
    assert furthest(folder / "vsae", in_one_part) <= 1e-6
    assert load_dictionary(folder / "gates")[0].dict_size == 32
    assert all((folder / name / "metrics.json").is_file() for name in ("vsae", "gates"))


def test_the_number_of_parts_is_no_part_of_a_run_but_that_it_is_split_is():
    whole, two, four = (TrainConfig(run=RunConfig(split=split)).digest for split in (None, 2, 4))
    assert two == four != whole


def test_neighbouring_processes_hold_the_parts_of_an_sae(run, monkeypatch):
    monkeypatch.setattr("dictionary_learning_ext.training.plan.launched", lambda: Processes(0, 4))
    run = at(run, "dealt", split=2)
    planned = plan(run, {"a": SAEConfig(dict_size=64), "b": SAEConfig(dict_size=128)})
    names = [[job.name for job in jobs] for jobs in planned.dealt(4)]
    assert names == [["b"], ["b"], ["a"], ["a"]]


@pytest.mark.parametrize(
    ("sae", "changes", "said"),
    [
        (SAEConfig(architecture="top_k"), {}, "architecture='top_k'.*vsae_top_k"),
        (SAEConfig(architecture="vsae"), {}, "architecture='vsae'.*vsae_top_k"),
        (SAEConfig(), {"split": 3}, "split=3.*power of two"),
        (SAEConfig(dict_size=1026), {"split": 4}, "split=4.*dict_size=1026"),
        (ProbabilisticTopKConfig(), {"split": 8}, "split=8.*torchrun"),
        (SAEConfig(), {"eval_every": 10}, "eval_every=10.*split=4"),
    ],
    ids=str,
)
def test_what_cant_be_split_is_refused(run, sae, changes, said, monkeypatch):
    monkeypatch.setattr("dictionary_learning_ext.training.plan.launched", lambda: Processes(0, 4))
    with pytest.raises(ConfigError, match=said):
        plan(at(run, "refused", **{"split": 4} | changes), {"sae": sae})
