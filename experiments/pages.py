"""What the experiments' pages are made of: where results lie, what was run, and tables."""

import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as t

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit measured, with a + if the package was changed since."""
    git = ["git", "-C", str(Path(__file__).parents[1])]

    def ask(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()

    head = ask("rev-parse", "--short", "HEAD") or "unknown"
    return head + ("+" if ask("status", "--porcelain", "dictionary_learning_ext") else "")


def about(began: float, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Date, commit, torch and minutes since `began`, added to those of the part that ran before."""
    minutes = (time.monotonic() - began) / 60 + (before or {}).get("minutes", 0.0)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "torch": t.__version__,
        "minutes": round(minutes, 1),
    }


def about_line(settings: dict[str, Any]) -> str:
    """What `about` found, in words."""
    return (
        f"{settings['date']}, commit {settings['commit']}, torch {settings['torch']}, "
        f"{settings['minutes']:.0f} minutes"
    )


def write(name: str, lines: list[str]) -> None:
    """Print the lines and write them to results/NAME."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def table(corner: str, rows: dict[str, list[str]], columns: list[str]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; nothing of a figure that does not apply."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ""
    return f"{statistics.mean(numbers):.3f} ± {statistics.stdev(numbers):.3f}"
