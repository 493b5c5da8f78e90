"""Histograms of each feature's activations, whose range need not be known beforehand.

Shapes: F features, H bins, M activations.
"""

import torch as t
from einops import reduce

_NO_EXPONENT = -1000


class GrowingHistograms:
    """Counts of positive values in H bins per feature. A bin's width is a power of two.

    A value beyond a feature's last bin doubles the width of its bins, and neighbouring bins are
    merged. So the counts are those that the final widths would have given from the start.
    """

    def __init__(self, n_features: int, bins: int):
        self.counts_FH = t.zeros(n_features, bins, dtype=t.long)
        self._exponent_F = t.full((n_features,), _NO_EXPONENT, dtype=t.long)

    @property
    def width_F(self) -> t.Tensor:
        """The width of each feature's bins; 0 before its first positive value."""
        return t.where(self._exponent_F == _NO_EXPONENT, 0.0, t.exp2(self._exponent_F.float()))

    def add(self, feature_M: t.Tensor, value_M: t.Tensor, max_F: t.Tensor) -> None:
        """Count values.

        Arguments:
            feature_M: the feature of each value.
            value_M: the values. Those of 0 and below are not counted.
            max_F: each feature's largest value until now, these included.
        """
        bins = self.counts_FH.shape[1]
        # bins * 2^e > max: the largest value is in a bin, not on the last edge.
        needed_F = (max_F.clamp_min(1e-30).double() / bins).log2().floor().long() + 1
        needed_F = t.where(max_F > 0, needed_F, _NO_EXPONENT)
        is_new_F = self._exponent_F == _NO_EXPONENT
        shift_F = t.where(is_new_F, 0, needed_F - self._exponent_F)
        self._exponent_F = t.maximum(self._exponent_F, needed_F)
        while (grows_F := shift_F > 0).any():
            merged = reduce(self.counts_FH[grows_F], "f (h pair) -> f h", "sum", pair=2)
            self.counts_FH[grows_F] = t.nn.functional.pad(merged, (0, bins - merged.shape[1]))
            shift_F -= 1
        is_positive_M = value_M > 0
        feature_M, value_M = feature_M[is_positive_M], value_M[is_positive_M]
        bin_M = (value_M / self.width_F[feature_M]).long()
        flat = self.counts_FH.view(-1)
        flat.index_add_(0, feature_M * bins + bin_M, t.ones_like(bin_M))
