"""Statistics and contexts of an SAE's features on a text: `FeatureTable`, computed from `Codes`.

Shapes: F features. A feature's *strongest* or *largest* activations are those of the largest magnitude. They
keep their signs: some SAEs have negative activations, e.g. a vSAE without ReLU.
"""

import math
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
import torch as t

from .codes import Codes
from .contexts import FeatureContexts, Reading, drawn_rows, strongest_rows

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
    def _read(self) -> tuple[Reading, Any]:
        return self.codes.reading, self.codes.by_feature

    @cached_property
    def mean_F(self) -> t.Tensor:
        """(F,), the mean activation where selected; NaN for a feature that was never selected."""
        sum_F = self.codes.summed(self.codes.by_feature.data.astype(np.float64))
        count_F = self.codes.count_F
        return t.from_numpy(sum_F / np.where(count_F > 0, count_F, np.nan)).float()

    @cached_property
    def negative_F(self) -> t.Tensor:
        """(F,), the number of selections with an activation below 0, int64."""
        return t.from_numpy(self.codes.summed(self.codes.by_feature.data < 0)).long()

    @cached_property
    def bin_width_F(self) -> t.Tensor:
        """(F,), the width of the bins of each feature's histogram: the smallest power of two with which BINS of them reach
        beyond the largest magnitude."""
        size_F = self.codes.largest_F.abs()
        exponent_F = (size_F.clamp_min(1e-30).double() / BINS).log2().floor() + 1
        return t.where(size_F > 0, exponent_F.exp2().float(), 0.0)

    def histogram(self, feature: int) -> np.ndarray:
        """The number of a feature's selections in each bin: bin h has magnitudes from h to h + 1 times `bin_width_F`."""
        start, end = self.codes.by_feature.indptr[feature : feature + 2]
        size = np.abs(self.codes.by_feature.data[start:end])
        return np.bincount((size / self.bin_width_F[feature].numpy()).astype(int))

    @cached_property
    def strongest(self) -> FeatureContexts:
        """The contexts with each feature's largest activations, the largest first."""
        return FeatureContexts(*self._read, strongest_rows(*self._read, self._top))

    @cached_property
    def sampled(self) -> FeatureContexts:
        """Contexts of selections drawn uniformly, without replacement, the largest activation first."""
        generator = t.Generator().manual_seed(self._seed)
        code_NF, by_feature = self.codes.code_NF, self.codes.by_feature
        return FeatureContexts(*self._read, drawn_rows(code_NF, by_feature, SAMPLED, generator))

    @cached_property
    def ranking(self) -> list[int]:
        """The features that were selected. Those that fire most consistently on a single token come first, as they are the
        easiest to interpret.

        Those with fewer than LEAST_SELECTIONS selections come last. Of equal ones, the one whose firing rate is closest to
        three tokens in a thousand comes first.
        """
        tokens_FT = np.concatenate([self.strongest.ids_FT, self.sampled.ids_FT], 1)
        rate, count = self.codes.firing_rate_F.tolist(), self.codes.count_F.tolist()

        def key(feature: int) -> tuple[bool, float, float, int]:
            there = [token for token in tokens_FT[feature].tolist() if token >= 0]
            agreement = Counter(there).most_common(1)[0][1] / len(there)
            distance = abs(math.log(rate[feature] / 0.003))
            return count[feature] < LEAST_SELECTIONS, -agreement, distance, feature

        return sorted(np.flatnonzero(self.codes.count_F).tolist(), key=key)
