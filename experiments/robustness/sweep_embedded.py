"""One shared-buffer sweep against single runs, and the agents' command lines, for real.

    python -m experiments.robustness.sweep_embedded train     # about 15 minutes on 2 cores
    python -m experiments.robustness.sweep_embedded tables    # write the page's tables again

1. `vsae sweep sweeps/embedded.yaml`: 12 SAEs from one buffer, timed as a process.
2. The same 12 as wandb's agent runs them, one after the other, timed. The command line is what
   wandb's own functions make of the file. Each runs in a child process with the agent's environment
   and WANDB_MODE=offline. One of them is stopped by SIGTERM and retried.
3. Both must give bit-identical weights, and wandb's offline files must hold the swept values.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch as t
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dictionary_learning_ext.sweep.sweep_file import read_sweep
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.robustness.wandb_files import logged_config
from experiments.stages import Page, Stages

SWEEP = Path(__file__).parents[2] / "sweeps" / "embedded.yaml"
VSAE = "import sys; from dictionary_learning_ext.cli import main; sys.exit(main())"


def start(words: list[str], folder: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", VSAE, *words],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def agents_words(assignment: dict[str, Any]) -> list[str]:
    """What wandb's agent types after `vsae`."""
    command = create_sweep_command(yaml.safe_load(SWEEP.read_text())["command"])
    values = {name: {"value": value} for name, value in assignment.items()}
    place = command.index("${args}")
    arguments = create_sweep_command_args({"args": values})["args"]
    return [*command[1:place], *arguments, *command[place + 1 :]]


def wait_for_training(folder: Path, others: int, timeout: float = 120) -> None:
    """Until a run beside `others` finished ones has logged two steps."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        logs = list(folder.glob("runs/*/metrics.jsonl"))
        begun = [log for log in logs if not (log.parent / "metrics.json").exists()]
        if len(logs) == others + 1 and begun and len(begun[0].read_text().splitlines()) >= 2:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{folder}: no run began to train in {timeout} s")


def measure(_: argparse.Namespace) -> None:
    assignments = read_sweep(SWEEP).assignments
    base = Path(tempfile.mkdtemp())
    together, single = base / "together", base / "single"
    together.mkdir()
    single.mkdir()

    began = time.monotonic()
    sweep = ["sweep", str(SWEEP), "--save-dir", "runs", "--wandb", "disabled"]
    assert start(sweep, together, {}).wait() == 0, "the shared sweep failed"
    seconds_together = time.monotonic() - began

    lines, seconds_single = [], 0.0
    for i, assignment in enumerate(assignments):
        agent = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": f"run{i}"}
        words, note = agents_words(assignment), ""
        if i == 5:
            process = start(words, single, agent)
            wait_for_training(single, others=i)
            process.send_signal(signal.SIGTERM)
            code = process.wait()
            assert code == 128 + signal.SIGTERM, f"it ended with {code} before it could be stopped"
            note = f"; stopped by SIGTERM in training first, exit code {code}, then retried"
            agent["WANDB_RUN_ID"] = "retried"
        began = time.monotonic()
        code = start(words, single, agent).wait()
        seconds_single += time.monotonic() - began
        (file,) = single.glob(f"runs/*/wandb/*-{agent['WANDB_RUN_ID']}/*.wandb")
        in_wandb = logged_config(file)
        as_swept = all(in_wandb[name] == value for name, value in assignment.items())
        lines.append(
            f"vsae {' '.join(words)}\n    exit code {code}, wandb has the swept values: {as_swept}{note}"
        )
        print(lines[-1], flush=True)

    equal = 0
    for folder in sorted((single / "runs").iterdir()):
        one, other = (
            t.load(path / "ae.pt", weights_only=True)
            for path in (folder, together / "runs" / folder.name)
        )
        equal += one.keys() == other.keys() and all(t.equal(one[n], other[n]) for n in one)
    content = {
        "settings": {
            "date": time.strftime("%Y-%m-%d"),
            "torch": t.__version__,
            "threads": t.get_num_threads(),
        },
        "saes": len(assignments),
        "seconds_together": seconds_together,
        "seconds_single": seconds_single,
        "equal": equal,
        "lines": lines,
    }
    raw_results.write(RESULTS / "sweep_embedded.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    settings, saes = content["settings"], content["saes"]
    rows = {
        "`vsae sweep`, one process, one buffer": [f"{content['seconds_together']:.0f}"],
        f"{saes} runs as wandb's agent starts them": [f"{content['seconds_single']:.0f}"],
    }
    return [
        f"{about_line(settings)}, {settings['threads']} threads, seed 0",
        "",
        *table(f"{saes} SAEs of sweeps/embedded.yaml", rows, ["seconds"]),
        "",
        f"Bit-identical weights: {content['equal']} of {saes}.",
        "",
        "```",
        *content["lines"],
        "```",
    ]


STAGES = Stages("robustness.sweep_embedded", {"train": measure}, {"sweep_embedded": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
