"""Train the chunks of a sweep on several devices: a process for each chunk, one per device at a time.

The processes are children in sessions of their own: a Ctrl-C in the terminal reaches the parent alone,
which ends them with SIGTERM. They also end if the parent does. Each runs `main`: it trains the chunk
that it reads from its standard input. A UserError goes to its standard output, all else to the standard
error, which it shares with the parent.
"""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from ..errors import ConfigError, Interrupted, TrainingError, UserError
from ..training.processes import interrupts
from .chunks import Chunk

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", f"{__package__}.devices")
"""The command of a process, before its device."""
_POLL = 0.2  # seconds


def devices_of(text: str) -> list[str]:
    """The devices in a text such as cuda:0,cuda:1. Raises ConfigError unless they are of one kind."""
    devices = text.split(",")
    if "" in devices or len({device.partition(":")[0] for device in devices}) > 1:
        raise ConfigError(
            name="devices",
            value=text,
            expected="devices of one kind, separated by commas, e.g. cuda:0,cuda:1",
        )
    return devices


def train_on(devices: Sequence[str], chunks: Sequence[Chunk]) -> list[str]:
    """Train all chunks. A device takes the next one when it has finished one.

    Returns: what went wrong, a line for each chunk that failed or whose process was killed.

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
                            of_all = f"({n_ended} of {len(chunks)})"
                            if (failure := _failure(process, chunk)) is None:
                                logger.info("%s: trained %s %s", device, chunk, of_all)
                            else:
                                failures.append(failure)
                                logger.error("%s: %s %s", device, failure, of_all)
                        if place not in running and waiting:
                            chunk = waiting.popleft().on(device)
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
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*WORKER, device], stdin=pipe, stdout=pipe, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which its status says
        process.stdin.write(pickle.dumps(chunk))
        process.stdin.flush()
    return process


def _failure(process: subprocess.Popen[bytes], chunk: Chunk) -> str | None:
    """What went wrong in a process, if anything did. Waits for its end."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read().decode(errors="replace")
    status = process.wait()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    if status == 0:
        return None
    if said:
        return said
    number = -status if status < 0 else status - 128
    if number in list(signal.Signals):
        return f"{chunk}: its process was ended by {signal.Signals(number).name}"
    return f"{chunk}: its process ended with status {status}, see its message above"


def main(device: str) -> int:
    """Train the chunk on the standard input; return the exit status, as the command line's."""
    logging.basicConfig(level=logging.WARNING, format=f"{device}: %(levelname)s: %(message)s")
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no result
    chunk = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_pool, daemon=True).start()
    with result:
        try:
            chunk.train()
        except Interrupted as stop:
            return stop.exit_code
        except TrainingError as error:  # names its SAEs
            result.write(error.as_typed)
            return 2
        except UserError as error:
            result.write(f"{chunk}: {error.as_typed}")
            return 2
    return 0


def _end_with_the_pool() -> None:
    """Stop as on SIGTERM once the pool is gone, even if it was killed: the pipe to it is closed then."""
    os.read(0, 1)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
