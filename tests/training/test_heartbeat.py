"""What a process does if torchrun's store stops answering. Hung ranks: see test_processes.py."""

import threading
from datetime import timedelta

import pytest

from dictionary_learning_ext.training import heartbeat
from dictionary_learning_ext.training.heartbeat import Heartbeat


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
    store, ended = beating
    store.hangs.set()
    assert not ended.wait(0.2)
    store.hangs.clear()
    store.released.set()
    assert not ended.wait(0.2)
