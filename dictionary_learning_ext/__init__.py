"""Variational TopK sparse autoencoders on top of dictionary_learning.

The public names are imported when first used (PEP 562): importing the package is instant, and
torch, nnsight and datasets are loaded by what needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainers.variational_top_k import VariationalTopKAutoEncoder, VariationalTopKTrainer

_HOMES = {
    "VariationalTopKAutoEncoder": ".trainers.variational_top_k",
    "VariationalTopKTrainer": ".trainers.variational_top_k",
}

__all__ = ["VariationalTopKAutoEncoder", "VariationalTopKTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
