"""The directions of a dictionary's decoder, of any class. F features, D = activation_dim."""

from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

_FEATURES_AT_ONCE = 256


@t.no_grad()
def decoder_directions(dictionary: Dictionary) -> t.Tensor:
    """What one unit of each feature adds to the reconstruction, (F, D). Works for every class."""
    sae: Any = dictionary
    parameter = next(dictionary.parameters())
    parts = []
    for start in range(0, dictionary.dict_size, _FEATURES_AT_ONCE):
        rows = range(start, min(start + _FEATURES_AT_ONCE, dictionary.dict_size))
        one_hot = t.zeros(len(rows), dictionary.dict_size).to(parameter)
        one_hot[range(len(rows)), rows] = 1.0
        parts.append(sae.decode(one_hot) - sae.decode(t.zeros_like(one_hot[:1])))
    return t.cat(parts).float().cpu()
