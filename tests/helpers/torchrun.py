"""The ranks of a run: forks in the environment that torchrun gives its processes, or started by the real torchrun.

What the forks run is in under_torchrun.py.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import under_torchrun
from forks import HANGS, ended, forked
from torch.distributed import TCPStore

# --- forks


class Ranks:
    """Processes of one run. Nothing ends the others if one fails, as torchrun does.

    Arguments:
        given: the arguments of each rank.
        printed: the file of what all of them print.
    """

    def __init__(self, function: Callable[..., Any], given: list[tuple[Any, ...]], printed: Path):
        self._printed = printed
        printed.touch()
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.processes: list[BaseProcess] = [
            forked(
                function, *arguments, printed=printed, environment=self._environment(rank, given)
            )
            for rank, arguments in enumerate(given)
        ]

    def _environment(self, rank: int, given: list[Any]) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(given)),
            "LOCAL_WORLD_SIZE": str(len(given)),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def ended(self) -> tuple[list[int | None], str]:
        """Wait for all. Returns their exit statuses, and what they printed."""
        return ended(*self.processes), self.printed()

    def printed(self) -> str:
        return self._printed.read_text()


class FourRanks:
    """Four ranks that run what tests hand them, one after the other. They end with the process of the tests."""

    def __init__(self, folder: Path):
        self._pipes, theirs = zip(*(multiprocessing.Pipe() for _ in range(4)), strict=True)
        self._ranks = Ranks(under_torchrun.serve, [(one,) for one in theirs], folder / "printed")
        for one in theirs:  # so that a rank that ends closes its pipe
            one.close()

    def run(self, folder: Path, given: dict[str, Any]) -> dict[str, tuple[list[Any], str]]:
        """Run scenarios, which are functions of under_torchrun.py.

        Arguments:
            given: what each scenario is given, by its name. Its folder is FOLDER/NAME.

        Returns by scenario what each rank returned, and what all printed.
        """
        return {name: self._run(name, one, folder / name) for name, one in given.items()}

    def _run(self, scenario: str, given: Any, folder: Path) -> tuple[list[Any], str]:
        folder.mkdir(exist_ok=True)
        before = len(self._ranks.printed())
        for pipe in self._pipes:
            pipe.send((scenario, given, folder))
        try:
            returned = [pipe.recv() for pipe in self._pipes if pipe.poll(HANGS)]
        except EOFError:
            returned = []
        printed = self._ranks.printed()[before:]
        if len(returned) < len(self._pipes):
            for process in self._ranks.processes:
                process.kill()
            raise AssertionError(printed)
        return returned, printed

    def end(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
        self._ranks.ended()


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory):
    ranks = FourRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.end()


# --- the real torchrun


def torchrun(processes, *arguments, meeting=("--standalone",)):
    """Start the package in several processes; see `printed_by`.

    Arguments:
        meeting: torchrun's flags for where the machines meet.
    """
    launcher = ["torch.distributed.run", *meeting, f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "dictionary_learning_ext", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed_by(process):
    """What a command printed, once it has ended. One that hangs is killed, and fails the test."""
    try:
        return process.communicate(timeout=HANGS)[1]
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise


def rank_of(process, rank):
    """The process of a rank, which torchrun has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank):
                return child
    raise AssertionError(f"torchrun has no rank {rank}")
