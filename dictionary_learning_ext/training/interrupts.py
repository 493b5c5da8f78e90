"""SIGTERM and SIGINT: the first ends the run where nothing is lost, the second ends it at once.

Of several processes, one alone can't end where nothing is lost. So a signal to one takes effect where
all ask for it. Further signals are ignored: torchrun sends them, and SIGKILL after 30 seconds.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Remembers a signal until the run asks for it at a safe place.

    Arguments:
        are_several: whether this is one of several processes.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self, *, are_several: bool = False):
        self.received: signal.Signals | None = None
        self._are_several = self._is_deferred = are_several

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
            self._is_deferred = self._are_several

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal interrupts at once. No process may wait for this one."""
        self.check()
        self._is_deferred = False
        try:
            yield
        finally:
            self._is_deferred = self._are_several

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What the operating system calls."""
        if self._are_several and self.received is not None:
            return
        self.received = signal.Signals(number)
        if not self._are_several:
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


def ignore_signals() -> None:
    """Let this process end as it is about to."""
    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)


@contextmanager
def interrupts(*, are_several: bool = False) -> Iterator[Interrupts]:
    """Catch the signals inside. Python allows this in the main thread only; others get none.

    Arguments:
        are_several: whether this is one of several processes.
    """
    caught = Interrupts(are_several=are_several)
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    former = {each: signal.signal(each, caught.handle) for each in SIGNALS}
    try:
        yield caught
    except BaseException:
        if are_several:
            former = dict.fromkeys(SIGNALS, signal.SIG_IGN)  # this process is about to end
        raise
    finally:
        for each, handler in former.items():  # None: set by C code, and Python can't set it again
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
