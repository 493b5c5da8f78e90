"""What `selection.py` does to one row after another, compiled for CPUs by numba.

A row is read once, and everything is done while it is in cache.

The K largest are found by a threshold instead of a sort. The first guess is the threshold of the row
before. A vectorised loop counts the numbers above it, and the guess is narrowed until K are left. Where
ties do not allow that, a few more are left, and quickselect finds the K among them.

Noise is counter-based: every row has a stream of its own. So results depend neither on how rows are
divided among threads nor on the number of threads. splitmix64 (Steele, Lea and Flood 2014) gives 64
random bits. Each 16 of them choose one of 65,536 equally likely values of N(0, 1). The values'
distribution function is within 2^-16 of the normal one, their variance is within 1e-5 of 1, and the
largest is 4.4.

The functions take numpy arrays of float32, or of bfloat16 as uint16: a bfloat16 is the upper half of a
float32. Shapes: B rows, F features, K selected.
"""

import numpy as np
from numba import njit

NOISE_ON = {None: 0, "both": 1, "values": 2, "selection": 3}
"""Where noise acts, as a number; see `selection.draw_code`."""
_BOTH, _VALUES, _SELECTION = 1, 2, 3

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TINY = np.float32(np.finfo(np.float32).tiny)
_INF = np.float32(np.inf)
_LOWEST = np.float32(np.finfo(np.float32).min)
_MOST_TRIES = 24


@njit(nogil=True, cache=True)
def draw_rows(
    products_BF,
    bias_F,
    rectify,
    std_BF,
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
    kth_B,
    fired_F,
):
    """Select each row's K features and draw their values. The last six arguments are written.

    Arguments:
        products_BF: W_enc (x - b_dec); float32, or bfloat16 as uint16.
        bias_F: b_enc.
        rectify: whether a ReLU is applied to the sum of both, the means.
        noise_on: one of `NOISE_ON`.
        std_BF: the noise's standard deviation before `noise_scale`: (B, F), or (1, 1) for one value.
        values_of_normal: 2^16 equally likely values of N(0, 1).
        key: 64 bits that seed the noise.
        first: the number of the first row in the batch.
        smallest_B, fired_F: see `drawn_code.DrawnCode`.
        kth_B: the smallest of the numbers by which each row's features were selected.
    """
    n_features = len(bias_F)
    is_bf16 = products_BF.itemsize == 2
    bits_F = np.empty(n_features, np.uint32)
    mu_F = bits_F.view(np.float32)
    noisy_F = np.empty(n_features, np.float32)
    keys, work = np.empty(n_features + 1, np.float32), np.empty(n_features, np.float32)
    places = np.empty(n_features + 1, np.int32)
    guess, mean_guess = np.float32(0.5), np.float32(0.5)
    for row in range(len(products_BF)):
        if is_bf16:
            for j in range(n_features):
                bits_F[j] = np.uint32(products_BF[row, j]) << np.uint32(16)
            for j in range(n_features):
                mu_F[j] += bias_F[j]
        else:
            for j in range(n_features):
                mu_F[j] = products_BF[row, j] + bias_F[j]
        if rectify:
            for j in range(n_features):
                if mu_F[j] < 0:
                    mu_F[j] = np.float32(0)
        std_F = std_BF[row % len(std_BF)]
        row_key = _mixed(key ^ _mixed(np.uint64(first + row + 1) * _GOLDEN))
        if noise_on in (_BOTH, _SELECTION):
            _add_noise(mu_F, std_F, noise_scale, values_of_normal, row_key, noisy_F)
            kth_B[row], guess = _largest(noisy_F, k, guess, keys, places, work)
            for i in range(k):
                mean = mu_F[places[i]]
                indices_BK[row, i] = places[i]
                mu_BK[row, i] = mean
                values_BK[row, i] = mean if noise_on == _SELECTION else noisy_F[places[i]]
            kth, mean_guess = _kth_largest(mu_F, k, mean_guess, work)
            smallest_B[row] = _fire(mu_F, kth, fired_F)
        else:
            kth_B[row], guess = _largest(mu_F, k, guess, keys, places, work)
            smallest = _INF
            for i in range(k):
                mean = mu_F[places[i]]
                indices_BK[row, i] = places[i]
                mu_BK[row, i] = mean
                values_BK[row, i] = mean
                fired_F[places[i]] |= mean != 0
                if mean > 0:
                    smallest = min(smallest, mean)
            smallest_B[row] = smallest
            if noise_on == _VALUES:
                for i in range(k):
                    bits = _mixed(row_key + np.uint64(i + 1) * _GOLDEN)
                    noise = values_of_normal[np.int64(bits >> np.uint64(48))]
                    std = std_F[0] if len(std_F) == 1 else std_F[places[i]]
                    values_BK[row, i] += noise * (noise_scale * std)


@njit(inline="always")
def _mixed(word):
    """splitmix64's output function."""
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


@njit(inline="always")
def _add_noise(mu_F, std_F, scale, values_of_normal, key, out_F):
    has_one_std = len(std_F) == 1
    for word in range((len(mu_F) + 3) // 4):
        bits = _mixed(key + np.uint64(word + 1) * _GOLDEN)
        for part in range(4):
            j = 4 * word + part
            if j < len(mu_F):
                chosen = np.int64((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF))
                std = std_F[0] if has_one_std else std_F[j]
                out_F[j] = mu_F[j] + values_of_normal[chosen] * (scale * std)


@njit(inline="always")
def _largest(row_F, k, guess, keys, places, work):
    """Put the K largest and their places at the front of `keys` and `places`, in the row's order.

    Of equal numbers the first are taken. NaN counts as the largest; in `keys` it becomes inf. Returns
    the smallest of the K, and a guess for the next row.
    """
    threshold, n_above = _threshold(row_F, k, guess)
    n = 0
    if n_above == len(row_F):
        for j in range(len(row_F)):
            keys[j], places[j] = row_F[j], j
        n = len(row_F)
    else:
        for j in range(len(row_F)):
            keys[n], places[n] = row_F[j], j
            n += np.int64(not (row_F[j] <= threshold))
    for i in range(n):
        if keys[i] != keys[i]:
            keys[i] = _INF
    if n == k:
        return _smallest(keys[:k]), max(threshold, _LOWEST)
    kth = _kth_of(keys[:n], k, work)
    ties = k
    for i in range(n):
        ties -= np.int64(keys[i] > kth)
    n_kept = 0
    for i in range(n):
        is_kept = keys[i] > kth
        if keys[i] == kth and ties > 0:
            is_kept = True
            ties -= 1
        keys[n_kept], places[n_kept] = keys[i], places[i]
        n_kept += np.int64(is_kept)
    return kth, max(threshold, _LOWEST)


@njit(inline="always")
def _kth_largest(row_F, k, guess, work):
    """The K-th largest of a row, and a guess for the next row. NaN counts as inf."""
    threshold, n_above = _threshold(row_F, k, guess)
    if n_above == k and threshold > -_INF:
        return _smallest_above(row_F, threshold), threshold
    for j in range(len(row_F)):
        work[j] = row_F[j] if row_F[j] == row_F[j] else _INF
    return _kth_of(work, k, work), max(threshold, _LOWEST)


@njit(inline="always")
def _kth_of(numbers, k, work):
    """The K-th largest of numbers that are not NaN. `work` is overwritten; it may be `numbers`."""
    for i in range(len(numbers)):
        work[i] = numbers[i]
    _bring_forward(work, len(numbers), k)
    return _smallest(work[:k])


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _smallest(numbers):
    smallest = _INF
    for number in numbers:
        smallest = min(smallest, number)
    return smallest


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _smallest_above(row_F, threshold):
    smallest = _INF
    for number in row_F:
        smallest = min(smallest, number if number > threshold else _INF)
    return smallest


@njit(inline="always")
def _threshold(row_F, k, guess):
    """A number with K of the row above it, or more where it was not found, and how many these are.

    NaN counts as above. -inf, with all of the row, where none was found.
    """
    low, high = -_INF, _INF
    n_low, n_high = len(row_F), 0
    step = np.float32(0)
    for attempt in range(_MOST_TRIES):
        n = np.int32(0)
        for j in range(len(row_F)):
            n += np.int32(not (row_F[j] <= guess))
        if n >= k:
            low, n_low = guess, np.int64(n)
            if n == k:
                break
        else:
            high, n_high = guess, np.int64(n)
        if low == -_INF or high == _INF:  # one side is open: walk, further each time
            step = max(np.float32(2) * step, np.float32(0.03) * abs(guess), np.float32(1e-6))
            following = guess + step if n >= k else guess - step
        elif attempt % 4 == 3:
            following = np.float32(0.5) * (low + high)
        else:  # on the line between the two counts, but not too near to an end
            share = np.float32(n_low - k) / np.float32(n_low - n_high)
            share = min(max(share, np.float32(0.05)), np.float32(0.95))
            following = low + share * (high - low)
        if following == guess or not (low < following < high):
            break
        guess = following
    return low, n_low


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
def _fire(mu_F, kth, fired_F):
    """Mark the means that are at least the K-th largest, unless they are 0.

    Returns the smallest positive selected mean; inf if there is none.
    """
    least = kth if kth != 0 else _TINY
    for j in range(len(mu_F)):
        fired_F[j] |= mu_F[j] >= least
    if kth > 0:
        return kth
    smallest = _INF
    for j in range(len(mu_F)):
        if mu_F[j] > 0:
            smallest = min(smallest, mu_F[j])
    return smallest
