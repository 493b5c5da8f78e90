"""Files that a run names, e.g. its cache, and that moved along with its folder. Imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.run import UNKNOWN
from ..errors import UserError
from .files import RUNS, at_home

_NAMED = ("activations", "model", "data")
"""The settings that may name a file or a folder."""
_LEVELS = 3
"""A run's save_dir is its folder, or that of its seeds, or that of several hook points with several seeds each."""


def as_here(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run's settings, with the present place of files that are not where it names them, but where they were from its folder.

    Arguments:
        folder: the run folder now.
    """
    was = settings.get("save_dir") or str(RUNS)
    places = [folder.absolute(), *folder.absolute().parents][:_LEVELS]
    found = dict(settings)
    for name in _NAMED:
        path, cache = settings.get(name), found.get("activations")
        if name == "data" and cache is not None and at_home(cache).exists():
            continue  # the cache's name of the text: it isn't read
        if path in (None, "embedded", UNKNOWN) or at_home(path).exists():
            continue
        if os.path.isabs(path) != os.path.isabs(was):
            continue
        inside = os.path.relpath(path, was)
        moved = (os.path.normpath(place / inside) for place in places)
        found[name] = next(filter(os.path.exists, moved), path)
    return found


def not_here(error: UserError, name: str) -> UserError:
    """An error about a file that a run names, with what to do if it is elsewhere."""
    advice = f"if it is a path, it starts where the run was started: give {name}=PATH"
    return error if error.instead else error.within("", advice)
