"""Removes paths of this machine from exports and repositories."""

import os
import re
from pathlib import PurePath
from typing import Any

from ..activations.text_files import SUFFIXES
from ..run_folder.files import RUNS

# An absolute or explicitly relative path, or one with more parts than a hub name (owner/name).
_LOCAL = re.compile(r"(/|~|file:|\.\.?/|[^/:]+/[^/]+/).*", re.DOTALL)


def without_local_paths(value: Any) -> Any:
    """A copy of JSON content in which each local path is cut to its last part."""
    if isinstance(value, dict):
        return {name: without_local_paths(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(inner) for inner in value]
    return PurePath(value).name or "local" if isinstance(value, str) and _is_local(value) else value


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
