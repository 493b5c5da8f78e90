"""Activations as a dictionary takes them."""

from typing import Any

import torch as t


def as_input(dictionary: Any, x: t.Tensor) -> t.Tensor:
    """Activations in the dtype and on the device of a dictionary's parameters.

    Upstream's classes take no others, and a language model's dtype may differ from the SAE's.
    """
    return x.to(next(dictionary.parameters()))
