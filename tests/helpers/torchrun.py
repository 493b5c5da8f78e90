"""Starts the real torchrun in tests, and waits for it. What its processes run is in under_torchrun.py."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parent / "under_torchrun.py"
HANGS = 600  # seconds, on a busy machine


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
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
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


RANKS = 4


class FourRanks:
    """Four processes of one torchrun, which run what tests give them: they take seconds to start.

    Their jobs are files in a folder, where each rank reports the end of each. They end with the process of the tests.
    """

    def __init__(self, folder: Path):
        self._folder, self._printed, self._jobs = folder, folder / "stderr", 0
        with self._printed.open("w") as log:
            given = "serve", folder, os.getpid()
            self._process = torchrun(RANKS, SCRIPT, *given, stdout=subprocess.DEVNULL, stderr=log)

    def run(self, folder, given):
        """Run scenarios one after the other.

        Arguments:
            given: what each scenario is given, by its name. Its folder is FOLDER/NAME.

        Returns by scenario what each rank returned, and what all printed.
        """
        before = len(self._printed.read_text())
        self._hand_out([str(folder), given])
        done = [self._folder / f"{self._jobs}.{rank}.done" for rank in range(RANKS)]
        until = time.monotonic() + HANGS
        while not all(path.exists() for path in done):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
            if self._process.poll() is not None or time.monotonic() > until:
                self._kill()
                raise AssertionError(self._printed.read_text()[before:])
        printed = self._printed.read_text()[before:]
        printed = re.split(r"^scenario (\S+)\n", printed, flags=re.M)
        of_scenario = dict(zip(printed[1::2], printed[2::2], strict=True))
        return {
            name: (
                [json.loads((folder / name / f"{r}.json").read_text()) for r in range(RANKS)],
                of_scenario[name],
            )
            for name in given
        }

    def end(self):
        if self._process.poll() is None:
            self._hand_out(None)
            ended(self._process)

    def _hand_out(self, job):
        self._jobs += 1
        written = self._folder / "job"
        written.write_text(json.dumps(job))
        written.rename(self._folder / f"{self._jobs}.json")

    def _kill(self):
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory):
    ranks = FourRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.end()


def rank_of(process, rank):
    """The process of a rank, which torchrun has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank):
                return child
    raise AssertionError(f"torchrun has no rank {rank}")
