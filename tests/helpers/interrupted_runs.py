"""Runs that are stopped and resumed, and what they leave."""

import contextlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch as t
from small_trainers import assert_same

from dictionary_learning_ext import train
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import CONFIGS, option_names, sae_settings
from dictionary_learning_ext.errors import Interrupted
from dictionary_learning_ext.run_folder.reading import read_run
from dictionary_learning_ext.run_folder.resume_points import ResumePoint, Scale, load_point
from dictionary_learning_ext.training.sae_run import SAERun

STEPS = 60


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="session")
def anywhere(tiny_lm_dir, text):
    """Settings of a small run."""
    return RunConfig(
        model=str(tiny_lm_dir),
        hook="blocks.0.hook_resid_post",
        data=text,
        steps=STEPS,
        batch_size=64,
        n_ctxs=16,
        ctx_len=32,
        eval_tokens=200,
        eval_documents=4,
        log_steps=7,
        save_every="10",
    )


@pytest.fixture
def run(anywhere, tmp_path):
    return replace(anywhere, save_dir=str(tmp_path / "run"))


def sae_of(architecture="vsae_top_k", **changes):
    k = {"k": 4} if "k" in option_names(CONFIGS[architecture]) else {}
    return sae_settings(architecture, {"dict_size": 32, "lr": 1e-3} | k | changes)


def stopped_at(step, monkeypatch):
    """As Ctrl-C in the middle of an update: the signal is real, and noticed after the step."""
    original = SAERun.update

    def update(self, now, x_BD):
        original(self, now, x_BD)
        if now == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(SAERun, "update", original)

    monkeypatch.setattr(SAERun, "update", update)


@contextlib.contextmanager
def killed_at_the_first_update():
    """What runs in it must reach a training step, and dies there."""
    with pytest.MonkeyPatch.context() as patch:

        def dies(*_):
            raise Killed

        patch.setattr(SAERun, "update", dies)
        with pytest.raises(Killed):
            yield


def a_point(step=0, **known):
    """A resume point of which only this much matters."""
    empty = {"settings": {}, "trainer": {}, "scale": Scale(1.0, 1.0), "batches": {}}
    empty |= {"hashes": {}, "versions": {}, "metrics_bytes": 0, "wandb_id": None}
    return ResumePoint(step=step, **empty | known)


def results(folder, steps=STEPS):
    """All that a run leaves, but for the dates."""
    point = load_point(folder, steps)
    return {
        "weights": t.load(folder / "ae.pt", weights_only=True),
        "trainer": point.trainer,
        "batches": point.batches,
        "log": (folder / "metrics.jsonl").read_text(),
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoints/*")),
    }


assert_equal = assert_same


def resumed(folder):
    return train(*read_run(Path(folder)), resume=True)


def interrupt(run, monkeypatch):
    """Train an SAE until a signal at step 15."""
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})


@pytest.fixture
def stopped(run, monkeypatch):
    interrupt(run, monkeypatch)
    return Path(run.save_dir)


def written(folder):
    """How many steps a run has logged."""
    log = folder / "metrics.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


@contextlib.contextmanager
def one_thread():
    """As each of several processes has."""
    former = t.get_num_threads()
    t.set_num_threads(1)
    yield
    t.set_num_threads(former)
