"""Starts the real torchrun in tests, and waits for it. What its processes run is in under_torchrun.py."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

SCRIPT = Path(__file__).parent / "under_torchrun.py"
HANGS = 300  # seconds, on a busy machine


def torchrun(processes, *arguments, meeting=("--standalone",), **options):
    """Start a command in several processes; see `ended`.

    Arguments:
        meeting: torchrun's flags for where the machines meet.
    """
    paths = [str(SCRIPT.parents[2]), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    launcher = ["torch.distributed.run", *meeting, f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(process):
    """What a command printed, once it has ended. One that hangs is killed, and fails the test."""
    try:
        out, error = process.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    return out, error


def ran(processes, folder, given):
    """Run scenarios one after the other, in one start of the processes.

    Arguments:
        given: what each scenario is given, by its name. Its folder is FOLDER/NAME.

    Returns by scenario what each rank returned, and what all printed.
    """
    process = torchrun(processes, SCRIPT, folder, json.dumps(given))
    _, error = ended(process)
    assert process.returncode == 0, error
    printed = re.split(r"^scenario (\S+)\n", error, flags=re.M)
    of_scenario = dict(zip(printed[1::2], printed[2::2], strict=True))
    return {
        name: (
            [json.loads((folder / name / f"{r}.json").read_text()) for r in range(processes)],
            of_scenario[name],
        )
        for name in given
    }


def rank_of(process, rank):
    """The process of a rank, which torchrun has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank):
                return child
    raise AssertionError(f"torchrun has no rank {rank}")
