"""Train the chunks of a sweep on several devices: a process for each chunk, one per device at a time.

Each process runs __main__.py and shares this one's standard error. It has a session of its own: Ctrl-C in the terminal
reaches only this process, which ends the others with SIGTERM. If this process is killed, they finish their chunks.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

from ..config.checks import require
from ..run_folder.files import FAILED
from ..training.processes import interrupts
from .chunks import Chunk

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", f"{__package__}")
"""The command of a process. The device, the sweep's folder and the names of the runs follow."""
_POLL = 0.2  # seconds


def devices_of(text: str) -> list[str]:
    """Split a text such as cuda:0,cuda:1 into devices. Raises ConfigError unless they are of one kind."""
    devices = text.split(",")
    are_alike = "" not in devices and len({device.partition(":")[0] for device in devices}) == 1
    expected = "devices of one kind, separated by commas, e.g. cuda:0,cuda:1"
    require(are_alike, "devices", text, expected)
    return devices


def train_on(devices: Sequence[str], chunks: Sequence[Chunk]) -> list[str]:
    """Train all chunks. Each device takes the next chunk when it is free.

    Returns: a line for each chunk that failed or whose process was killed.

    Raises: Interrupted after SIGTERM or SIGINT, once all processes have written their resume points.
    """
    import torch as t

    waiting, n_ended, failures = deque(chunks), 0, []
    threads = max(1, t.get_num_threads() // len(devices))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    running: dict[int, tuple[subprocess.Popen[bytes], Chunk]] = {}  # by the device's place
    with interrupts() as signals:
        try:
            with signals.deferred():
                while waiting or running:
                    for place, device in enumerate(devices):
                        if place in running and running[place][0].poll() is not None:
                            process, chunk = running.pop(place)
                            n_ended += 1
                            counted = f"({n_ended} of {len(chunks)})"
                            if (failure := _failure(process, chunk)) is None:
                                logger.info("%s: trained %s %s", device, chunk, counted)
                            else:
                                failures.append(failure)
                                logger.error("%s: %s %s", device, failure, counted)
                        if place not in running and waiting:
                            chunk = waiting.popleft()
                            running[place] = _started(chunk, device, environment), chunk
                    signals.check()
                    time.sleep(_POLL)
        finally:
            for process, _ in running.values():  # they write their resume points and end
                process.send_signal(signal.SIGTERM)
            for process, chunk in running.values():
                _failure(process, chunk)
    return failures


def _started(chunk: Chunk, device: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that trains a chunk."""
    return subprocess.Popen(
        [*WORKER, device, str(chunk.save_dir), *chunk.configs],
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__,  # what a library prints is no result
        env=environment,
        start_new_session=True,
    )


def _failure(process: subprocess.Popen[bytes], chunk: Chunk) -> str | None:
    """Wait for a process to end. Returns why it failed; None if it didn't."""
    status = process.wait()
    if status == 0:
        return None
    failed = [name for name in chunk.configs if (chunk.save_dir / name / FAILED).is_file()]
    said = [f"{name} failed, see {chunk.save_dir / name / FAILED}" for name in failed]
    number = -status if status < 0 else status - 128
    if number in list(signal.Signals):
        said.append(f"{chunk}: its process was ended by {signal.Signals(number).name}")
    elif not failed:
        said.append(f"{chunk}: its process ended with status {status}, see its message above")
    return "; ".join(said)
