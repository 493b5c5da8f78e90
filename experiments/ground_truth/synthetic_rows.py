"""Draws the rows of a synthetic model, compiled by numba.

They have the distribution of SAELens's `SyntheticModel`, at a fraction of its cost: features whose parent doesn't
fire are skipped, and only the directions of features that fire are summed.

A feature fires if w . common - bar exceeds a standard normal number of its own. `common` holds R standard normal
numbers that all features of a row share, so features with similar w fire together. Given `common`, a feature fires
with probability Phi(w . common - bar), so it is compared with a uniform number of 53 bits. A feature with a parent
is drawn only if the parent fires.

The random numbers of a row depend on the key of the stream and the row's number alone. So a row doesn't depend on
the batch or the thread that draws it.

Shapes: B rows, D = the width of a row, T true features, A of them without a parent, R = rank of the correlation,
G groups of siblings.
"""

import math

import numpy as np
from numba import njit

from dictionary_learning_ext.trainers.kernels.row_kernels import GOLDEN, mixed

_FIRES, _MAGNITUDE, _STAYS, _COMMON, _NOISE = (np.uint64(n) for n in range(5))
"""The purposes of random numbers, which are part of their seeds."""
_TURN, _TO_UNIT = 2 * math.pi, 2.0**-53
_REACH, _CELLS_PER_UNIT = 6, 128
_AT_MOST = np.array(
    [
        math.erfc((_REACH - (cell + 1) / _CELLS_PER_UNIT) / math.sqrt(2)) / 2
        for cell in range(2 * _REACH * _CELLS_PER_UNIT)
    ]
    + [1.0]
)
"""Phi at the upper ends of cells from -6 to 6. It decides most features without computing Phi."""


@njit(nogil=True, cache=True)
def draw_rows(
    key,
    first,
    vectors_TD,
    bias_D,
    noise_std,
    weights_TR,
    bar_T,
    mean_T,
    std_T,
    parentless_A,
    weights_RA,
    groups_T,
    members_G,
    excludes_G,
    scales_G,
    siblings,
    x_BD,
    firing_BT,
):
    """Draw rows into `x_BD`, and the magnitudes of the features that fire into `firing_BT`.

    Arguments:
        key: 64 bits that seed the stream.
        first: the number of the first row in the stream.
        weights_TR, bar_T: w and bar of each feature.
        mean_T, std_T: mean and standard deviation of a feature's magnitude, before a ReLU.
        parentless_A, weights_RA: the features that are in no group, and their w.
        groups_T: (T + 2), the index of each parent's first group; the first entry is for groups without a parent.
        members_G: (G + 1), the index of each group's first member in `siblings`.
        excludes_G: whether at most one feature of the group fires.
        scales_G: whether magnitudes are multiplied by the parent's magnitude divided by the parent's mean.
        firing_BT: zeros, or (0, T) to skip it.
    """
    n_features, rank = weights_TR.shape
    common_R, score_A = np.empty(rank, np.float32), np.empty(len(parentless_A), np.float32)
    fired, magnitude = np.empty(n_features, np.int64), np.empty(n_features, np.float32)
    for row in range(len(x_BD)):
        row_key = mixed(key ^ mixed(np.uint64(first + row + 1) * GOLDEN))
        for r in range(rank):
            common_R[r] = _normal(row_key, _COMMON, r)
        n = 0
        for a in range(len(parentless_A)):
            score_A[a] = -bar_T[parentless_A[a]]
        for r in range(rank):
            for a in range(len(parentless_A)):
                score_A[a] += weights_RA[r, a] * common_R[r]
        for a in range(len(parentless_A)):
            feature = parentless_A[a]
            if _fires(score_A[a], row_key, feature):
                magnitude[n] = _magnitude(mean_T, std_T, row_key, feature)
                fired[n] = feature
                n += np.int64(magnitude[n] > 0)
        at = -1  # the groups without a parent come first
        while at < n:  # n grows by the children that fire
            parent = fired[at] if at >= 0 else -1
            for group in range(groups_T[parent + 1], groups_T[parent + 2]):
                begin = n
                for feature in siblings[members_G[group] : members_G[group + 1]]:
                    score = -bar_T[feature]
                    for r in range(rank):
                        score += weights_TR[feature, r] * common_R[r]
                    if _fires(score, row_key, feature):
                        magnitude[n] = _magnitude(mean_T, std_T, row_key, feature)
                        fired[n] = feature
                        n += np.int64(magnitude[n] > 0)
                if excludes_G[group] and n > begin + 1:
                    stays = begin + np.int64(_uniform(row_key, _STAYS, group) * (n - begin))
                    fired[begin], magnitude[begin] = fired[stays], magnitude[stays]
                    n = begin + 1
                if scales_G[group]:
                    for i in range(begin, n):
                        magnitude[i] *= magnitude[at] / mean_T[parent]
            at += 1
        x_D = x_BD[row]
        for d in range(len(x_D)):
            x_D[d] = bias_D[d]
        if noise_std > 0:
            for d in range(len(x_D)):
                x_D[d] += noise_std * _normal(row_key, _NOISE, d)
        for i in range(n):
            size, vector_D = magnitude[i], vectors_TD[fired[i]]
            for d in range(len(x_D)):
                x_D[d] += size * vector_D[d]
        if len(firing_BT):
            for i in range(n):
                firing_BT[row, fired[i]] = magnitude[i]


@njit(inline="always")
def _fires(score, row_key, feature):
    """Whether a number that is uniform on [0, 1) is below Phi(score)."""
    uniform = _uniform(row_key, _FIRES, feature)
    cell = np.int64((min(max(score, -_REACH), _REACH) + _REACH) * _CELLS_PER_UNIT)
    return uniform < _AT_MOST[cell] and uniform < math.erfc(-score / math.sqrt(2.0)) / 2


@njit(inline="always")
def _magnitude(mean_T, std_T, row_key, feature):
    return np.float32(mean_T[feature] + std_T[feature] * _normal(row_key, _MAGNITUDE, feature))


@njit(inline="always")
def _uniform(row_key, purpose, number):
    """One of the row's random numbers, uniform on [0, 1)."""
    bits = mixed(mixed(row_key + purpose) + np.uint64(number + 1) * GOLDEN)
    return (bits >> np.uint64(11)) * _TO_UNIT


@njit(inline="always")
def _normal(row_key, purpose, number):
    """One of the row's random numbers of N(0, 1), by Box and Muller's transform."""
    radius = math.sqrt(-2.0 * math.log(1.0 - _uniform(row_key, purpose, 2 * number)))
    return np.float32(radius * math.cos(_TURN * _uniform(row_key, purpose, 2 * number + 1)))
