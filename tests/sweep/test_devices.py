"""Processes for the chunks of a sweep: one per device at a time, and what becomes of each."""

import signal
import sys

import pytest
import torch
from pretend_cuda import PretendCuda

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.presets import PRESETS, preset
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import CONFIGS
from dictionary_learning_ext.errors import ConfigError, Interrupted, TextError, TrainingError
from dictionary_learning_ext.run_folder.files import write_json
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.sweep import devices, runner
from dictionary_learning_ext.sweep.__main__ import main as worker
from dictionary_learning_ext.sweep.chunks import Chunk
from dictionary_learning_ext.sweep.devices import devices_of, train_on

WORKER = """
import os, pathlib, signal, sys
signal.alarm(60)
device, folder, name = sys.argv[1:]
folder = pathlib.Path(folder)

def wait_for(name):
    while not (folder / name).exists():
        os.sched_yield()

def stop(number, frame):
    (folder / f"{name}.point").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
busy = folder / f"busy_{device}"
busy.open("x").close()
(folder / name).mkdir()
(folder / name / "told").write_text(f"{device} {os.environ['OMP_NUM_THREADS']} {os.getpid() == os.getsid(0)}")
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
if name == "failed":
    (folder / "failed" / "failed.json").touch()
    sys.exit(2)
if name == "refused":
    print("no text")
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
    told = [(tmp_path / name / "told").read_text().split() for name in names]
    assert {device for device, *_ in told[:2]} == {"one", "other"}
    assert {threads for _, threads, _ in told} == {"3"}
    assert {has_session for *_, has_session in told} == {"True"}, "Ctrl-C doesn't reach it"
    lines = [line.partition(": ")[2] for line in caplog.messages]
    assert sorted(line.partition(" (")[0] for line in lines) == [f"trained {n}" for n in names]
    assert [line.partition(" (")[2] for line in lines] == [f"{n} of 5)" for n in range(1, 6)]


@pytest.mark.slow
def test_what_fails_is_said_and_the_rest_are_trained(chunks, tmp_path, caplog, capfd):
    names = ["killed", "a", "refused", "failed", "stopped", "crashed", "b"]
    assert sorted(train_on(["cpu", "cpu1"], chunks(*names))) == [
        "crashed: its process ended with status 1, see its message above",
        f"failed failed, see {tmp_path / 'failed' / 'failed.json'}",
        "killed: its process was ended by SIGKILL",
        "refused: its process ended with status 2, see its message above",
        "stopped: its process was ended by SIGTERM",
    ]
    assert all((tmp_path / name).is_dir() for name in names)
    assert "killed: its process was ended by SIGKILL (" in caplog.text
    out, err = capfd.readouterr()
    assert not out
    assert "RuntimeError: a bug" in err
    assert "no text" in err


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
        with pytest.raises(ConfigError, match=f"^devices='{text}'"):
            devices_of(text)


TRAIN = "dictionary_learning_ext.training.loop.train"
CONFIGS_BEGUN = {
    name: TrainConfig().with_settings({"k": k}, name) for name, k in (("a", 2), ("b", 4))
}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """The folder of a sweep of two runs."""
    monkeypatch.setattr(runner, "train_on", lambda *_: [])
    runner.run_sweep(CONFIGS_BEGUN, tmp_path, devices=["cpu"], name="tiny")
    return str(tmp_path)


def test_a_process_trains_its_runs_on_its_device_with_the_settings_of_the_sweep(begun, monkeypatch):
    calls = []
    monkeypatch.setattr(TRAIN, lambda *given, **options: calls.append((*given, options)))
    assert worker("meta", begun, "a", "b") == 0
    ((run, saes, _, options),) = calls
    assert (run.device, run.save_dir, options["group"]) == ("meta", begun, "tiny")
    assert saes == {name: config.resolved.sae for name, config in CONFIGS_BEGUN.items()}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (TrainingError("b: failed at or before step 3"), 2, "b: failed at or before step 3"),
        (TextError("no text", name="data", value="x"), 2, "data='x': no text"),
        (Interrupted(signal.SIGTERM), 143, ""),
    ],
)
def test_a_process_says_why_it_ends(error, status, said, begun, monkeypatch, caplog):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(TRAIN, failing)
    assert worker("cpu", begun, "a", "b") == status
    assert said in caplog.text


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_sweep_json_gives_back_the_settings_of_every_architecture(architecture, name, tmp_path):
    config = preset(name).with_settings({"architecture": architecture}, "x")
    config = TrainConfig(config.sae.resolve(config.run.steps), config.run)
    write_json(tmp_path / "sweep.json", {"settings": {"a": config.to_dict()}, "advice": {"a": ""}})
    (back,) = runner.chunk_in(tmp_path, ["a"], config.run.device).configs.values()
    sae = back.sae.resolve(back.run.steps)
    assert TrainConfig(sae, back.run) == config


@pytest.mark.slow
def test_a_sweep_trains_on_two_gpus(sweep_file, tmp_path, monkeypatch, capsys):
    def in_turn(names, chunks):  # in this process
        for device, chunk in zip(names, chunks, strict=True):
            assert worker(device, str(chunk.save_dir), *chunk.configs) == 0
        return []

    monkeypatch.setattr(runner, "train_on", in_turn)
    sweep = ["sweep", str(sweep_file()), "--save-dir", str(tmp_path / "s"), "--at-once", "2"]
    with PretendCuda(devices=2):
        assert main([*sweep, "--devices", "cuda:0,cuda:1"]) == 0
    assert ", 2 at once on each of cuda:0, cuda:1\n" in capsys.readouterr().out
    runs = [config.parent for config in (tmp_path / "s").glob("*/config.json")]
    used = [find_sae(run).config["run"]["settings"]["device"] for run in runs]
    assert sorted(used) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert all((run / "metrics.json").is_file() for run in runs)
