"""What leaves this machine must not tell where its files lay: local paths become names."""

import re
from pathlib import PurePath, PureWindowsPath
from typing import Any

# An absolute or explicitly relative path, or one deeper than a hub name's owner/name.
_LOCAL = re.compile(r"(/|~|\.\.?/|[A-Za-z]:[\\/]|\\\\|[^/:]+/[^/]+/).*", re.DOTALL)


def without_local_paths(value: Any) -> tuple[Any, list[str]]:
    """JSON content with each local path in it cut to its last name.

    Returns: a copy of `value`, and the keys under which a path was cut, sorted.
    """
    cut: set[str] = set()

    def cleaned(item: Any, key: str) -> Any:
        if isinstance(item, dict):
            return {name: cleaned(inner, name) for name, inner in item.items()}
        if isinstance(item, list | tuple):
            return [cleaned(inner, key) for inner in item]
        if not isinstance(item, str) or not _LOCAL.fullmatch(item):
            return item
        cut.add(key)
        path = PureWindowsPath(item) if "\\" in item else PurePath(item)
        return path.name or "local"

    return cleaned(value, ""), sorted(cut)
