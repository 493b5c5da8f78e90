"""The directions of a dictionary's decoder, of any class. F features, D = activation_dim."""

from collections.abc import Sequence
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

_FEATURES_AT_ONCE = 256


@t.no_grad()
def decoder_directions(dictionary: Dictionary, features: Sequence[int] | None = None) -> t.Tensor:
    """What one unit of each feature adds to the reconstruction, (F, D). Works for every class.

    Arguments:
        features: those wanted, a row each, in this order. None: all.
    """
    sae: Any = dictionary
    parameter = next(dictionary.parameters())
    wanted = range(dictionary.dict_size) if features is None else features
    nothing = sae.decode(t.zeros(1, dictionary.dict_size).to(parameter))
    parts = [nothing[:0]]
    for start in range(0, len(wanted), _FEATURES_AT_ONCE):
        columns = list(wanted[start : start + _FEATURES_AT_ONCE])
        one_hot = t.zeros(len(columns), dictionary.dict_size).to(parameter)
        one_hot[range(len(columns)), columns] = 1.0
        parts.append(sae.decode(one_hot) - nothing)
    return t.cat(parts).float().cpu()
