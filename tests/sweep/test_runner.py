"""Sweeps run here: the weights of single runs, interrupted ones, failures, memory."""

import contextlib
import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch as t
from sweep_flags import train_config

from dictionary_learning_ext import train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import ConfigError, Interrupted, TextError, TrainingError
from dictionary_learning_ext.sweep.runner import chunks_of, memory_allows, run_sweep
from dictionary_learning_ext.sweep.sweep_file import configurations, read_sweep


def test_a_shared_sweep_gives_the_weights_of_single_runs_and_the_same_again(
    sweep_file, tmp_path, capsys
):
    path = sweep_file()
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s"), "--at-once", "3"]) == 0
    out = capsys.readouterr().out
    assert "4 runs into" in out
    for name, config in configurations(read_sweep(path), train_config).items():
        (alone,) = train(
            train_config(
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
        assert f"<td>{float(row['fve']):.4f}</td>" in page
        assert f"<td>{float(row['description_length']):.4f}</td>" in page
    assert "<script src" not in page, "it needs no network"
    assert "FVE against k" in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/ae.pt")}
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s")]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/ae.pt")} == before


def test_a_killed_sweep_resumes_and_ends_bit_identical(sweep_file, tmp_path):
    path = sweep_file()
    configs = configurations(read_sweep(path), train_config)
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
    assert folders.keys() == whole.keys() == configs.keys()
    for name in whole:
        one, other = (
            t.load(folder / "ae.pt", weights_only=True) for folder in (whole[name], folders[name])
        )
        assert all(t.equal(one[key], other[key]) for key in one)
        for file in ("metrics.jsonl", "metrics.json"):
            assert (whole[name] / file).read_text() == (folders[name] / file).read_text()


def test_a_sweep_over_two_devices_is_stopped_and_ends_bit_identical(sweep_file, tmp_path):
    longer = ["--steps=200", "--save-every=25", "--log-steps=50"]
    path = sweep_file()
    configs = configurations(read_sweep(path), train_config, longer)
    with one_thread():
        whole = run_sweep(configs, tmp_path / "whole", at_once=2)
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "dictionary_learning_ext", "sweep", str(path), *longer]
    command += ["--save-dir", str(folder), "--devices", "cpu,cpu"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(folder.glob("*/resume"))) < len(configs):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert out == f"4 runs into {folder}, 2 at once on each of cpu, cpu\n"
    assert re.search(r"stopped by SIGTERM; \d of 4 runs are finished; run `.*` again", err)
    assert run_sweep(configs, folder, devices=["cpu", "cpu"]).keys() == configs.keys()
    for name in whole:
        one, other = (
            t.load(where / "ae.pt", weights_only=True) for where in (whole[name], folder / name)
        )
        assert all(t.equal(one[key], other[key]) for key in one)
        for file in ("metrics.jsonl", "metrics.json"):
            assert (whole[name] / file).read_text() == (folder / name / file).read_text()


@contextlib.contextmanager
def one_thread():
    former = t.get_num_threads()
    t.set_num_threads(1)
    yield
    t.set_num_threads(former)


def test_runs_of_two_data_seeds_share_no_buffer(sweep_file, tmp_path):
    path = sweep_file(parameters={"k": {"values": [2, 4]}, "data_seed": {"values": [0, 1]}})
    configs = configurations(read_sweep(path), train_config)
    chunks = list(chunks_of(configs, tmp_path, None, at_once=4))
    assert [len(chunk.configs) for chunk in chunks] == [2, 2]
    for chunk, seed in zip(chunks, (0, 1), strict=True):
        assert {config.run.data_seed for config in chunk.configs.values()} == {seed}


def test_a_signal_says_how_to_continue_the_sweep(sweep_file, tmp_path, monkeypatch):
    configs = configurations(read_sweep(sweep_file()), train_config)
    first = next(iter(configs))
    real = train

    def stopped(run, saes, **options):
        if first not in saes:
            raise Interrupted(
                signal.SIGTERM, "stopped at step 6; continue with vsae train --resume"
            )
        return real(run, saes, **options)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", stopped)
    with pytest.raises(Interrupted) as stop:
        run_sweep(configs, tmp_path / "s", at_once=1, command="vsae sweep x.yaml")
    assert str(stop.value) == (
        "stopped by SIGTERM; 1 of 4 runs are finished; run `vsae sweep x.yaml` again to continue"
    )
    assert stop.value.exit_code == 143
    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", keyboard_interrupt)
    with pytest.raises(Interrupted, match="stopped by SIGINT; 1 of 4 runs"):
        run_sweep(configs, tmp_path / "s")


def keyboard_interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("at_once", [1, 4])
def test_wandb_groups_the_runs_by_the_sweeps_name(at_once, sweep_file, tmp_path, monkeypatch):
    configs = configurations(read_sweep(sweep_file()), train_config)
    groups = []
    monkeypatch.setattr(
        "dictionary_learning_ext.training.loop.train",
        lambda run, saes, *, hooks, resume, group: groups.append(group),
    )
    run_sweep(configs, tmp_path / "elsewhere", at_once, name="tiny")
    assert set(groups) == {"tiny"}


def test_two_sweeps_do_not_share_a_folder(sweep_file, tmp_path):
    configs = configurations(read_sweep(sweep_file()), train_config)
    ((name, config),) = list(configs.items())[:1]
    one = {name: config}
    assert run_sweep(one, tmp_path / "s", at_once=1) == {name: tmp_path / "s" / name}
    with pytest.raises(ConfigError, match="holds another sweep"):
        run_sweep(configs, tmp_path / "s")
    with pytest.raises(ConfigError, match="started with 1; leave it out"):
        run_sweep(one, tmp_path / "s", at_once=2)


def test_a_failed_run_is_reported_after_the_others_have_finished(sweep_file, tmp_path):
    configs = configurations(read_sweep(sweep_file()), train_config)
    first, *others = configs
    run_folder = tmp_path / "s" / first
    run_folder.mkdir(parents=True)
    (run_folder / "failed.json").write_text("{}")
    with pytest.raises(
        TrainingError, match=rf"{first} failed earlier .*again, delete its folder\)"
    ):
        run_sweep(configs, tmp_path / "s", at_once=4)
    assert all((tmp_path / "s" / name / "metrics.json").exists() for name in others)


def test_a_run_whose_folder_was_deleted_is_trained_again_alone(sweep_file, tmp_path, monkeypatch):
    configs = configurations(read_sweep(sweep_file()), train_config)
    first, *others = configs
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"run": {"settings": {"eval_tokens": 0}}}')
        (tmp_path / name / "ae.pt").touch()
    calls = []
    monkeypatch.setattr(
        "dictionary_learning_ext.training.loop.train",
        lambda run, saes, *, resume, **_: calls.append((list(saes), resume)),
    )
    assert run_sweep(configs, tmp_path, at_once=4).keys() == configs.keys()
    assert calls == [([first], False)]


def refused_by(cause=None):
    """Stands for `train`: the first run is refused because of `cause`."""
    calls = []

    def train(run, saes, **_):
        calls.append(list(saes))
        if len(calls) == 1:
            raise TextError("the text is too short") from cause

    return train, calls


def test_what_one_run_is_refused_for_does_not_stop_the_others(sweep_file, tmp_path, monkeypatch):
    configs = configurations(read_sweep(sweep_file()), train_config)
    train, calls = refused_by()
    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", train)
    with pytest.raises(TrainingError, match=f"^{next(iter(configs))}: the text is too short$"):
        run_sweep(configs, tmp_path / "s", at_once=1)
    assert len(calls) == 4


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "full"), BlockingIOError()])
def test_what_would_hit_every_run_stops_the_sweep(cause, sweep_file, tmp_path, monkeypatch):
    configs = configurations(read_sweep(sweep_file()), train_config)
    train, calls = refused_by(cause)
    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", train)
    with pytest.raises(TextError):
        run_sweep(configs, tmp_path / "s", at_once=1)
    assert len(calls) == 1


def test_a_very_large_sweep_needs_a_yes(sweep_file, tmp_path, capsys):
    path = str(sweep_file())
    assert main(["sweep", path, "--max-runs", "3", "--save-dir", str(tmp_path / "s")]) == 2
    assert "4 runs; --max-runs is 3; add --yes" in capsys.readouterr().err
    assert main(["sweep"]) == 2
    assert "give one of: a sweep file" in capsys.readouterr().err


def test_memory_bounds_how_many_are_trained_together(sweep_file, monkeypatch):
    import psutil

    configs = configurations(read_sweep(sweep_file()), train_config)
    each = 4 * 4 * 2 * 32 * 16  # weights, gradients and two averages of encoder and decoder
    for available, expected in ((100 * each, 4), (6 * each, 3), (each, 1)):
        memory = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert memory_allows(configs) == expected


def test_several_devices_get_a_share_each_and_share_their_memory(sweep_file, monkeypatch):
    import psutil

    configs = configurations(read_sweep(sweep_file()), train_config)
    each = 4 * 4 * 2 * 32 * 16
    for available, devices, expected in (
        (100 * each, ["cpu"], 4),
        (100 * each, ["cpu", "cpu"], 2),
        (100 * each, ["cpu"] * 3, 2),
        (100 * each, ["cpu"] * 9, 1),
        (6 * each, ["cpu", "cpu"], 1),
    ):
        memory = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert memory_allows(configs, devices) == expected


@pytest.mark.skipif(t.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(sweep_file, tmp_path):
    configs = configurations(read_sweep(sweep_file()), train_config)
    with pytest.raises(ConfigError, match=r"^devices='cuda:1': .*use e\.g\. devices='cpu'$"):
        run_sweep(configs, tmp_path / "s", devices=["cuda:1"])
    assert not (tmp_path / "s").exists()
