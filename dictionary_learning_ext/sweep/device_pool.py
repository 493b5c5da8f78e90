"""Train the chunks of a sweep on several devices: a process for each chunk, one per device at a time.

The processes are our children in sessions of their own: a Ctrl-C in the terminal reaches this process
alone, which ends them with SIGTERM. They also end if this process does.
"""

import codecs
import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from signal import SIGTERM, Signals
from typing import IO

import torch as t

from ..errors import ConfigError
from ..training.interrupts import interrupts
from .chunk import Chunk
from .progress_lines import ProgressLine

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", f"{__package__}.device_worker")
_POLL = 0.2  # seconds


def devices_of(text: str) -> list[str]:
    """The devices in a text such as cuda:0,cuda:1. Raises ConfigError for what is no such text."""
    devices = text.split(",")
    kinds = sorted({device.partition(":")[0] for device in devices})
    if "" in devices or len(kinds) > 1:
        found = f"{' and '.join(kinds)} together" if "" not in devices else "an empty name"
        raise ConfigError(
            f"--devices {text}: expected devices of one kind, separated by commas, and found {found}; "
            "use e.g. --devices cuda:0,cuda:1"
        )
    return devices


def train_on(devices: Sequence[str], chunks: Sequence[Chunk]) -> list[str]:
    """Train all chunks. A device takes the next one when it has finished one.

    Returns: what went wrong, a line for each chunk that failed or whose process was killed.

    Raises: Interrupted after SIGTERM or SIGINT, once all processes have written their resume points.
    """
    waiting = [chunk for chunk in chunks if not chunk.is_done]
    if len(chunks) < len(devices):
        together = max((len(chunk.configs) for chunk in chunks), default=0)
        remedy = f": up to {together} SAEs are trained together; use --at-once 1 to share them out"
        idle = len(devices) - len(chunks)
        logger.warning(
            "%d of the %d devices have nothing to do%s",
            idle,
            len(devices),
            remedy if together > 1 else "",
        )
    return _DevicePool(devices, waiting).run()


class _DevicePool:
    """The devices, the chunks that wait for one, and the processes that run."""

    def __init__(self, devices: Sequence[str], chunks: Sequence[Chunk]):
        self._devices = devices
        self._waiting = deque(chunks)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False
        self._lock = threading.Lock()
        self._failures: list[str] = []
        threads = max(1, t.get_num_threads() // len(devices))
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def run(self) -> list[str]:
        with interrupts() as signals, ThreadPoolExecutor(len(self._devices)) as threads:
            try:
                with signals.deferred():
                    lines = _lines(self._devices)
                    working = [
                        threads.submit(self._work, device, line)
                        for device, line in zip(self._devices, lines, strict=True)
                    ]
                    while wait(working, _POLL).not_done:
                        signals.check()
                    for each in working:
                        each.result()
            finally:
                self._stop()
        return self._failures

    def _stop(self) -> None:
        """Start nothing more, and let what runs write its resume points and end."""
        with self._lock:
            self._is_stopping = True
            for process in self._processes:
                process.send_signal(SIGTERM)

    def _work(self, device: str, line: ProgressLine) -> None:
        """Train one chunk after the other on a device."""
        with line:
            while (started := self._start_next(device)) is not None:
                process, chunk = started
                failure = _outcome(process, chunk, line)
                with self._lock:
                    self._processes.remove(process)
                    if failure is not None and not self._is_stopping:
                        self._failures.append(failure)
                        line.keep(f"{failure}; the others continue" if self._waiting else failure)

    def _start_next(self, device: str) -> tuple[subprocess.Popen[bytes], Chunk] | None:
        with self._lock:
            if self._is_stopping or not self._waiting:
                return None
            chunk = self._waiting.popleft().on(device)
            process = subprocess.Popen(
                WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
            self._processes.add(process)
        return process, chunk


def _outcome(process: subprocess.Popen[bytes], chunk: Chunk, line: ProgressLine) -> str | None:
    """Hand a process its chunk and wait for its end; what went wrong, if anything did."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    line.show(f"starting {chunk}")
    reader = threading.Thread(target=_follow, args=(process.stderr, line), daemon=True)
    reader.start()
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which its status says
        process.stdin.write(pickle.dumps(chunk))
        process.stdin.flush()
    said = process.stdout.read().decode(errors="replace")
    status = process.wait()
    reader.join(1)  # a grandchild may hold the pipe open
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    if status == 0:
        return None
    if said:
        return said
    number = -status if status < 0 else status - 128
    if number in list(Signals):
        return f"{chunk}: its process was ended by {Signals(number).name}"
    return f"{chunk}: its process ended with status {status}, see its message above"


def _follow(stream: IO[bytes], line: ProgressLine) -> None:
    """Show what a process writes, until it ends."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with stream:
        while piece := os.read(stream.fileno(), 1 << 16):
            line.write(decoder.decode(piece))


def _lines(devices: Sequence[str]) -> list[ProgressLine]:
    """A line for each device; those of one name are numbered."""
    counts, seen = Counter(devices), Counter[str]()
    lines = []
    for place, device in enumerate(devices):
        seen[device] += 1
        label = device if counts[device] == 1 else f"{device} #{seen[device]}"
        lines.append(ProgressLine(label, place))
    return lines
