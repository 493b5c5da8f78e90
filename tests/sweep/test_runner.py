"""Sweep files: read, refused, run here and as wandb's agents run them; what came out of them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch as t
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dictionary_learning_ext import train
from dictionary_learning_ext.cli import main, parse
from dictionary_learning_ext.config.run_config import TrainConfig
from dictionary_learning_ext.errors import ConfigError, TrainingError
from dictionary_learning_ext.sweep.results import best_of_each_k, from_folder, from_wandb
from dictionary_learning_ext.sweep.runner import (
    configurations,
    memory_allows,
    read_sweep,
    run_sweep,
)
from experiments.robustness.wandb_files import history, logged_config, records

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def parsed(arguments):
    flags = parse("train", arguments)
    return TrainConfig(flags.sae, flags.run)


@pytest.fixture
def sweep_file(tiny_lm_dir, text, tmp_path):
    """Writes a sweep of four SAEs of a second, changed as told."""

    def write(**changes):
        flags = f"--model={tiny_lm_dir} --data={text} --steps=24 --batch-size=32 --n-ctxs=8"
        flags += " --ctx-len=32 --dict-size=32 --eval-tokens=200 --eval-documents=4"
        flags += " --log-steps=6 --save-every=6"
        content = {
            "name": "tiny",
            "method": "grid",
            "parameters": {"k": {"values": [2, 4]}, "beta": {"values": [0.0, 0.5]}},
            "command": ["vsae", "train", *flags.split(), "--resume=auto", "${args}"],
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_configuration_of_every_file_is_the_command_an_agent_types(path):
    """The local sweep and wandb's own functions make the same configuration of it."""
    content = yaml.safe_load(path.read_text())
    assert set(content["metric"]) == {"name", "goal"}
    sweep = read_sweep(path)
    here = configurations(sweep, parsed)
    assert len(here) == len(sweep.assignments) >= 12
    for assignment, config in zip(sweep.assignments, here.values(), strict=True):
        arguments = create_sweep_command_args(
            {"args": {name: {"value": value} for name, value in assignment.items()}}
        )
        command = create_sweep_command(list(content["command"]))
        place = command.index("${args}")
        words = [*command[:place], *arguments["args"], *command[place + 1 :]]
        assert words[:2] == ["vsae", "train"]
        theirs = parsed(words[2:])
        resolved = theirs.sae.resolve(theirs.run.steps, theirs.run.batch_size)
        assert TrainConfig(resolved, theirs.run) == config
        for name, value in assignment.items():
            assert config.to_dict()[name] == value


def test_a_shared_sweep_gives_the_weights_of_single_runs_and_the_same_again(
    sweep_file, tmp_path, capsys
):
    path = sweep_file()
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s"), "--at-once", "3"]) == 0
    out = capsys.readouterr().out
    assert "4 runs into" in out
    for name, config in configurations(read_sweep(path), parsed).items():
        (alone,) = train(
            parsed(
                [
                    *read_sweep(path).flags,
                    f"--k={config.sae.k}",
                    f"--beta={config.sae.beta}",
                    f"--save-dir={tmp_path / 'alone' / name}",
                ]
            ).run,
            {"x": config.sae},
        ).values()
        ours, single = (
            t.load(folder / "ae.pt", weights_only=True) for folder in (tmp_path / "s" / name, alone)
        )
        assert ours.keys() == single.keys()
        assert all(t.equal(ours[key], single[key]) for key in ours)
    rows = list(csv.DictReader((tmp_path / "s" / "results.csv").open()))
    assert len(rows) == 4
    for row in rows:
        metrics = json.loads((tmp_path / "s" / row["run"] / "metrics.json").read_text())
        assert float(row["fve"]) == metrics["fve"]
        assert row["run"].startswith(f"vsae_top_k_k{row['k']}_")
    page = (tmp_path / "s" / "results.html").read_text()
    for row in rows:
        assert f"<td>{row['run']}</td>" in page
        assert f"<td>{float(row['description_length']):.4f}</td>" in page
    assert "<script src" not in page, "it needs no network"
    assert "FVE against k" in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/ae.pt")}
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s")]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/ae.pt")} == before


def test_a_local_sweep_that_is_killed_goes_on_to_the_bit(sweep_file, tmp_path):
    path = sweep_file()
    configs = configurations(read_sweep(path), parsed)
    whole = run_sweep(configs, tmp_path / "whole", at_once=2)
    command = [sys.executable, "-m", "dictionary_learning_ext.cli", "sweep", str(path)]
    command += ["--save-dir", str(tmp_path / "killed"), "--at-once", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "killed").glob("*/resume/step_*")):
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    assert process.wait() == -signal.SIGKILL
    folders = run_sweep(configs, tmp_path / "killed")
    assert folders.keys() == whole.keys()
    for name in whole:
        one, other = (
            t.load(folder / "ae.pt", weights_only=True) for folder in (whole[name], folders[name])
        )
        assert all(t.equal(one[key], other[key]) for key in one)
        for file in ("metrics.jsonl", "metrics.json"):
            assert (whole[name] / file).read_text() == (folders[name] / file).read_text()


def test_two_sweeps_do_not_share_a_folder(sweep_file, tmp_path):
    configs = configurations(read_sweep(sweep_file()), parsed)
    one = dict(list(configs.items())[:1])
    run_sweep(one, tmp_path / "s", at_once=1)
    with pytest.raises(ConfigError, match="holds another sweep"):
        run_sweep(configs, tmp_path / "s")
    with pytest.raises(ConfigError, match="leave it out"):
        run_sweep(one, tmp_path / "s", at_once=2)


def test_what_fails_is_said_in_the_end_and_the_others_are_done(sweep_file, tmp_path):
    configs = configurations(read_sweep(sweep_file()), parsed)
    first, *others = configs
    run_folder = tmp_path / "s" / first
    run_folder.mkdir(parents=True)
    (run_folder / "failed.json").write_text("{}")
    with pytest.raises(TrainingError, match=f"{first} failed before"):
        run_sweep(configs, tmp_path / "s", at_once=4)
    assert all((tmp_path / "s" / name / "metrics.json").exists() for name in others)


BAD = {
    "no YAML": ("a: [", "no YAML"),
    "a list": ("[1, 2]", "expected wandb's keys"),
    "a key that is none": ({"methode": "grid"}, "unknown key 'methode'"),
    "bayes": ({"method": "bayes"}, "needs wandb's server"),
    "no method": ({"method": None}, "method is None"),
    "an unknown parameter": ({"parameters": {"betta": {"value": 1}}}, "betta"),
    "a value out of range": ({"parameters": {"k": {"values": [33]}}}, r"k=33.*dict_size=32"),
    "a value of the wrong type": ({"parameters": {"k": {"values": ["many"]}}}, "many"),
    "a number that YAML reads as text": (
        {"parameters": {"lr": {"values": ["1e-4"]}}},
        r"YAML reads 1e-4 as text; write it with a point",
    ),
    "an empty grid": ({"parameters": {"k": {"values": []}}}, "an empty grid"),
    "no parameters": ({"parameters": 3}, "expected wandb's keys"),
    "a range in a grid": ({"parameters": {"k": {"min": 1, "max": 4}}}, "a grid needs values"),
    "a parameter that is none": (
        {"parameters": {"k": 4}},
        "expected value, values, or min and max",
    ),
    "twice the same": ({"parameters": {"k": {"values": [4, 4]}}}, "two runs have the settings"),
    "random without a number": ({"method": "random"}, "run_cap is None"),
    "another program": ({"command": ["python", "x.py", "${args}"]}, "expected a list of vsae"),
    "a folder for all": (
        {"command": ["vsae", "train", "--save-dir=x", "${args}"]},
        "command has --save-dir=x",
    ),
    "a run to go on with": (
        {"command": ["vsae", "train", "--resume", "auto", "${args}"]},
        "command has --resume; expected --resume=auto",
    ),
    "a distribution": (
        {"method": "random", "parameters": {"k": {"distribution": "beta", "min": 1, "max": 2}}},
        "distribution 'beta' is not run here",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_before_anything_runs(case, sweep_file, tmp_path, capsys):
    changes, message = BAD[case]
    path = sweep_file(**changes) if isinstance(changes, dict) else sweep_file()
    if isinstance(changes, str):
        path.write_text(changes)
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vsae: ")

    assert re.search(message, error), error
    assert not (tmp_path / "s").exists()


def test_more_runs_than_a_slip_of_the_pen_need_a_yes(sweep_file, tmp_path, capsys):
    path = str(sweep_file())
    assert main(["sweep", path, "--max-runs", "3", "--save-dir", str(tmp_path / "s")]) == 2
    assert "4 runs; give --yes" in capsys.readouterr().err
    assert main(["sweep"]) == 2
    assert "give a sweep file" in capsys.readouterr().err


def test_a_random_search_draws_what_it_is_asked_for(sweep_file):
    parameters = {
        "k": {"min": 1, "max": 8},
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "beta": {"min": 0.0, "max": 1.0},
        "kl_scope": {"values": ["all", "selected"]},
    }
    path = sweep_file(method="random", run_cap=40, parameters=parameters)
    drawn = read_sweep(path, seed=1).assignments
    assert drawn == read_sweep(path, seed=1).assignments
    assert drawn != read_sweep(path, seed=2).assignments
    assert {one["k"] for one in drawn} == set(range(1, 9))
    assert all(1e-4 <= one["lr"] <= 1e-2 and 0 <= one["beta"] <= 1 for one in drawn)
    assert 5 < sum(one["lr"] < 1e-3 for one in drawn) < 35
    assert len(configurations(read_sweep(path), parsed)) == 40


def test_memory_bounds_how_many_are_trained_together(sweep_file, monkeypatch):
    import psutil

    configs = configurations(read_sweep(sweep_file()), parsed)
    each = 4 * 4 * 2 * 32 * 16  # weights, gradients and two averages of encoder and decoder
    for available, expected in ((20 * each, 10), (each, 1)):
        memory = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert memory_allows(configs) == expected


# --- agents


def wandb_file(cwd, run_id):
    (file,) = Path(cwd).glob(f"runs/*/wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    return file


def agent_runs(path, assignment, run_id, cwd, stop_at=None):
    """A run as wandb's agent starts it: its command line, its environment, its SIGTERM."""
    content = yaml.safe_load(path.read_text())
    arguments = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in assignment.items()}}
    )["args"]
    words = [word for word in create_sweep_command(content["command"]) if word != "${args}"]
    environment = os.environ | {
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "abc123",
        "WANDB_RUN_ID": run_id,
    }
    program = [sys.executable, "-m", "dictionary_learning_ext.cli", *words[1:], *arguments]
    process = subprocess.Popen(program, env=environment, cwd=cwd, stderr=subprocess.PIPE, text=True)
    if stop_at is not None:
        while process.poll() is None and not list(Path(cwd).glob(f"runs/*/resume/step_*{stop_at}")):
            try:
                process.wait(0.005)
            except subprocess.TimeoutExpired:
                continue
        process.terminate()
    _, error = process.communicate()
    return process.returncode, error


def logged(cwd, run_id):
    return [int(row["step"]) for row in history(wandb_file(cwd, run_id))]


def test_every_command_of_a_sweep_runs_as_an_agents(sweep_file, tmp_path, own_wandb):
    content = yaml.safe_load(sweep_file().read_text())
    path = sweep_file(command=[*content["command"][:-1], "--wandb=online", "${args}"])
    assignments = read_sweep(path).assignments
    assert len(assignments) == 4
    for i, assignment in enumerate(assignments):
        code, error = agent_runs(path, assignment, f"run{i}", tmp_path)
        assert code == 0, error
        in_wandb = logged_config(wandb_file(tmp_path, f"run{i}"))
        assert {name: in_wandb[name] for name in assignment} == assignment
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_an_agents_run_that_is_stopped_is_retried_and_counts_once(sweep_file, tmp_path, own_wandb):
    path = sweep_file()
    content = yaml.safe_load(path.read_text())
    slow = [w.replace("--steps=24", "--steps=400") for w in content["command"]]
    path = sweep_file(command=[*slow[:-2], "--text-passes=9", "--wandb=online", *slow[-2:]])
    assignment = {"k": 4, "beta": 0.5}
    code, error = agent_runs(path, assignment, "first", tmp_path, stop_at=12)
    assert code == 143, error
    kinds = [record.WhichOneof("record_type") for record in records(wandb_file(tmp_path, "first"))]
    assert "preempting" in kinds, "wandb's server hands such a run out again"
    code, error = agent_runs(path, assignment, "second", tmp_path)
    assert code == 0, error
    assert "resuming from step" in error
    code, error = agent_runs(path, assignment, "third", tmp_path)
    assert (code, "already finished" in error) == (0, True), error
    (folder,) = (tmp_path / "runs").iterdir()
    settings = json.loads((folder / "config.json").read_text())["run"]["settings"]
    assert {name: settings[name] for name in assignment} == assignment
    assert "_k4_" in folder.name
    assert "beta0.5" in folder.name
    whole = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    for run_id in ("first", "second", "third"):
        in_wandb = logged_config(wandb_file(tmp_path, run_id))
        assert {name: in_wandb[name] for name in assignment} == assignment
    assert logged(tmp_path, "second") == whole, "what the first logged, and the rest"
    assert logged(tmp_path, "third") == whole


# --- results


def row(k, length, **settings):
    return {
        "run": f"k{k}_{length}",
        "settings": {"k": k, **settings},
        "figures": {"description_length": length, "fve": 0.5},
    }


def test_the_best_is_chosen_for_each_k():
    rows = [row(8, 3.0), row(8, 2.0), row(16, 5.0), row(16, None)]
    assert [one["run"] for one in best_of_each_k(rows)] == ["k8_2.0", "k16_5.0"]


def test_an_empty_folder_or_one_without_results(tmp_path, caplog):
    with pytest.raises(ConfigError, match="no finished run there"):
        from_folder(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no finished run there"):
        from_folder(tmp_path)
    assert "without results, and left out: one" in caplog.text


def test_a_sweep_that_wandb_does_not_have(monkeypatch):
    monkeypatch.setattr("wandb.Api", lambda: 1 / 0)
    with pytest.raises(ConfigError, match=r"--of-wandb a/b/c: can't be read.*wandb login"):
        from_wandb("a/b/c")
