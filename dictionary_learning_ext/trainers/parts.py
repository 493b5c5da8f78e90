"""The features of a dictionary that one process holds.

A dictionary that isn't split is `WHOLE`. With a split one, every process sees the same batch, and holds the encoder rows
and decoder columns of its own features. The methods of `Part` are the operations of a step that need all features;
`split.py` implements them for several processes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as t
from dictionary_learning.trainers.trainer import set_decoder_norm_to_unit_norm
from torch import nn


class Selection(NamedTuple):
    """The features that a batch keeps: the K of each row, or B K of all rows together."""

    indices: t.Tensor
    """features, (…, K), in any order"""
    keys: t.Tensor
    """each row's K largest values (or magnitudes), over all parts of a split dictionary; with `rows` those at `indices`"""
    is_kept: t.Tensor | None = None
    """which `indices` are among the K largest of all parts, (…, K); None: all, because the dictionary isn't split"""
    rows: t.Tensor | None = None
    """the row of each of `indices`, ascending, (B, K), where a batch shares them; None: each row has its own K"""

    def of(self, x_BF: t.Tensor) -> t.Tensor:
        """The numbers at the selected features: (…, F) -> (…, K)."""
        if self.rows is None:
            return x_BF.gather(-1, self.indices)
        places = (self.rows * x_BF.shape[-1] + self.indices).flatten()
        return x_BF.flatten().gather(0, places).view(self.indices.shape)

    def spread(self, values_BK: t.Tensor, n_features: int) -> t.Tensor:
        """The inverse: values at the selected features, and 0 elsewhere, (B, F)."""
        zeros_BF = values_BK.new_zeros(len(values_BK), n_features)
        if self.rows is None:
            return zeros_BF.scatter(1, self.indices, values_BK)
        places = (self.rows * n_features + self.indices).flatten()
        return zeros_BF.flatten().scatter(0, places, values_BK.flatten()).view(zeros_BF.shape)

    def only(self, x_BK: t.Tensor) -> t.Tensor:
        """x_BK, set to 0 for the features that are not kept."""
        return x_BK if self.is_kept is None else x_BK.masked_fill(~self.is_kept, 0)


class Part:
    """The features that a process holds; in this class, all of them."""

    is_split: bool = False
    """whether the dictionary is split, into one part or several"""
    count: int = 1
    """how many parts there are; all have the same size"""
    is_first: bool = True
    """whether this is the first part"""

    def features(self, dict_size: int) -> slice:
        """The range of this part's features."""
        return slice(0, dict_size)

    def sum(self, x: t.Tensor) -> t.Tensor:
        """The sum over parts, bit-identical in all of them. Its gradient is passed on to x unchanged."""
        return x

    def mean(self, x: t.Tensor) -> t.Tensor:
        """The mean over parts."""
        return x

    def max(self, x: t.Tensor) -> t.Tensor:
        """The elementwise maximum over parts."""
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any part."""
        return flag

    def shared(self, x: t.Tensor) -> t.Tensor:
        """x itself, a tensor that all parts have. Its gradient is the sum of what the parts' features add to it."""
        return x

    def select(self, indices: t.Tensor, keys: t.Tensor, k: int) -> Selection:
        """Select the K largest of all features, given the K largest of this part's."""
        return Selection(indices, keys)

    def start_step(self, step: int, seed: int | None, generator: t.Generator) -> None:
        """Prepare the generator for a step. For a split dictionary, step and seed determine what `draw` returns."""

    def draw(
        self, like: t.Tensor, generator: t.Generator | None, fill: Callable[..., Any]
    ) -> t.Tensor:
        """Random numbers of the shape (…, F), dtype and device of `like`. For a split dictionary, they don't depend on
        the number of parts.

        Arguments:
            fill: fills a tensor with random numbers, e.g. t.Tensor.normal_.
        """
        drawn = t.empty_like(like, requires_grad=False)
        fill(drawn, generator=generator)
        return drawn

    def own(self, name: str, whole: t.Tensor) -> t.Tensor:
        """This part's features in a tensor from the whole dictionary's state dict."""
        return whole

    def gathered(self, state: dict[str, t.Tensor]) -> dict[str, t.Tensor] | None:
        """The whole dictionary's state dict, on the CPU, given this part's. None in all parts but the first."""
        return {name: value.cpu() for name, value in state.items()}


WHOLE = Part()


def built_in_part(
    part: Part, dict_class: Callable[..., Any], activation_dim: int, dict_size: int, k: int
) -> Any:
    """A part's dictionary, whose features start with the same weights as in the whole dictionary.

    Arguments:
        dict_class: builds a whole dictionary from activation_dim, dict_size and k, with upstream's initial weights.
    """
    if part.count == 1:
        return dict_class(activation_dim, dict_size, k)
    own = part.features(dict_size)
    rows = []  # the whole decoder is drawn row by row, as upstream's Linear draws it
    for _ in range(activation_dim):
        row_1F = nn.init.kaiming_uniform_(t.empty(1, dict_size), a=math.sqrt(5))
        rows.append(row_1F[0, own].clone())
    weight = nn.Parameter(t.stack(rows))
    n_features = weight.shape[1]
    W_dec_DF = set_decoder_norm_to_unit_norm(weight, activation_dim, n_features)
    dictionary = dict_class(activation_dim, n_features, min(k, n_features))
    dictionary.k.fill_(k)
    dictionary.decoder.weight.data.copy_(W_dec_DF)
    dictionary.encoder.weight.data.copy_(W_dec_DF.T)
    return dictionary
