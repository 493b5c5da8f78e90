"""`vsae report`: what SAEs learned, on one HTML page. Start reading at page.py."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import write_report
    from .runs_page import write_index

__all__ = ["write_index", "write_report"]

_HOMES = {"write_index": ".runs_page", "write_report": ".page"}


def __getattr__(name: str) -> Any:
    """Lazily: a page takes plotly and matplotlib, which other uses of this folder do without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
