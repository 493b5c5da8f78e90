"""A process of the device pool: what it says, its status, and its end with the pool's."""

import os
import pickle
import subprocess
import sys

import pytest
from stand_in_chunks import StandInChunk

WORKER = [sys.executable, "-m", "dictionary_learning_ext.sweep.device_worker"]


@pytest.fixture
def worker():
    process = subprocess.Popen(
        WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        yield process
        process.kill()


def start(process, what):
    process.stdin.write(pickle.dumps(StandInChunk(what)))
    process.stdin.flush()


@pytest.mark.parametrize(
    ("what", "said", "status"),
    [
        ("succeeds", b"", 0),
        ("fails", b"a: failed at or before step 3", 2),
        ("is refused", b"a and 2 more: the text is too short", 2),
    ],
)
def test_only_what_the_user_must_know_is_in_its_output(worker, what, said, status):
    start(worker, what)
    assert worker.stdout.read() == said
    assert worker.wait() == status
    assert worker.stderr.read() == b"from a library\n"


def test_it_stops_where_it_can_continue_once_the_pool_is_gone(worker):
    start(worker, "waits")
    assert worker.stderr.readline() == b"from a library\n"
    assert worker.stderr.readline() == b"waiting\n"
    worker.stdin.close()
    assert worker.wait() == 143
