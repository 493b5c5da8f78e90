"""From signals and the share of other seeds in which a feature returns to the coefficients of the score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dictionary_learning_ext.features.return_score import Fit, design, ranks

WORTH = 0.01
"""A set of signals is small enough if its AUC is at most this below that of all."""


@dataclass(frozen=True)
class Labelled:
    """One SAE of the fit."""

    arm: str
    seed: int
    signals: dict[str, np.ndarray]
    returns_SF: np.ndarray
    """(S, F), whether each feature's match in each of the S other SAEs has a cosine of at least 0.7."""

    def auc(self, order_F: np.ndarray) -> float:
        """Of an order of the features, averaged over the other SAEs; those that have none come last."""
        return auc(order_F, self.returns_SF)


def auc(order_F: np.ndarray, returns_SF: np.ndarray) -> float:
    """The AUC of an order, averaged over the labels of several other SAEs. NaN in the order comes last."""
    lowest = np.nanmin(order_F) - 1
    order_F = np.where(np.isnan(order_F), lowest, order_F)
    return float(np.mean([roc_auc_score(returns_F, order_F) for returns_F in returns_SF]))


def fit(saes: Sequence[Labelled], names: Sequence[str]) -> Fit:
    """A logistic regression on these signals. A feature counts once, its label is a share: that of the other SAEs
    in which it returns."""
    parts, shares = [], []
    for sae in saes:
        rows_FS = design(ranks(sae.signals), list(names))
        there_F = np.isfinite(rows_FS).all(axis=1)
        parts.append(rows_FS[there_F])
        shares.append(sae.returns_SF.mean(axis=0)[there_F])
    rows, share = np.concatenate(parts), np.concatenate(shares)
    labels = np.repeat([1, 0], len(rows))
    regression = LogisticRegression(C=10.0, max_iter=5000, tol=1e-7)
    regression.fit(np.concatenate([rows, rows]), labels, np.concatenate([share, 1 - share]))
    coefficients = [round(each, 3) for each in regression.coef_[0].tolist()]
    n = len(names)
    rank, square = coefficients[:n], coefficients[n:]
    return Fit(dict(zip(names, rank, strict=True)), dict(zip(names, square, strict=True)))


def crossvalidated(saes: Sequence[Labelled], names: Sequence[str]) -> dict[str, float]:
    """Each arm's mean AUC on two seeds, of a fit on the others; over all such pairs of seeds."""
    seeds = sorted({sae.seed for sae in saes})
    found: dict[str, list[float]] = {sae.arm: [] for sae in saes}
    for held_out in (seeds[i : i + 2] for i in range(0, len(seeds), 2)):
        fitted = fit([sae for sae in saes if sae.seed not in held_out], names)
        for sae in saes:
            if sae.seed in held_out:
                found[sae.arm].append(sae.auc(fitted.log_odds(ranks(sae.signals))))
    return {arm: float(np.mean(each)) for arm, each in found.items()}


class Step(NamedTuple):
    """A set of signals, and each arm's cross-validated AUC with it."""

    signals: list[str]
    auc: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.auc.values())))


def eliminated(saes: Sequence[Labelled], names: Sequence[str]) -> list[Step]:
    """All signals, and what is left after the one that costs the least AUC is left out, down to three."""
    path = [Step(list(names), crossvalidated(saes, names))]
    while len(path[-1].signals) > 3:
        without = [[n for n in path[-1].signals if n != name] for name in path[-1].signals]
        path.append(
            max((Step(left, crossvalidated(saes, left)) for left in without), key=lambda s: s.mean)
        )
    return path


def smallest(path: Sequence[Step]) -> list[str]:
    """The last set whose mean AUC is within WORTH of that of all signals."""
    return [step for step in path if step.mean >= path[0].mean - WORTH][-1].signals


def alone(saes: Sequence[Labelled]) -> dict[str, tuple[int, float]]:
    """Of one arm and each signal: whether it counts upwards (1) or downwards (-1), and its AUC by itself."""
    found = {}
    for name in saes[0].signals:
        value = float(np.mean([sae.auc(sae.signals[name]) for sae in saes]))
        found[name] = (1 if value >= 0.5 else -1, max(value, 1 - value))
    return found
