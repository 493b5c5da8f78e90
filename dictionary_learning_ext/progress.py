"""The progress of a command: a bar in a terminal or a notebook, and otherwise a line every minute."""

import sys
from typing import Any

from tqdm import tqdm


def progress(
    total: int, unit: str, *, initial: int = 0, desc: str = "", leave: bool = True, **options: Any
) -> "tqdm[Any]":
    """A tqdm bar on stderr; if stderr is not a terminal, one that writes a line every minute, the first after a minute.

    Arguments:
        leave: whether the bar stays when it is closed.
        options: further arguments of tqdm.
    """
    options |= {"total": total, "unit": unit, "initial": initial, "desc": desc}
    if sys.stderr.isatty() or _is_notebook():
        return tqdm(mininterval=1, leave=leave, **options)
    return _Lines(
        mininterval=60, delay=60, miniters=1, smoothing=0, ncols=0, leave=False, **options
    )


def _is_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


class _Lines(tqdm):
    """A bar of which nothing is drawn. Instead of redrawing it, `update` writes a line."""

    def update(self, n: float | None = 1) -> None:
        if super().update(n):
            print(self, file=self.fp, flush=True)

    def display(self, *_: Any, **__: Any) -> None:
        """Draw nothing."""

    clear = display
