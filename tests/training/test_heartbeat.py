"""Ranks that hang: which they are, and how a run of the real torchrun ends. A store that stops answering."""

import json
import re
import threading
from dataclasses import asdict, replace
from datetime import timedelta

import pytest
from torchrun import SCRIPT, ended, rank_of, torchrun

from dictionary_learning_ext.run_folder.resume_points import steps_of
from dictionary_learning_ext.training import heartbeat
from dictionary_learning_ext.training.heartbeat import Beat, Heartbeat, Silence


@pytest.mark.parametrize(("how", "ranks"), [("asleep", 3), ("stopped", 2)])
def test_a_rank_that_hangs_ends_the_run_with_one_line_that_names_it(run, tmp_path, how, ranks):
    settings = {"batch_size": 48, "eval_tokens": 0, "save_every": "2", "steps": 100}
    run = replace(run, save_dir=str(tmp_path / "run"), **settings)
    process = torchrun(ranks, SCRIPT, tmp_path, json.dumps({how: asdict(run)}))
    hanging, printed = None, ""
    while process.poll() is None and "vsae: " not in printed:
        printed += process.stderr.readline()
        if hanging is None and (tmp_path / "run" / "metrics.jsonl").exists():
            hanging = rank_of(process, ranks - 1)
    hanging.kill()  # else torchrun does, after 30 seconds
    printed += ended(process)[1]
    (line,) = re.findall("vsae: .*", printed)
    named = f"rank {ranks - 1} (process {hanging.pid} on "
    assert re.match(rf"vsae: {re.escape(named)}.*\) hung: no sign of life", line)
    assert line.endswith(
        f"`torchrun --nproc-per-node {ranks} -m dictionary_learning_ext train --resume FOLDER`"
    )
    assert steps_of(tmp_path / "run")[-1] == 4
    assert "]: Traceback" not in printed


def test_a_rank_that_does_not_start_is_named():
    process = torchrun(2, SCRIPT.with_name("late_rank.py"))
    assert "ProcessError: rank 1 did not start within" in ended(process)[1]


WORKS, WAITS, NOTHING, LEFT = (
    lambda n: Beat(n, n),
    lambda n: Beat(n, 0, waits=True),
    lambda n: Beat(n),
    lambda n: Beat(n, has_left=True),
)


def ceasing(beat):
    return lambda n: beat(min(n, 5))


@pytest.mark.parametrize(
    ("of_ranks", "hung"),
    [
        ((WORKS, WORKS), []),
        ((WAITS, WORKS), []),
        ((WAITS, NOTHING), [1]),
        ((WORKS, NOTHING), [1]),
        ((WAITS, ceasing(WORKS)), [1]),
        ((WAITS, ceasing(WAITS)), [1]),
        ((WAITS, LEFT), []),
        ((WAITS, ceasing(LEFT)), []),
        ((WAITS, WAITS), [0, 1]),
        ((WAITS, lambda n: Beat(n, n // 20)), []),
        ((WAITS, lambda n: Beat(n, n // 40)), [1]),
        ((WAITS, WORKS, NOTHING, ceasing(WAITS)), [2, 3]),
    ],
)
def test_which_ranks_hang(of_ranks, hung):
    silence, found = Silence(len(of_ranks)), set()
    for n in range(100):
        silence.look([beat(n) for beat in of_ranks])
        found |= set(silence.hung)
    assert sorted(found) == hung


# --- torchrun's store


class Store:
    """In place of torchrun's. Once `hangs` is set, its beats are not answered until `released`."""

    def __init__(self):
        self.values, self.hangs, self.released = {}, threading.Event(), threading.Event()

    def set(self, key, value):
        self.values[key] = value.encode()

    def wait(self, keys, patience):
        pass

    def multi_get(self, keys):
        if self.hangs.is_set():
            self.released.wait()
        return [self.values[key] for key in keys]


@pytest.fixture
def beating(monkeypatch):
    store, ended = Store(), threading.Event()
    monkeypatch.setattr(heartbeat, "PATIENCE", timedelta(seconds=0.6))
    monkeypatch.setattr(heartbeat, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    monkeypatch.setattr(heartbeat.dist, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: ended.set())
    monkeypatch.setenv("MASTER_ADDR", "node7")
    found = Heartbeat(0, 1, "vsae train --resume FOLDER")
    found.start()
    yield store, ended
    store.released.set()
    found.stop()


def test_a_store_that_stops_answering_ends_the_run_in_a_line_that_names_its_machine(
    beating, capsys
):
    store, ended = beating
    store.hangs.set()
    assert ended.wait(60)
    assert "vsae: torchrun's store on node7 hung: no answer for 0.01 minutes; continue from" in (
        capsys.readouterr().err
    )


def test_a_store_that_answers_late_does_not(beating):
    store, ended = beating  # late more often than it may be in all: each answer counts
    for _ in range(4):
        store.released.clear()
        store.hangs.set()
        assert not ended.wait(0.3)
        store.hangs.clear()
        store.released.set()
        assert not ended.wait(0.1)
