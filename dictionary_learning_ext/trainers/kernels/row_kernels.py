"""The loops over rows behind `compiled.py`, compiled for CPUs by numba.

Each row is read once, and all work on it is done while it is in cache.

The K largest are found with a threshold instead of a sort. The first guess is the previous row's threshold. A
vectorised loop counts the numbers above it, and the guess is narrowed until K are left. If ties prevent that, the
tied number is searched among the next smaller ones, and finally by quickselect.

Noise is counter-based: each row has its own random stream, so results depend neither on the number of threads nor
on how rows are divided among them. splitmix64 (Steele, Lea and Flood 2014) gives 64 random bits, and each 16 of
them choose one of 65,536 equally likely values of N(0, 1). Their distribution function is within 2^-16 of the
normal one, their variance within 1e-5 of 1, and the largest is 4.4.

The functions take numpy arrays of float32, or of bfloat16 as uint16: a bfloat16 is the upper half of a
float32. Shapes: B rows, F features, K selected.
"""

import numpy as np
from numba import njit

_BOTH, _VALUES, _SELECTION = 1, 2, 3
NOISE_CODES = {None: 0, "both": _BOTH, "values": _VALUES, "selection": _SELECTION}
"""`noise_on` as a number; see `step.Draw`."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_INF = np.float32(np.inf)
_INF_BITS = np.int32(0x7F800000)
_LOWEST = np.float32(np.finfo(np.float32).min)
_MOST_TRIES, _MOST_STALLED, _MOST_TIES = 24, 4, 4


@njit(nogil=True, cache=True)
def draw_rows(
    products_BF,
    bias_F,
    std,
    noise_on,
    noise_scale,
    values_of_normal,
    key,
    first,
    k,
    indices_BK,
    values_BK,
    mu_BK,
    smallest_B,
    fired_F,
):
    """Select each row's K features and draw their values.

    The last five arguments are outputs: (B, K) int64, (B, K), (B, K), (B,) and (F,) bool.

    Arguments:
        products_BF: W_enc (x - b_dec); float32, or bfloat16 as uint16.
        bias_F: b_enc. The means are the sum of both.
        std: the noise's standard deviation before `noise_scale`.
        noise_on: one of `NOISE_CODES`.
        values_of_normal: 2^16 equally likely values of N(0, 1).
        key: 64 bits that seed the noise.
        first: the first row's position in the batch.
        smallest_B, fired_F: see `compiled.DrawnCode`.
    """
    n_features = len(bias_F)
    is_bf16 = products_BF.itemsize == 2
    bits_F = np.empty(n_features, np.uint32)
    mu_F = bits_F.view(np.float32)
    noisy_F, work = np.empty(n_features, np.float32), np.empty(n_features, np.float32)
    places = np.empty(n_features + 1, np.int32)
    guess, mean_guess = np.float32(0.5), np.float32(0.5)
    std = noise_scale * std
    for row in range(len(products_BF)):
        if is_bf16:
            for j in range(n_features):
                bits_F[j] = np.uint32(products_BF[row, j]) << np.uint32(16)
            for j in range(n_features):
                mu_F[j] += bias_F[j]
        else:
            for j in range(n_features):
                mu_F[j] = products_BF[row, j] + bias_F[j]
        row_key = mixed(key ^ mixed(np.uint64(first + row + 1) * GOLDEN))
        if noise_on in (_BOTH, _SELECTION):
            _add_noise(mu_F, std, values_of_normal, row_key, noisy_F)
            guess = _largest(noisy_F, k, guess, places, work)
            for i in range(k):
                mean = mu_F[places[i]]
                indices_BK[row, i] = places[i]
                mu_BK[row, i] = mean
                values_BK[row, i] = mean if noise_on == _SELECTION else noisy_F[places[i]]
            threshold, n_equal = _threshold(mu_F, k, mean_guess, work)
            mean_guess = max(threshold, _LOWEST)
            smallest_B[row] = _fire(mu_F, threshold, n_equal > 0, fired_F)
        else:
            guess = _largest(mu_F, k, guess, places, work)
            smallest = _INF
            for i in range(k):
                mean = mu_F[places[i]]
                indices_BK[row, i] = places[i]
                mu_BK[row, i] = mean
                values_BK[row, i] = mean
                fired_F[places[i]] |= noise_on != _VALUES or mean != 0
                if mean > 0:
                    smallest = min(smallest, mean)
            smallest_B[row] = smallest
            if noise_on == _VALUES:
                for i in range(k):
                    bits = mixed(row_key + np.uint64(i + 1) * GOLDEN)
                    noise = values_of_normal[np.int64(bits >> np.uint64(48))]
                    values_BK[row, i] += noise * std


# --- the B K largest of a batch, whose rows share them. Each function takes some of its rows.


@njit(nogil=True, cache=True)
def count_by_rank(
    products_BF,
    bias_F,
    std,
    values_of_normal,
    key,
    first,
    mu_BF,
    keys_BF,
    key_counts,
    mu_counts,
):
    """Write the means and the keys: the means with noise, if there is any. Count each by its `_rank`. NaN becomes infinite.

    The last four arguments are outputs: (B, F) twice, and (65,536,) uint32 twice. Without noise, the first two are the
    same array, and the last has no use. For the others see `draw_rows`.
    """
    n_features = len(bias_F)
    is_bf16 = products_BF.itemsize == 2
    bits_F = np.empty(n_features, np.uint32)
    wide_F = bits_F.view(np.float32)
    for row in range(len(products_BF)):
        if is_bf16:
            for j in range(n_features):
                bits_F[j] = np.uint32(products_BF[row, j]) << np.uint32(16)
        else:
            for j in range(n_features):
                wide_F[j] = products_BF[row, j]
        mu_F, keys_F = mu_BF[row], keys_BF[row]
        for j in range(n_features):
            mean = wide_F[j] + bias_F[j]
            mu_F[j] = mean if mean == mean else _INF
        if std != 0:
            row_key = mixed(key ^ mixed(np.uint64(first + row + 1) * GOLDEN))
            _add_noise(mu_F, std, values_of_normal, row_key, keys_F)
            _count(mu_F, mu_counts)
        _count(keys_F, key_counts)


@njit(inline="always")
def _count(x_F, counts):
    bits_F = x_F.view(np.int32)
    for j in range(len(bits_F)):
        counts[_rank(bits_F[j])] += np.uint32(1)


@njit(inline="always")
def _rank(bits):
    """The upper half of a float's bits, as a number that is ordered like the floats: 0 to 65,535."""
    upper = np.int64(bits >> np.int32(16)) & np.int64(0xFFFF)
    return upper ^ np.int64(0xFFFF) if bits < 0 else upper ^ np.int64(0x8000)


@njit(nogil=True, cache=True)
def rank_of_largest(counts_NR, wanted, above_N):
    """The rank of the largest number `wanted`, by the counts of N blocks of rows.

    Arguments:
        above_N: output: how many numbers of each block have a higher rank.

    Returns: the rank, and how many of it are among the largest.
    """
    n_blocks, rank = counts_NR.shape
    missing = wanted
    while True:
        rank -= 1
        n = np.int64(0)
        for i in range(n_blocks):
            n += counts_NR[i, rank]
        if n >= missing:
            return rank, missing
        missing -= n
        for i in range(n_blocks):
            above_N[i] += counts_NR[i, rank]


@njit(nogil=True, cache=True)
def collect_rank(x_BF, rank, found_M):
    """Write the numbers of one rank, in their order, to an array that has as many places."""
    bits_N = x_BF.reshape(-1).view(np.int32)
    x_N, n = x_BF.reshape(-1), 0
    for i in range(len(bits_N)):
        if _rank(bits_N[i]) == rank:
            found_M[n] = x_N[i]
            n += 1


@njit(nogil=True, cache=True)
def take_above(keys_BF, mu_BF, threshold, n_equal, first, indices_M, rows_M, keys_M, mu_M):
    """Write what exceeds a threshold, and the first `n_equal` of what equals it: features, rows, keys and means.

    Arguments:
        first: the first row's position in the batch.
    """
    places, n = np.empty(keys_BF.shape[1] + 1, np.int32), 0
    for row in range(len(keys_BF)):
        keys_F, m = keys_BF[row], 0
        for j in range(len(keys_F)):
            is_equal = keys_F[j] == threshold and n_equal > 0
            n_equal -= np.int64(is_equal)
            places[m] = j
            m += np.int64(is_equal or keys_F[j] > threshold)
        for i in range(m):
            indices_M[n], rows_M[n] = places[i], first + row
            keys_M[n], mu_M[n] = keys_F[places[i]], mu_BF[row, places[i]]
            n += 1


@njit(nogil=True, cache=True)
def fire_from(mu_BF, threshold, fired_F):
    """Mark the features with a positive mean of at least this threshold."""
    for row in range(len(mu_BF)):
        for j in range(len(fired_F)):
            fired_F[j] |= (mu_BF[row, j] >= threshold) & (mu_BF[row, j] > 0)


@njit(nogil=True, cache=True)
def group_by_feature(features_N, k, order_N, rows_N, starts_F):
    """Sort the positions in flattened (B, K) indices by feature, with a stable counting sort.

    The last three arguments are outputs: the sorted positions, their rows, and each feature's first position.
    """
    starts_F[:] = 0
    for feature in features_N:
        starts_F[feature] += 1
    n = 0
    for feature in range(len(starts_F)):
        starts_F[feature], n = n, n + starts_F[feature]
    free_F = starts_F.copy()
    for place in range(len(features_N)):
        at = free_F[features_N[place]]
        order_N[at], rows_N[at] = place, place // k
        free_F[features_N[place]] += 1


@njit(inline="always")
def mixed(word):
    """splitmix64's output function."""
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


@njit(inline="always")
def _add_noise(mu_F, std, values_of_normal, key, out_F):
    for word in range((len(mu_F) + 3) // 4):
        bits = mixed(key + np.uint64(word + 1) * GOLDEN)
        for part in range(4):
            j = 4 * word + part
            if j < len(mu_F):
                chosen = np.int64((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF))
                out_F[j] = mu_F[j] + values_of_normal[chosen] * std


@njit(inline="always")
def _largest(row_F, k, guess, places, work):
    """Write the positions of the K largest to the front of `places`, in the row's order.

    Among equal numbers the first are taken. NaN ranks highest.

    Returns: this row's threshold, the first guess for the next row's.
    """
    threshold, n_equal = _threshold(row_F, k, guess, work)
    n = 0
    if n_equal == 0:
        for j in range(len(row_F)):
            places[n] = j
            n += np.int64(not (row_F[j] <= threshold))
    else:
        for j in range(len(row_F)):
            is_equal = row_F[j] == threshold and n_equal > 0
            n_equal -= np.int64(is_equal)
            places[n] = j
            n += np.int64(is_equal or not (row_F[j] <= threshold))
    return max(threshold, _LOWEST)


@njit(inline="always")
def _threshold(row_F, k, guess, work):
    """Find a threshold that separates a row's K largest numbers from the others. NaN ranks highest.

    Returns: a threshold that only the K largest are above, and 0. Where the K-th largest is tied with others: itself, and
    how many of those equal to it are among the K.

    Throughout, n_low >= K numbers are above `low` and n_high < K above `high`, so the K-th largest is above
    `low`, and at most `high`.
    """
    low, high = -_INF, _INF
    n_low, n_high = len(row_F), 0
    step = np.float32(0)
    stalled = 0
    for attempt in range(_MOST_TRIES):
        n = np.int64(_n_above(row_F, guess))
        if n == k:
            return guess, 0
        is_open = low == -_INF or high == _INF
        stalled = stalled + 1 if n in (n_low, n_high) and not is_open else 0
        if n > k:
            low, n_low = guess, n
        else:
            high, n_high = guess, n
        if low == -_INF or high == _INF:  # one side is open: walk, further each time
            step = max(np.float32(2) * step, np.float32(0.1) * abs(guess), np.float32(1e-6))
            following = guess + step if n > k else guess - step
        elif stalled or attempt % 4 == 3:
            following = np.float32(0.5) * (low + high)
        else:  # on the line between the two counts, but not too near to an end
            share = np.float32(n_low - k) / np.float32(n_low - n_high)
            share = min(max(share, np.float32(0.05)), np.float32(0.95))
            following = low + share * (high - low)
        if stalled == _MOST_STALLED or following == guess or not (low < following < high):
            break
        guess = following
    return _among_ties(row_F, k, high, work)


@njit(inline="always")
def _n_above(row_F, threshold):
    n = np.int32(0)
    for j in range(len(row_F)):
        n += np.int32(not (row_F[j] <= threshold))
    return n


@njit(nogil=True, cache=True)
def _among_ties(row_F, k, high, work):
    """`_threshold`, given that the K-th largest is at most `high`: tries the next smaller numbers, then quickselect."""
    tied = -_INF
    for number in row_F:
        if tied < number <= high:
            tied = number
    for _ in range(_MOST_TIES):
        n = 0
        for number in row_F:
            n += np.int64(not (number < tied))
        if n >= k:
            return tied, max(k - np.int64(_n_above(row_F, tied)), 0)
        following = -_INF
        for number in row_F:
            if following < number < tied:
                following = number
        tied = following
    for j in range(len(row_F)):
        work[j] = row_F[j] if row_F[j] == row_F[j] else _INF
    _bring_forward(work, len(work), k)
    kth = _INF
    for i in range(k):
        kth = min(kth, work[i])
    return kth, max(k - np.int64(_n_above(row_F, kth)), 0)


@njit(inline="always")
def _bring_forward(keys, n, k):
    """Hoare's quickselect: move the K largest of the first n keys to the front."""
    left, right = 0, n - 1
    while left < right:
        a, b, c = keys[left], keys[(left + right) // 2], keys[right]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = left, right
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            right = j
        elif k - 1 >= i:
            left = i
        else:
            break


@njit(inline="always")
def _fire(mu_F, threshold, with_equal, fired_F):
    """Mark the features whose means are nonzero and above a threshold (or equal to it).

    Returns: the smallest positive mean among them; inf if none is positive.
    """
    if with_equal:
        for j in range(len(mu_F)):
            fired_F[j] |= (mu_F[j] >= threshold) & (mu_F[j] != 0)
    else:
        for j in range(len(mu_F)):
            fired_F[j] |= (mu_F[j] > threshold) & (mu_F[j] != 0)
    # The bits of positive floats are ordered like the floats, and loops over integers are vectorised.
    bits_F = mu_F.view(np.int32)
    found = np.empty(1, np.float32)
    found[0] = max(np.float32(0), threshold)  # 0 in place of -0
    least = found.view(np.int32)[0]
    if threshold <= 0 or not with_equal:
        least += np.int32(1)
    smallest = _INF_BITS
    for j in range(len(bits_F)):
        smallest = min(smallest, bits_F[j] if bits_F[j] >= least else _INF_BITS)
    found.view(np.int32)[0] = smallest
    return found[0]
