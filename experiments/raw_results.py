"""Raw results: one JSON file of an experiment in results/, with what made it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.run_folder.files import write_text

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_or(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """What an earlier stage or part wrote, or `otherwise` before there was one."""
    return read(path) if path.exists() else otherwise


def write(path: Path, content: dict[str, Any]) -> None:
    """The whole file or nothing: a stage that is killed leaves the former results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=0) + "\n")


def commit() -> str:
    """The commit measured, with a + if the package has changed since."""
    git = ["git", "-C", str(Path(__file__).parents[1])]

    def ask(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()

    head = ask("rev-parse", "--short", "HEAD") or "unknown"
    return head + ("+" if ask("status", "--porcelain", "dictionary_learning_ext") else "")


def about(began: float, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Date, commit, torch and the minutes since `began`, added to those of an earlier part; of several
    commits all, in their order.

    Args:
        began: `time.monotonic()` at the start.
        before: what this returned for the earlier part.
    """
    before = before or {}
    minutes = (time.monotonic() - began) / 60 + before.get("minutes", 0.0)
    commits = [*before.get("commit", "").split(", "), commit()]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": ", ".join(filter(None, dict.fromkeys(commits))),
        "torch": t.__version__,
        "minutes": round(minutes, 1),
    }


def about_line(settings: dict[str, Any]) -> str:
    """What `about` found, in words; a part that was not noted is left out."""
    parts = {
        "date": "{}",
        "commit": "commit {}",
        "torch": "torch {}",
        "minutes": "{:.0f} minutes",
    }
    return ", ".join(
        form.format(settings[name]) for name, form in parts.items() if name in settings
    )
