"""Variational TopK sparse autoencoders on top of dictionary_learning.

The public names are listed in `__init__.pyi`, and imported when first used (PEP 562): importing the package is instant, and
torch, nnsight and datasets are loaded by what needs them.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

_PUBLIC = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_IMPORTED = re.compile(r"^from (\S+) import (?:\(\s*)?(\w+) as", re.M)
_HOMES = {name: home for home, name in _IMPORTED.findall(_PUBLIC)}
"""The module of each public name."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # setup.py states it
        from importlib.metadata import version

        return version("dictionary-learning-ext")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
