"""SIGTERM and SIGINT: the first ends the run where nothing is lost, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Remembers a signal until the run asks for it at a safe place.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._is_deferred = False

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal takes effect at `check`. Outside, it interrupts at once."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What the operating system calls."""
        self.received = signal.Signals(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self._is_deferred:
            raise Interrupted(self.received)


@contextmanager
def before_the_first_step() -> Iterator[None]:
    """An interruption inside says that nothing has been changed."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(
            stop.signal,
            f"stopped by {stop.signal.name} before the first step; nothing was written or changed; "
            "run the same command again",
        ) from stop


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Catch the signals inside. Python allows this in the main thread only; others get none."""
    caught = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    former = {each: signal.signal(each, caught.handle) for each in SIGNALS}
    try:
        yield caught
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)
