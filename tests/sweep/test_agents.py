"""Wandb's own agent runs a sweep, on a stand-in for wandb's server. What it makes of the files is in test_sweep_file.py."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from wandb_server import SWEEP_PATH, WandbServer

from dictionary_learning_ext.run_folder.reading import read_history, read_metrics


@contextlib.contextmanager
def agent(server, folder, runs):
    """An agent that ends after some runs. It finds `vsae`, and nothing of other sweeps."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), mine["PATH"]])
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "agent", "--count", str(runs), SWEEP_PATH],
        env=mine | {"PATH": path, "WANDB_DIR": str(folder)} | server.environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()


def newest_point(folder):
    """The step of the newest resume point of an agent's run."""
    points = folder.glob("runs/*/resume/step_*.pt")
    return max((int(point.stem.removeprefix("step_")) for point in points), default=0)


@pytest.mark.slow
def test_an_agent_continues_a_stopped_run_where_it_runs_the_same_command(sweep_file, tmp_path):
    content = yaml.safe_load(sweep_file().read_text())
    flags = [word.replace("--steps=24", "--steps=400") for word in content["command"][:-1]]
    command = [*flags, "--text-passes=9", "--wandb=online", "${args}"]
    content |= {"program": "vsae", "command": command}
    swept = {"k": 4, "beta": 0.5}
    with (
        WandbServer(content, {"pre-empted": swept, "continued": swept}) as server,
        agent(server, tmp_path, runs=2) as process,
    ):
        while process.poll() is None and newest_point(tmp_path) < 12:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        (run,) = (one for one in started if "train" in one.cmdline())
        run.terminate()
        said, _ = process.communicate()
        assert process.returncode == 0, said
    assert server.exit_codes == {"pre-empted": 143, "continued": 0}, said
    assert server.preempted == {"pre-empted"}
    assert not server.unknown
    assert "wandb failed" not in said
    (folder,) = (tmp_path / "runs").iterdir()
    whole = [row["step"] for row in read_history(folder)]
    assert whole[-1] == 400
    assert 0 < server.histories["pre-empted"][-1]["step"] < 400
    assert [row["step"] for row in server.histories["continued"]] == whole
    assert server.summaries["continued"]["eval/fve"] == read_metrics(folder)["fve"]
    for name in ("pre-empted", "continued"):
        assert {setting: server.configs[name][setting] for setting in swept} == swept
