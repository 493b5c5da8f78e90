"""Which features of a dictionary a process holds.

Every dictionary but a split one is `WHOLE`. Each process of a split dictionary sees the same batch, and holds the rows of
the encoder and the columns of the decoder of its own features. `step.py` asks the part for what needs the features of
all. `split.py` has the parts of a split dictionary.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as t
from dictionary_learning.trainers.trainer import set_decoder_norm_to_unit_norm
from torch import nn


class Selection(NamedTuple):
    """Which features are kept of each row."""

    indices: t.Tensor
    """(…, K), in any order"""
    compared: t.Tensor
    """the K largest numbers of each row, by which features are kept; of a split dictionary those of all parts"""
    is_kept: t.Tensor | None = None
    """which `indices` are among the K largest of all parts, (…, K); None if all are, as in a dictionary that isn't split"""

    def only(self, x_BK: t.Tensor) -> t.Tensor:
        """Values of the features of `indices`, 0 for those that are not kept."""
        return x_BK if self.is_kept is None else x_BK.masked_fill(~self.is_kept, 0)


class Part:
    """The features that a process holds: all of them."""

    is_split: bool = False
    """whether the dictionary is split, into one part or several"""
    count: int = 1
    """how many parts there are, of one size"""
    is_first: bool = True
    """whether this is the first part"""

    def features(self, dict_size: int) -> slice:
        """Which of a dictionary's features."""
        return slice(0, dict_size)

    def sum(self, x: t.Tensor) -> t.Tensor:
        """The sum over the parts, which all get, bit-identical. The gradient at x is the sum's."""
        return x

    def mean(self, x: t.Tensor) -> t.Tensor:
        """The mean over the parts, which are of one size."""
        return x

    def max(self, x: t.Tensor) -> t.Tensor:
        """The largest over the parts, elementwise."""
        return x

    def any(self, flag: bool) -> bool:
        """Whether it is true in any part."""
        return flag

    def used(self, x: t.Tensor) -> t.Tensor:
        """x, which all parts have, for the use of this part's features. Its gradient is summed over the parts."""
        return x

    def select(self, indices: t.Tensor, compared: t.Tensor, k: int) -> Selection:
        """The K largest of all features, from the K largest of these."""
        return Selection(indices, compared)

    def start_step(self, step: int, seed: int | None, generator: t.Generator) -> None:
        """Make the generator ready for a step's `draw`. A split dictionary's numbers follow from step and seed."""

    def draw(
        self, like: t.Tensor, generator: t.Generator | None, fill: Callable[..., Any]
    ) -> t.Tensor:
        """Random numbers for each of these features, of `like`'s shape (…, F), dtype and device. A split dictionary's
        don't depend on the number of parts.

        Arguments:
            fill: draws into a tensor, e.g. t.Tensor.normal_.
        """
        drawn = t.empty_like(like, requires_grad=False)
        fill(drawn, generator=generator)
        return drawn

    def own(self, name: str, whole: t.Tensor) -> t.Tensor:
        """These features of a tensor of the whole dictionary's state dict."""
        return whole

    def gathered(self, state: dict[str, t.Tensor]) -> dict[str, t.Tensor] | None:
        """The whole dictionary's state dict, on the CPU, from that of its parts. None in all parts but the first."""
        return {name: value.cpu() for name, value in state.items()}


WHOLE = Part()


def of_part(dict_class: Callable[..., Any], part: Part) -> Callable[..., Any]:
    """What builds a dictionary of a part's features, with the initial weights that they have in the whole one.

    Arguments:
        dict_class: builds the whole one, from activation_dim, dict_size and k. It draws upstream's initial weights.
    """
    if part.count == 1:
        return dict_class

    def build(activation_dim: int, dict_size: int, k: int) -> Any:
        own = part.features(dict_size)
        rows = []  # the whole decoder is drawn row by row, as upstream's Linear draws it
        for _ in range(activation_dim):
            row_1F = nn.init.kaiming_uniform_(t.empty(1, dict_size), a=math.sqrt(5))
            rows.append(row_1F[0, own].clone())
        n_features = len(rows[0])
        W_dec_DF = set_decoder_norm_to_unit_norm(
            nn.Parameter(t.stack(rows)), activation_dim, n_features
        )
        dictionary = dict_class(activation_dim, n_features, min(k, n_features))
        dictionary.k.fill_(k)
        dictionary.decoder.weight.data.copy_(W_dec_DF)
        dictionary.encoder.weight.data.copy_(W_dec_DF.T)
        return dictionary

    return build
