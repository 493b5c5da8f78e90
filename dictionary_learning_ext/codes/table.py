"""Statistics and contexts of an SAE's features on a text: `FeatureTable`, computed from `Codes`.

Shapes: F features. A feature's *strongest* or *largest* activations are those of the largest magnitude. They
keep their signs: some SAEs have negative activations, e.g. a vSAE without ReLU.
"""

import math
from collections import Counter
from functools import cached_property

import numpy as np
import torch as t

from .codes import Codes
from .contexts import AFTER, BEFORE, FeatureContexts, drawn_rows, strongest_rows

SAMPLED = 8
"""How many drawn contexts of each feature to keep."""
LEAST_SELECTIONS = 8
"""A feature that was selected less often has too few examples to say what it fires on."""
BINS = 40
"""The most bins of a histogram."""


class FeatureTable:
    """Statistics and contexts of every feature. Each is computed when it is first used.

    Arguments:
        top: how many of each feature's strongest contexts to keep.
        seed: seeds the drawing of its other contexts.
    """

    def __init__(self, codes: Codes, *, top: int = 8, seed: int = 0):
        self.codes, self._top, self._seed = codes, top, seed

    @property
    def tokens(self) -> int:
        """The number of tokens measured on."""
        return self.codes.tokens

    @cached_property
    def count_F(self) -> t.Tensor:
        """The number of tokens at which each feature was selected, (F,), int64."""
        return t.from_numpy(self.codes.count_F)

    @property
    def firing_rate_F(self) -> t.Tensor:
        """The share of the tokens at which each feature was selected, (F,), float64."""
        return self.codes.firing_rate_F

    @property
    def alive_F(self) -> t.Tensor:
        """(F,), whether each feature was selected at least once."""
        return self.count_F > 0

    @cached_property
    def max_F(self) -> t.Tensor:
        """(F,), the activation of the largest magnitude, with its sign; NaN for a feature that was never selected."""
        highest_F, lowest_F = self._reduced(np.maximum), self._reduced(np.minimum)
        return t.from_numpy(np.where(highest_F >= -lowest_F, highest_F, lowest_F))

    def _reduced(self, by: np.ufunc) -> np.ndarray:
        """(F,), each feature's activations reduced by np.maximum or np.minimum; NaN without any."""
        found_F = np.full(self.codes.n_features, np.nan, dtype=np.float32)
        starts_F = self.codes.by_feature.indptr[:-1]
        is_alive_F = self.codes.count_F > 0
        if is_alive_F.any():
            found_F[is_alive_F] = by.reduceat(self.codes.by_feature.data, starts_F[is_alive_F])
        return found_F

    @cached_property
    def mean_F(self) -> t.Tensor:
        """(F,), the mean activation where selected; NaN for a feature that was never selected."""
        sum_F = t.from_numpy(self.codes.summed(self.codes.by_feature.data.astype(np.float64)))
        return (sum_F / self.count_F.where(self.alive_F, t.nan)).float()

    @cached_property
    def negative_F(self) -> t.Tensor:
        """(F,), the number of selections with an activation below 0, int64."""
        return t.from_numpy(self.codes.summed(self.codes.by_feature.data < 0)).long()

    @cached_property
    def bin_width_F(self) -> t.Tensor:
        """(F,), the width of the bins of each feature's histogram: the smallest power of two with which BINS of them reach
        beyond the largest magnitude."""
        size_F = self.max_F.abs()
        exponent_F = (size_F.clamp_min(1e-30).double() / BINS).log2().floor() + 1
        return t.where(size_F > 0, exponent_F.exp2().float(), 0.0)

    def histogram(self, feature: int) -> np.ndarray:
        """The number of a feature's selections in each bin: bin h has magnitudes from h to h + 1 times `bin_width_F`."""
        start, end = self.codes.by_feature.indptr[feature : feature + 2]
        size = np.abs(self.codes.by_feature.data[start:end])
        return np.bincount((size / self.bin_width_F[feature].numpy()).astype(int))

    @cached_property
    def top(self) -> FeatureContexts:
        """The contexts with each feature's largest activations, the largest first."""
        return FeatureContexts(self.codes, strongest_rows(self.codes, self._top), BEFORE, AFTER)

    @cached_property
    def sampled(self) -> FeatureContexts:
        """Contexts of selections drawn uniformly, without replacement, the largest activation first."""
        generator = t.Generator().manual_seed(self._seed)
        rows_FT = drawn_rows(self.codes, SAMPLED, generator)
        return FeatureContexts(self.codes, rows_FT, BEFORE, AFTER)

    @cached_property
    def ranking(self) -> list[int]:
        """The features that were selected. Those that fire most consistently on a single token come first, as they are the
        easiest to interpret.

        Those with fewer than LEAST_SELECTIONS selections come last. Of equal ones, the one whose firing rate is closest to
        three tokens in a thousand comes first.
        """
        tokens_FT = np.concatenate([self.top.ids_FT, self.sampled.ids_FT], 1)
        rate = self.firing_rate_F.tolist()
        is_rare = (self.count_F < LEAST_SELECTIONS).tolist()

        def key(feature: int) -> tuple[bool, float, float, int]:
            there = [token for token in tokens_FT[feature].tolist() if token >= 0]
            agreement = Counter(there).most_common(1)[0][1] / len(there)
            distance = abs(math.log(rate[feature] / 0.003))
            return is_rare[feature], -agreement, distance, feature

        return sorted(self.alive_F.nonzero().flatten().tolist(), key=key)
