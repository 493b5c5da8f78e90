"""wandb may fail at any time; training does not notice, and the user does."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.training.wandb_log import WandbLog


def opened(folder, **options):
    folder.mkdir(exist_ok=True)
    settings = {"mode": "offline", "project": "p", "group": "g", "settings": {"k": 4}}
    return WandbLog(folder, **settings | options)


def children_of(pid):
    """The children of a process, from the process table."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = stat.read_text().rpartition(")")
        except OSError:
            continue  # it ended meanwhile
        if int(after.split()[1]) == pid:
            found[int(stat.parent.name)] = before
    return found


def test_a_dead_wandb_process_is_said_and_does_not_stop_the_run(
    tiny_lm_dir, text, tmp_path, own_wandb
):
    run = tmp_path / "run"
    flags = f"--model={tiny_lm_dir} --data={text} --steps=400 --batch-size=32 --n-ctxs=8"
    flags += f" --ctx-len=32 --dict-size=32 --k=4 --eval-tokens=0 --log-steps=2 --save-dir={run}"
    command = [sys.executable, "-m", "dictionary_learning_ext.cli", "train", "--wandb=offline"]
    process = subprocess.Popen([*command, *flags.split()], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    assert process.poll() is None, "it was found in the middle of the run"
    process.send_signal(signal.SIGSTOP)  # so that it can't end meanwhile
    children = children_of(process.pid)
    service = [pid for pid, name in children.items() if "wandb" in name]
    assert service, f"wandb's process is among {children}"
    for pid in service:
        os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert error.count("wandb failed") == 1
    assert "metrics.jsonl has all the metrics" in error
    assert "Traceback" not in error
    assert (run / "ae.pt").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 201


def test_online_without_a_login_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"wandb=online: wandb can't start.*--wandb offline"):
        opened(tmp_path / "run", mode="online")
