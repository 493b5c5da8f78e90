"""What tables and progress bars call SAEs: as short as tells them apart. Imports no torch."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..config.run import TrainConfig
from ..config.sae import DERIVED
from ..run_folder.matching import unequal
from .tables import setting_text

_LONG_NAME = 30  # characters


def short_names(folders: Iterable[str]) -> dict[str, str]:
    """Each folder's shortest ending that tells it from the others.

    Of long names of equally many parts, e.g. those of a sweep's runs, only the parts that differ:
    …beta0.1…seed0.
    """
    parts = {folder: Path(folder).parts for folder in folders}
    for n in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {folder: str(Path(*path[-n:])) for folder, path in parts.items()}
        if len(set(names.values())) == len(parts):
            by_parts: dict[int, dict[str, str]] = {}
            for folder, name in names.items():
                by_parts.setdefault(name.count("_"), {})[folder] = name
            shortened = dict(names)
            for alike in by_parts.values():
                if max(map(len, alike.values())) > _LONG_NAME:
                    shortened |= _differing_parts(alike)
            return shortened if len(set(shortened.values())) == len(names) else names
    return {folder: folder for folder in parts}


def by_settings(configs: dict[str, TrainConfig]) -> dict[str, str]:
    """What to call SAEs whose names are long, e.g. those of a sweep: the settings that differ, as
    k=8 beta=0. Short names are kept."""
    given = {
        name: {n: v for n, v in config.to_dict().items() if v is not None}
        for name, config in configs.items()
    }
    names = [name for name in unequal(list(given.values())) if name not in DERIVED]
    if any("noise_to_signal" in each for each in given.values()):
        names = [name for name in names if name != "sigma"]  # follows from it
    called = {
        name: " ".join(f"{n}={setting_text(each[n])}" for n in names if n in each)
        for name, each in given.items()
    }
    are_long = max(map(len, configs), default=0) > _LONG_NAME
    is_clear = len(set(called.values())) == len(called) > 1
    return called if are_long and is_clear else {name: name for name in configs}


def _differing_parts(names: dict[str, str]) -> dict[str, str]:
    """Names of equally many parts between "_", without the parts that all of them have."""
    parts = [name.split("_") for name in names.values()]
    if len(parts) == 1:
        return names
    is_shared = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    shortened = [
        "_".join("…" if s else p for p, s in zip(one, is_shared, strict=True)) for one in parts
    ]
    return {
        folder: re.sub(r"_?…(_…)*_?", "…", name)
        for folder, name in zip(names, shortened, strict=True)
    }
