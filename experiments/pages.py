"""The pages of results: their tables are written here from the raw results, their prose by hand.

The tables stand between two comments of a page. What is around them is never touched.
"""

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.evaluation.tables import markdown_table

BEGIN, END = "<!-- Written by the command above. -->", "<!-- Written by hand. -->"
LABELS = {key: metric.label for key, metric in METRICS.items()} | {
    # of decoder directions: experiments.paper.feature_maps
    "dispersion": "dispersion",
    "agreement": "agreement of seeds",
    "within": "within",
    "excess": "agreement - within",
    # SAE Bench's, as experiments average them over N, or over the number of features
    "sae_probes": "sae_probes",
    "scr": "SCR, N = 2 and 5",
    "scr_matched": "SCR, size-matched",
    "tpp": "TPP, all N",
    "tpp_matched": "TPP, size-matched",
}
"""What the pages call a metric of metrics.json, or of an experiment's own."""
DIGITS = {"l0": 1, "description_length": 1}
"""Default: 3."""
SHOWN = (
    "fve",
    "fve_sampled",
    "frac_recovered",
    "cossim",
    "alive",
    "near_dead_0.1",
    "near_dead_0.5",
    "stability_rms",
    "dispersion",
    "agreement",
)
"""What the tables of trained SAEs show, in this order."""


def labels_of(names: Iterable[str]) -> list[str]:
    """A table's columns."""
    return [LABELS[name] for name in names]


def table(corner: str, rows: dict[str, list[str]], columns: list[str]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [[name, *row] for name, row in rows.items()]
    return markdown_table([corner, *columns], cells).splitlines()


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and standard deviation over seeds; empty if the metric does not apply."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ""
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def each(values: Sequence[float | None], digits: int = 3) -> str:
    """One number per seed; empty where the metric does not apply."""
    return " / ".join("" if value is None else f"{value:.{digits}f}" for value in values)


def with_tables(page: str, lines: Sequence[str]) -> str:
    """A page's text with these lines between its two comments.

    Raises:
        ValueError: the comments are not there once each.
    """
    block = "\n".join([BEGIN, "", *lines, "", END])
    between = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    text, count = re.subn(between, lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected the lines {BEGIN} and {END}, once each")
    return text


def write_tables(page: Path, lines: Sequence[str], command: str) -> None:
    """Print the lines, and put them between the page's two comments.

    Args:
        command: what measures, in Markdown: the first line of a page that is not there yet.
    """
    former = f"{command}. [Raw rows]({page.stem}.json).\n\n{BEGIN}\n{END}\n"
    if page.exists():
        former = page.read_text(encoding="utf-8")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(with_tables(former, lines), encoding="utf-8")
    print("\n".join(lines))


def save_plot(figure: Any, path: Path, dpi: int) -> None:
    """Write a plot of matplotlib's and free it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
