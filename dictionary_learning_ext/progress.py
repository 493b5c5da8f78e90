"""The progress of a command: a bar in a terminal or a notebook, and otherwise a line every minute."""

import os
import sys
import time
from typing import Any

from tqdm import tqdm

_SECONDS = 60


def progress(
    total: int, unit: str, *, initial: int = 0, desc: str = "", leave: bool = True, **options: Any
) -> "tqdm[Any] | ProgressLines":
    """A tqdm bar on stderr, or `ProgressLines` if stderr is not a terminal.

    Arguments:
        leave: whether the bar stays when it is closed.
        options: further arguments of tqdm.
    """
    if not (sys.stderr.isatty() or _is_notebook()):
        return ProgressLines(total, unit, initial, desc, **options)
    return tqdm(
        total=total, unit=unit, initial=initial, desc=desc, leave=leave, mininterval=1, **options
    )


def _is_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


class ProgressLines:
    """A stand-in for a tqdm bar that writes a line every minute, the first one after a minute."""

    def __init__(
        self,
        total: int,
        unit: str,
        initial: int,
        desc: str,
        unit_scale: bool = False,
        disable: bool = False,
    ):
        self._shown = {"unit": unit, "unit_scale": unit_scale, "prefix": desc, "ncols": 0}
        self._is_silent = disable or bool(os.environ.get("TQDM_DISABLE"))
        self._file, self._postfix = sys.stderr, ""
        self.total, self.n, self._initial = total, initial, initial
        self._start = self._written = time.monotonic()

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self._written < _SECONDS or self._is_silent:
            return
        self._written = now
        line = tqdm.format_meter(
            self.n,
            self.total,
            now - self._start,
            initial=self._initial,
            postfix=self._postfix,
            **self._shown,
        )
        print(line, file=self._file, flush=True)

    def set_postfix_str(self, text: str) -> None:
        self._postfix = text

    def clear(self) -> None:
        """Does nothing, as no bar is on the screen."""

    refresh = close = clear

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing, as nothing is open."""
