"""Processes that have already imported the package: forks of one server, since the imports take seconds."""

import atexit
import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dictionary_learning_ext.features import reproducibility

PRELOADED = [
    "forks",
    "dictionary_learning.training",
    "dictionary_learning_ext.training.loop",
]
HANGS = 600  # seconds, on a busy machine


def forked(
    function: Callable[..., Any],
    *arguments: Any,
    printed: Path,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a function of a module in this process's folder and environment.

    Arguments:
        function: returns the exit status.
        printed: the file to which its standard output and error are appended.
        environment: variables that it has besides.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    where = os.getcwd(), os.environ | (environment or {}), str(printed)
    process = forks.Process(target=_called, args=(function, arguments, *where))
    process.start()
    return process


def _called(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: str,
    environment: dict[str, str],
    printed: str,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)  # this and the next as in conftest.py
    reproducibility.NULL_ERROR = 0.01
    try:
        status = function(*arguments)
    finally:
        atexit._run_exitfuncs()  # which a fork of this server skips before Python 3.14
    raise SystemExit(status)


def wait_for(condition: Callable[[], Any], process: BaseProcess) -> None:
    """Wait until a condition is met, or the process has ended."""
    while process.is_alive() and not condition():
        process.join(0.01)


def ended(*processes: BaseProcess) -> list[int | None]:
    """Wait for processes. Returns their exit statuses. All are killed if one hangs."""
    for process in processes:
        process.join(HANGS)
    if hanging := [process for process in processes if process.is_alive()]:
        for process in hanging:
            process.kill()
            process.join()
        raise TimeoutError(f"{len(hanging)} of {len(processes)} processes hang")
    return [process.exitcode for process in processes]
