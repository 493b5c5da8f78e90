"""What the experiments' pages are made of: tables, numbers over seeds, checked sentences, plots."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictionary_learning_ext.evaluation.tables import markdown_table

RESULTS = Path(__file__).parent / "results"


class ClaimError(ValueError):
    """A sentence of a page says what the raw results no longer show."""


def write(page: str | Path, lines: Sequence[str]) -> None:
    """Print the lines and write them to `page`, a file in results/ or a full path."""
    path = RESULTS / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def table(corner: str, rows: dict[str, list[str]], columns: list[str]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [[name, *row] for name, row in rows.items()]
    return markdown_table([corner, *columns], cells).splitlines()


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and standard deviation; empty if the metric does not apply."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ""
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def each(values: Sequence[float | None], digits: int = 3) -> str:
    """One number per seed; empty where the metric does not apply."""
    return " / ".join("" if value is None else f"{value:.{digits}f}" for value in values)


def claim(sentence: str, *, holds: bool) -> str:
    """The sentence, if the numbers show it.

    Every sentence that states a direction ("higher", "loses", "at all three sizes") goes through
    this, so that no page contradicts its own numbers.

    Raises:
        ClaimError: they don't.
    """
    if not holds:
        raise ClaimError(
            f"the page says {sentence!r}, and the raw results do not show it. Expected them to agree: "
            "rewrite the sentence where it stands, with its condition"
        )
    return sentence


def save_plot(figure: Any, path: Path, dpi: int) -> None:
    """Write a plot of matplotlib's and free it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
