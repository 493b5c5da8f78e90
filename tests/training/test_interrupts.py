"""Signals: where they end a run, what is kept, and the exit code of the command."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from interrupted_runs import STEPS, assert_equal, results, resumed, sae_of, stopped_at, written

from dictionary_learning_ext import train
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.errors import CheckpointError, Interrupted
from dictionary_learning_ext.run_folder.resume_points import load_point, steps_of
from dictionary_learning_ext.training.interrupts import interrupts
from dictionary_learning_ext.training.sae_run import SAERun
from experiments.robustness.wandb_files import history


def test_a_run_that_ended_in_its_evaluation_is_evaluated(run, tmp_path, monkeypatch):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.measure", stop)
    with pytest.raises(Interrupted, match=r"SIGTERM in the evaluation.*vsae eval"):
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_a_signal_in_the_middle_of_a_fill_is_answered_before_the_fill_ends(
    run, tmp_path, monkeypatch
):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    original = ResidualBuffer.refreshing

    def refreshing(self):
        if self.fills == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from original(self)

    monkeypatch.setattr(ResidualBuffer, "refreshing", refreshing)
    with pytest.raises(Interrupted) as stop:
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    assert stop.value.exit_code == 143
    (step,) = steps_of(Path(run.save_dir))[-1:]
    assert load_point(Path(run.save_dir), step).run["buffer"]["batches"] == 0
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_by_time_too_and_the_signal_handlers_are_given_back(run, monkeypatch):
    former = signal.getsignal(signal.SIGTERM)
    clock = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * 3.0)
    seen = []
    original = SAERun.save_point
    monkeypatch.setattr(
        SAERun,
        "save_point",
        lambda self, step, shared: seen.append(step) or original(self, step, shared),
    )
    train(replace(run, save_every="1m", eval_tokens=0), {"x": sae_of()})
    assert seen[-1] == STEPS
    assert len(seen) > 2
    assert signal.getsignal(signal.SIGTERM) is former


def test_none_writes_no_points_but_a_signal_does(run, monkeypatch):
    quiet = replace(run, save_every="none")
    (folder,) = train(quiet, {"x": sae_of()}).values()
    assert steps_of(folder) == []
    stopped_at(12, monkeypatch)
    with pytest.raises(Interrupted):
        train(replace(quiet, overwrite=True), {"x": sae_of()})
    assert steps_of(folder) == [12]


def test_what_is_trained_is_not_thrown_away_for_want_of_a_point(run, monkeypatch):
    quiet = replace(run, save_every="none", save_steps="20")

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.measure", stop)
    with pytest.raises(Interrupted):
        train(quiet, {"x": sae_of()})
    monkeypatch.undo()
    before = (Path(run.save_dir) / "ae.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"is kept.*vsae eval"):
        resumed(run.save_dir)
    assert (Path(run.save_dir) / "ae.pt").read_bytes() == before


def test_a_signal_in_the_last_step_is_not_forgotten(run, monkeypatch):
    stopped_at(STEPS, monkeypatch)
    with pytest.raises(Interrupted, match="in the evaluation"):
        train(run, {"x": sae_of()})


def test_a_signal_before_the_first_step_says_that_nothing_was_written(run, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.open_inputs", interrupted)
    with pytest.raises(Interrupted) as stop:
        train(run, {"x": sae_of()})
    assert str(stop.value) == (
        "stopped by SIGINT before the first step; nothing was written or changed; run the same "
        "command again"
    )
    assert not Path(run.save_dir).exists()


def test_sigterm_ends_the_command_with_143_and_resume_goes_on(run, tmp_path, own_wandb):
    """As SLURM does it, with wandb offline: one run id, no step twice."""
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(replace(run, wandb="offline", steps=500)).items()
        if value is not None
    ]
    flags += ["--dict-size=32", "--k=4", "--save-every=none", "--eval-tokens=0", "--text-passes=99"]
    command = [sys.executable, "-m", "dictionary_learning_ext.cli", "train"]
    process = subprocess.Popen([*command, *flags], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    folder = Path(run.save_dir)
    while process.poll() is None and written(folder) < 3:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 143, error
    assert f"continue with `vsae train --resume {folder}`" in error.splitlines()[-1]
    (step,) = steps_of(folder)
    refused = subprocess.run(
        [*command, "--resume", str(folder), "--beta", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "--beta 0.03, not 3.0; leave out --beta" in refused.stderr.splitlines()[-1]
    done = subprocess.run(
        [*command, "--resume", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step}" in done.stderr
    logs = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    assert len({log.name for log in logs}) == 1, "one run id"
    logged = sorted(int(row["step"]) for log in logs for row in history(log))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == [line["step"] for line in lines]


@pytest.fixture
def former_handlers():
    """What the signals did before, which is put back."""
    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield former
    for each, handler in former.items():
        signal.signal(each, handler)


def stopped(*, at_once):
    """One of several processes that gets two signals, and asks for them if it may finish something."""
    with interrupts(are_several=True) as signals:
        with signals.at_once() if at_once else signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert not at_once
        os.kill(os.getpid(), signal.SIGINT)
        signals.check()


@pytest.mark.parametrize("at_once", [False, True])
def test_of_several_processes_one_obeys_the_first_signal_alone(at_once, former_handlers):
    """torchrun sends SIGTERM to all when one has ended: it must not end one that is about to write."""
    with pytest.raises(Interrupted) as stop:
        stopped(at_once=at_once)
    assert stop.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_of_several_processes_one_that_ends_well_gives_its_handlers_back(former_handlers):
    with interrupts(are_several=True):
        assert signal.getsignal(signal.SIGTERM) != former_handlers[signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == former_handlers[signal.SIGTERM]


def test_a_handler_that_was_not_set_from_python_becomes_the_default(monkeypatch, former_handlers):
    """For such a one `signal.signal` returns None, which it does not take."""
    real = signal.signal
    monkeypatch.setattr(signal, "signal", lambda each, handler: real(each, handler) and None)
    with interrupts():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
