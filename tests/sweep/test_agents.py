"""Wandb's own agent runs a sweep, on a stand-in for wandb's server. What it makes of the files is in test_sweep_file.py."""

import os
import subprocess
import sys

import psutil
import pytest
import yaml
from forks import HANGS
from wandb_server import SWEEP_PATH, WandbServer

from dictionary_learning_ext.run_folder.reading import read_history
from dictionary_learning_ext.run_folder.sae_folder import read_metrics

VSAE = f"""#!{sys.executable}
import os, signal, sys
from pathlib import Path
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.training.sae_run import SAERun

update, is_first = SAERun.update, not Path("runs").exists()

def stopped(self, step, x_BD):
    update(self, step, x_BD)
    if is_first and step == 14:
        os.kill(os.getpid(), signal.SIGTERM)

SAERun.update = stopped
sys.exit(main())
"""
"""`vsae`, whose first run in a folder gets a signal."""


def agent(server, folder, runs):
    """An agent that ends after some runs. It finds `vsae`, and nothing of other sweeps. Returns its exit status, and what
    was printed."""
    vsae = folder / "bin" / "vsae"
    vsae.parent.mkdir()
    vsae.write_text(VSAE)
    vsae.chmod(0o755)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([str(vsae.parent), mine["PATH"]])
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
            said, _ = process.communicate(timeout=HANGS)
        finally:
            if process.poll() is None:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
    return process.returncode, said


@pytest.mark.ci
@pytest.mark.slow
def test_an_agent_continues_a_stopped_run_where_it_runs_the_same_command(sweep_file, tmp_path):
    content = yaml.safe_load(sweep_file().read_text())
    command = [*content["command"][:-1], "--wandb=online", "${args}"]
    content |= {"program": "vsae", "command": command}
    swept = {"k": 4, "beta": 0.5}
    with WandbServer(content, {"pre-empted": swept, "continued": swept}) as server:
        status, said = agent(server, tmp_path, runs=2)
    assert status == 0, said
    assert server.exit_codes == {"pre-empted": 143, "continued": 0}, said
    assert server.preempted == {"pre-empted"}
    assert not server.unknown
    assert "wandb failed" not in said
    (folder,) = (tmp_path / "runs").iterdir()
    whole = [row["step"] for row in read_history(folder)]
    assert whole[-1] == 24
    assert [row["step"] for row in server.histories["pre-empted"]] == [0, 6, 12]
    assert [row["step"] for row in server.histories["continued"]] == whole
    assert server.summaries["continued"]["eval/fve"] == read_metrics(folder)["fve"]
    for name in ("pre-empted", "continued"):
        assert {setting: server.configs[name][setting] for setting in swept} == swept
