"""A terminal's line for each process of several, with what the process would show by itself."""

import shutil
import sys
from types import TracebackType

from tqdm import tqdm


class ProgressLine:
    """A line that one process writes to.

    As in a terminal, what follows a carriage return replaces the line, and a line that is finished
    stays. Where the standard error is no terminal, only finished lines are shown.

    Arguments:
        label: stands before everything that is shown.
        place: 0 for the first line.
    """

    def __init__(self, label: str, place: int):
        self._label = label
        self._text = ""
        self._bar = tqdm(
            bar_format="{desc}",
            position=place,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def write(self, piece: str) -> None:
        """What the process wrote next."""
        *finished, last = (line.rpartition("\r")[2] for line in (self._text + piece).split("\n"))
        self._text = last
        for line in filter(str.strip, finished):
            self.keep(line.rstrip())
        self.show(last)

    def show(self, text: str) -> None:
        """Replace the line."""
        width = shutil.get_terminal_size().columns - 1
        self._bar.set_description_str(f"{self._label}: {text}"[:width])

    def keep(self, text: str) -> None:
        """Print a line that stays, above all that are replaced."""
        tqdm.write(f"{self._label}: {text}", file=sys.stderr)
