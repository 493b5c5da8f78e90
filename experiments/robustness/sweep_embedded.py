"""One shared-buffer sweep against single runs, and the agents' command lines, for real.

    python -m experiments.robustness.sweep_embedded         # about 15 minutes on 2 cores

1. `vsae sweep sweeps/embedded.yaml`: 12 SAEs from one buffer, timed as a process.
2. The same 12 as wandb's agent runs them: the command line that wandb's own functions make of the
   file, in child processes with the agent's environment and WANDB_MODE=offline, one after the other,
   timed; one of them is stopped by SIGTERM and retried.
3. Both gave the same weights to the bit, and wandb's offline files hold the swept values.
"""

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
from experiments.robustness.wandb_files import logged_config

SWEEP = Path(__file__).parents[2] / "sweeps" / "embedded.yaml"
RESULTS = Path(__file__).parents[1] / "results" / "sweep_embedded.md"
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


def main() -> None:
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
    report = [
        f"{time.strftime('%Y-%m-%d')}, torch {t.__version__}, {t.get_num_threads()} threads, "
        "`python -m experiments.robustness.sweep_embedded`, seed 0",
        "",
        f"| {len(assignments)} SAEs of sweeps/embedded.yaml | seconds |",
        "|---|---|",
        f"| `vsae sweep`, one process, one buffer | {seconds_together:.0f} |",
        f"| {len(assignments)} runs as wandb's agent starts them | {seconds_single:.0f} |",
        "",
        f"Weights equal to the bit: {equal} of {len(assignments)}.",
        "",
        "```",
        *lines,
        "```",
    ]
    RESULTS.write_text("\n".join(report) + "\n", encoding="utf-8")
    print("\n".join(report[:8]))


if __name__ == "__main__":
    main()
