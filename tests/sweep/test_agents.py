"""Wandb's own agent runs every file in sweeps/, on a stand-in for wandb's server."""

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
from dictionary_learning_ext.sweep.sweep_file import read_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def environment(folder):
    """Where an agent finds `vsae`, and nothing of other sweeps."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), mine["PATH"]])
    return mine | {"PATH": path, "WANDB_DIR": str(folder)}


def agent(server, folder, runs=1):
    """An agent that ends after some runs."""
    return subprocess.Popen(
        [sys.executable, "-m", "wandb", "agent", "--count", str(runs), SWEEP_PATH],
        env=environment(folder) | server.environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def agents_of_files(tiny_lm_dir, text, tmp_path_factory):
    """An agent for each file. It runs the first configuration, with fewer steps and a small random model instead of the
    hub's. All start together, since an agent mostly waits."""
    found = {}
    with contextlib.ExitStack() as servers:
        for path in SWEEPS:
            content, swept = yaml.safe_load(path.read_text()), read_sweep(path).assignments[0]
            small = dict(steps=20, batch_size=64, n_ctxs=8, eval_tokens=200, eval_documents=2)
            if {"--preset=paper", "--model=EleutherAI/pythia-70m"} & set(content["command"]):
                k = {"dict_size": 64, "k": min(swept["k"], 32)}
                small |= {"model": str(tiny_lm_dir), "data": text, **k}
            server = servers.enter_context(WandbServer(content, {"one": swept | small}))
            process = agent(server, tmp_path_factory.mktemp(path.stem))
            servers.callback(killed, process)
            found[path] = server, process, swept | small
        yield found


def killed(process):
    """Kill an agent, unless it has ended, and what it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        agent = psutil.Process(process.pid)
        for one in [agent, *agent.children(recursive=True)]:
            one.kill()
    process.wait()
    process.stdout.close()


def newest_point(folder):
    """The step of the newest resume point of an agent's run."""
    points = folder.glob("runs/*/resume/step_*.pt")
    return max((int(point.stem.removeprefix("step_")) for point in points), default=0)


def wait_for(condition, process):
    while process.poll() is None and not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)


@pytest.mark.slow
def test_a_stopped_run_is_continued_by_whoever_runs_the_same_command(
    agents_of_files, sweep_file, tmp_path
):
    """While the agents of the files run."""
    content = yaml.safe_load(sweep_file().read_text())
    flags = [word.replace("--steps=24", "--steps=400") for word in content["command"][:-1]]
    command = [*flags, "--text-passes=9", "--wandb=online", "${args}"]
    content |= {"program": "vsae", "command": command}
    swept = {"k": 4, "beta": 0.5}
    names = ("pre-empted", "killed", "continued", "again")
    with WandbServer(content, dict.fromkeys(names, swept)) as server:
        process = agent(server, tmp_path, runs=2)
        wait_for(lambda: newest_point(tmp_path) >= 12, process)
        started = psutil.Process(process.pid).children(recursive=True)
        (run,) = (one for one in started if "train" in one.cmdline())
        run.terminate()
        wait_for(lambda: "pre-empted" in server.exit_codes, process)
        step = newest_point(tmp_path)
        wait_for(lambda: newest_point(tmp_path) > step, process)
        killed(process)
        assert server.preempted == {"pre-empted"}
        assert server.exit_codes == {"pre-empted": 143}
        said, _ = agent(server, tmp_path, runs=2).communicate()
        assert server.exit_codes == {"pre-empted": 143, "continued": 0, "again": 0}, said
    assert "already finished" in said
    (folder,) = (tmp_path / "runs").iterdir()
    whole = [row["step"] for row in read_history(folder)]
    assert whole[-1] == 400
    assert (
        0 < server.histories["pre-empted"][-1]["step"] < 400
    )  # wandb may not have sent what a killed run logged
    for name in ("continued", "again"):
        assert [row["step"] for row in server.histories[name]] == whole
        assert server.summaries[name]["eval/fve"] == read_metrics(folder)["fve"]
        assert {setting: server.configs[name][setting] for setting in swept} == swept


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_runs_the_file_as_it_stands(agents_of_files, path):
    server, process, given = agents_of_files[path]
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert not server.unknown
    assert "wandb failed" not in said
    assert {name: server.configs["one"][name] for name in given} == given
    summary, history = server.summaries["one"], server.histories["one"]
    assert isinstance(summary[server.sweep["metric"]["name"]], float)
    assert summary["eval/fve"] <= 1
    assert [row["step"] for row in history] == list(range(21))
    assert all(row["fve"] <= 1 for row in history)
    assert server.exit_codes == {"one": 0}
