"""Processes for the chunks of a sweep: one per device at a time, and what becomes of each."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from pretend_cuda import PretendCuda
from stand_in_chunks import StandInChunk

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.errors import ConfigError, Interrupted
from dictionary_learning_ext.run_folder.reading import read_config
from dictionary_learning_ext.sweep import devices
from dictionary_learning_ext.sweep.chunks import Chunk
from dictionary_learning_ext.sweep.devices import devices_of, train_on

WORKER = """
import os, pickle, signal, sys
signal.alarm(60)
chunk = pickle.load(sys.stdin.buffer)
(name,), folder = chunk.configs, chunk.save_dir
device = chunk.configs[name].run.device

def wait_for(name):
    while not (folder / name).exists():
        os.sched_yield()

def stop(number, frame):
    (folder / f"{name}.point").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
busy = folder / f"busy_{device}"
busy.open("x").close()
(folder / name).write_text(f"{device} {os.environ['OMP_NUM_THREADS']}")
if name.startswith("both"):
    wait_for("both_b" if name == "both_a" else "both_a")
if name.endswith("stops"):
    if name == "a_stops":
        wait_for("b_stops")
        os.kill(os.getppid(), signal.SIGTERM)
    while True:
        os.sched_yield()
busy.unlink()
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "stopped":
    os.kill(os.getpid(), signal.SIGTERM)
if name == "refused":
    print("refused: no text", end="")
    sys.exit(2)
if name == "crashed":
    raise RuntimeError("a bug")
"""


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    """Makes chunks of one run each, which a small script trains."""
    monkeypatch.setattr(devices, "WORKER", (sys.executable, "-c", WORKER))
    return lambda *names: [Chunk({name: TrainConfig()}, tmp_path, None) for name in names]


@pytest.mark.slow
def test_each_device_trains_one_chunk_at_a_time_with_its_share_of_the_threads(
    chunks, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO", logger=devices.__name__)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    names = ["both_a", "both_b", "c", "d", "e"]
    assert train_on(["one", "other"], chunks(*names)) == []
    told = [(tmp_path / name).read_text().split() for name in names]
    assert {device for device, _ in told[:2]} == {"one", "other"}
    assert {threads for _, threads in told} == {"3"}
    lines = [line.partition(": ")[2] for line in caplog.messages]
    assert sorted(line.partition(" (")[0] for line in lines) == [f"trained {n}" for n in names]
    assert [line.partition(" (")[2] for line in lines] == [f"{n} of 5)" for n in range(1, 6)]


@pytest.mark.slow
def test_what_fails_is_said_and_the_rest_are_trained(chunks, tmp_path, caplog, capfd):
    names = ["killed", "a", "refused", "stopped", "crashed", "b"]
    assert sorted(train_on(["cpu", "cpu1"], chunks(*names))) == [
        "crashed: its process ended with status 1, see its message above",
        "killed: its process was ended by SIGKILL",
        "refused: no text",
        "stopped: its process was ended by SIGTERM",
    ]
    assert all((tmp_path / name).is_file() for name in names)
    assert "killed: its process was ended by SIGKILL (" in caplog.text
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_a_signal_ends_all_processes_at_their_resume_points(chunks, tmp_path):
    with pytest.raises(Interrupted) as stop:
        train_on(["one", "other"], chunks("a_stops", "b_stops", "c"))
    assert stop.value.signal == signal.SIGTERM
    assert (tmp_path / "a_stops.point").is_file()
    assert (tmp_path / "b_stops.point").is_file()
    assert not (tmp_path / "c").exists()


def test_devices_of_one_kind_are_separated_by_commas():
    assert devices_of("cuda:0,cuda:1") == ["cuda:0", "cuda:1"]
    assert devices_of("cpu,cpu") == ["cpu", "cpu"]
    for text in ("cpu,cuda:0", "", "cpu,", "cuda:0,,cuda:1"):
        with pytest.raises(ConfigError, match=r"expected devices of one kind, separated by commas"):
            devices_of(text)


@pytest.fixture
def worker():
    process = subprocess.Popen(
        [*devices.WORKER, "cpu"],
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


ON_PRETENDED = """
import sys
from pretend_cuda import PretendCuda
from dictionary_learning_ext.sweep.devices import main
with PretendCuda(devices=2):
    sys.exit(main(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_sweep_trains_on_two_gpus(sweep_file, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "WORKER", (sys.executable, "-c", ON_PRETENDED))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    sweep = ["sweep", str(sweep_file()), "--save-dir", str(tmp_path / "s"), "--at-once", "2"]
    with PretendCuda(devices=2):
        assert main([*sweep, "--devices", "cuda:0,cuda:1"]) == 0
    runs = [config.parent for config in (tmp_path / "s").glob("*/config.json")]
    used = [read_config(run)["run"]["settings"]["device"] for run in runs]
    assert sorted(used) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert all((run / "metrics.json").is_file() for run in runs)
