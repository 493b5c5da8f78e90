"""Starts the real torchrun in tests, and waits for it. What its processes run is in under_torchrun.py."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil

SCRIPT = Path(__file__).parent / "under_torchrun.py"
HANGS = 300  # seconds, on a busy machine


def torchrun(processes, *arguments, **options):
    """Start a command in several processes; see `ended`."""
    paths = [str(SCRIPT.parents[2]), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
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


def ran(scenario, processes, folder, run=None):
    """What each rank returned of a scenario, by rank, and what they printed."""
    settings = "" if run is None else json.dumps(asdict(run))
    process = torchrun(processes, SCRIPT, scenario, folder, settings)
    _, error = ended(process)
    assert process.returncode == 0, error
    return [json.loads((folder / f"{r}.json").read_text()) for r in range(processes)], error


def rank_of(process, rank):
    """The process of a rank, which torchrun has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank):
                return child
    raise AssertionError(f"torchrun has no rank {rank}")
