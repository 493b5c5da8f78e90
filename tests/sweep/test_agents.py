"""Wandb's own agent runs every file in sweeps/, on a stand-in for wandb's server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb_server import SWEEP_PATH, WandbServer

from dictionary_learning_ext.sweep.sweep_file import read_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


@pytest.fixture
def environment(tmp_path):
    """Where an agent finds `vsae`, and nothing of other sweeps."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), mine["PATH"]])
    return mine | {"PATH": path, "WANDB_DIR": str(tmp_path)}


def agent(server, environment, folder, runs=1):
    """An agent that ends after some runs."""
    return subprocess.Popen(
        [sys.executable, "-m", "wandb", "agent", "--count", str(runs), SWEEP_PATH],
        env=environment | server.environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_runs_the_file_as_it_stands(path, tiny_lm_dir, text, tmp_path, environment):
    """With fewer steps, and a small random model in the place of the hub's."""
    content, swept = yaml.safe_load(path.read_text()), read_sweep(path).assignments[0]
    small = {"steps": 20, "batch_size": 64, "n_ctxs": 8, "eval_tokens": 200, "eval_documents": 2}
    if any("--preset=paper" in word for word in content["command"]):
        k = {"dict_size": 64, "k": min(swept["k"], 32)}
        small |= {"model": str(tiny_lm_dir), "data": text, **k}
    with WandbServer(content, {"one": swept | small}) as server:
        process = agent(server, environment, tmp_path)
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert not server.unknown
    assert "wandb failed" not in said
    sent = server.configs["one"]
    assert {name: sent[name] for name in small} == small
    for name, value in swept.items():
        assert sent[name] == small.get(name, value)
    summary, history = server.summaries["one"], server.histories["one"]
    assert isinstance(summary[content["metric"]["name"]], float)
    assert summary["eval/fve"] <= 1
    assert [row["step"] for row in history] == list(range(21))
    assert all(row["fve"] <= 1 for row in history)
    assert server.exit_codes == {"one": 0}
