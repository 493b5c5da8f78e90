"""Times of functions that take turns in one process, and what was measured on."""

import importlib.metadata
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as t

RESULTS = Path(__file__).parent / "results"


def medians(
    functions: dict[str, Callable[[], object]], rounds: int = 10, counted: int = 2
) -> dict[str, float]:
    """The median milliseconds of each function, over `rounds * counted` calls.

    They take turns. A turn begins with a call that is not counted: it pays for the pages and the
    caches that the one before it took. The first round is not counted either.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            for call in range(counted + 1):
                started = time.perf_counter()
                function()
                if round_ and call:
                    times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def header(setting: str, *packages: str) -> str:
    """The date, the machine, the versions, and `setting`."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    capability = t.backends.cpu.get_cpu_capability()
    bf16 = "AMX" if t.cpu._is_amx_tile_supported() else "no AMX"
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()} ({capability}, {bf16}), "
        f"{t.get_num_threads()} threads, torch {t.__version__}, {versions}; {setting}"
    )


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
