"""Whether the other processes of a run are alive. One that hangs ends the run, and so does torchrun's store
if it doesn't answer: it is on the first machine.

Each rank has a thread that sends a beat to torchrun's store and reads the others' beats. A beat says
whether the process has computed since the last one, and whether it waits for the others. How long a rank
computes doesn't matter: it may be tokenising, evaluating or writing. A rank hangs if for PATIENCE it
sends no beat (it or its machine has stopped), or neither computes nor waits (a disk or a server doesn't
answer it), or if all wait for each other.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import ProcessError
from ..trainers.ranks import reaching_all, waiting

PATIENCE = timedelta(minutes=15)
"""More than a healthy process goes without computing, e.g. while a disk takes what was written."""
_BEATS = 30
"""In this time. What is counted is beats and not seconds, as all may be suspended together."""
_IDLE = 0.01
"""Below this share of a CPU a process doesn't compute. The threads of torch.distributed take 0.002."""


class Beat(NamedTuple):
    """What a rank says of itself."""

    number: int = 0
    computed: int = 0
    """In how many intervals between beats."""
    waits: bool = False
    """For other ranks."""
    has_left: bool = False
    """The run is over for it."""


class Silence:
    """For how many looks in a row each rank has given no sign of life."""

    def __init__(self, ranks: int):
        self.looks = [0] * ranks
        self._last = [Beat(-1)] * ranks

    def look(self, beats: Sequence[Beat]) -> None:
        """Count another look at every rank's last beat."""
        answers = [now.number != was.number for was, now in zip(self._last, beats, strict=True)]
        waits = [each.waits and answer for each, answer in zip(beats, answers, strict=True)]
        for rank, (was, now) in enumerate(zip(self._last, beats, strict=True)):
            computes = answers[rank] and now.computed != was.computed
            lives = now.has_left or computes or (waits[rank] and not all(waits))
            self.looks[rank] = 0 if lives else self.looks[rank] + 1
        self._last = list(beats)

    @property
    def hung(self) -> list[int]:
        """The ranks that hang."""
        return [rank for rank, looks in enumerate(self.looks) if looks >= _BEATS]


class Heartbeat:
    """This rank's beats, from `start` to `stop`. In between it ends this process if a rank hangs.

    Arguments:
        rank: of this process.
        ranks: how many there are.
        again: the command that continues the run.
    """

    def __init__(self, rank: int, ranks: int, again: str):
        self._rank, self._again = rank, again
        with reaching_all():  # a connection of its own: that of the process group may be waiting
            store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        self._store = dist.PrefixStore("heartbeat", store)
        self._keys = [f"beat/{each}" for each in range(ranks)]
        self._silence, self._beat = Silence(ranks), Beat()
        self._training = threading.current_thread()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._looks = 0
        self._times = (0.0, 0.0)
        self._store.set(f"where/{rank}", f"process {os.getpid()} on {socket.gethostname()}")

    @property
    def is_beating(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """Watch the others, and be watched. The thread that calls this is the one that trains.

        Raises: ProcessError if a rank hasn't come here within PATIENCE.
        """
        self._training = threading.current_thread()
        self._beat = self._beat._replace(has_left=False)
        self._send()
        try:
            self._store.wait(self._keys, PATIENCE)
        except dist.DistError as error:
            missing = [r for r, key in enumerate(self._keys) if not self._store.check([key])]
            problem = f"{_named(missing)} did not start within {_minutes()}"
            raise ProcessError(problem, instead="start the run again") from error
        # A new event: an earlier thread may still wait for the store.
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopped,), daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_store, args=(self._stopped,), daemon=True).start()

    def stop(self) -> None:
        """Tell the others that nobody need wait for this rank's beats from now on."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join(PATIENCE.total_seconds() / _BEATS)
            self._thread = None

    def is_first_to_tell(self) -> bool:
        """Whether no other rank has told the user why the run ends. One line is enough."""
        try:
            return self._store.compare_set("told", "", str(self._rank)) == str(self._rank).encode()
        except dist.DistError:
            return True

    def _run(self, stopped: threading.Event) -> None:
        """What the thread does."""
        try:
            while not stopped.wait(PATIENCE.total_seconds() / _BEATS):
                self._send()
                beats = self._store.multi_get(self._keys)
                self._silence.look([Beat(*json.loads(beat)) for beat in beats])
                self._looks += 1
                if hung := self._silence.hung:
                    if self.is_first_to_tell():
                        where = [self._store.get(f"where/{rank}").decode() for rank in hung]
                        self._say(f"{_named(hung)} ({', '.join(where)}) hung: no sign of life")
                    os._exit(2)  # it may be waiting where no exception reaches it
            self._beat = self._beat._replace(has_left=True)
            self._send()
        except dist.DistError:  # torchrun, whose store it is, has ended
            stopped.set()

    def _watch_store(self, stopped: threading.Event) -> None:
        """End this process if the store has not answered for PATIENCE. `_run` then waits for it."""
        looks = missed = 0
        while not stopped.wait(PATIENCE.total_seconds() / _BEATS):
            missed = 0 if self._looks != looks else missed + 1
            looks = self._looks
            if missed >= _BEATS:
                where = os.environ.get("MASTER_ADDR", "the first machine")
                self._say(f"torchrun's store on {where} hung: no answer")
                os._exit(2)

    def _send(self) -> None:
        number, computed, _, has_left = self._beat
        computed += self._has_computed()
        self._beat = Beat(number + 1, computed, waiting.is_set(), has_left)
        self._store.set(self._keys[self._rank], json.dumps(self._beat))

    def _has_computed(self) -> bool:
        """Since this was asked last.

        The training thread's least sign counts: it may be looking now and then whether a file is
        unlocked. The other threads' doesn't, unless they download something for it.
        """
        former, passed = self._times, PATIENCE.total_seconds() / _BEATS
        process = time.process_time() - time.thread_time()
        training = process
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            clock = time.pthread_getcpuclockid(self._training.ident or 0)
            training = time.clock_gettime(clock)
        self._times = (training, process)
        return training > former[0] or process - former[1] > _IDLE * passed

    def _say(self, what: str) -> None:
        """Say why this process ends."""
        continued = f"continue from the last resume point with `{self._again}`"
        print(f"vsae: {what} for {_minutes()}; {continued}", file=sys.stderr, flush=True)


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _minutes() -> str:
    return f"{PATIENCE.total_seconds() / 60:g} minutes"
