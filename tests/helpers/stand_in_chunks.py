"""Chunks of a sweep whose training does what a test needs. A process of its own unpickles them."""

import signal
from dataclasses import dataclass

from dictionary_learning_ext.errors import Interrupted, TextError, TrainingError


@dataclass
class StandInChunk:
    what: str

    def __str__(self):
        return "a and 2 more"

    def train(self):
        print("from a library")
        if self.what == "fails":
            raise TrainingError("a: failed at or before step 3")
        if self.what == "is refused":
            raise TextError("the text is too short")
        if self.what == "waits":
            signal.signal(signal.SIGTERM, interrupted)
            print("waiting", flush=True)
            while True:
                signal.pause()


def interrupted(number, frame):
    raise Interrupted(signal.Signals(number))
