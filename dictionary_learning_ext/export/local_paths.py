"""Paths of this machine, which no export and no repository shows."""

import os
import re
from pathlib import PurePath, PureWindowsPath
from typing import Any

from ..activations.text_files import SUFFIXES
from ..run_folder.files import RUNS

# An absolute or explicitly relative path, or one with more parts than a hub name (owner/name).
_LOCAL = re.compile(r"(/|~|\.\.?/|[A-Za-z]:[\\/]|\\\\|[^/:]+/[^/]+/).*", re.DOTALL)


def without_local_paths(value: Any) -> tuple[Any, list[str]]:
    """Cut each local path in JSON content to its last name.

    Returns: a copy of `value`, and the sorted keys under which a path was cut.
    """
    cut: set[str] = set()

    def cleaned(item: Any, key: str) -> Any:
        if isinstance(item, dict):
            return {name: cleaned(inner, name) for name, inner in item.items()}
        if isinstance(item, list | tuple):
            return [cleaned(inner, key) for inner in item]
        if not isinstance(item, str) or not _is_local(item):
            return item
        cut.add(key)
        path = PureWindowsPath(item) if "\\" in item else PurePath(item)
        return path.name or "local"

    return cleaned(value, ""), sorted(cut)


def _is_local(text: str) -> bool:
    """Whether a text is a path of this machine rather than a hub name, OWNER/NAME, or a URL.

    A folder of two parts that is not where the command runs can't be told from a hub name.
    """
    if _LOCAL.fullmatch(text):
        return True
    if "/" not in text or "://" in text:
        return False
    is_of_a_run = text.startswith(f"{RUNS}/")
    return is_of_a_run or text.endswith(SUFFIXES) or os.path.exists(text)
