"""One-sided tests of paired differences, and their correction."""

import itertools

import numpy as np


def sign_flip(differences: list[float]) -> float:
    """One-sided p of a mean above 0: the share of all 2^n sign flips whose mean is as large."""
    values = np.array(differences)
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    means = (signs * values).mean(axis=1)
    return float((means >= values.mean() - 1e-12).mean())


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction."""
    corrected, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        corrected[name] = largest
    return corrected
