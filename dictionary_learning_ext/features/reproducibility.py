"""Which features come back when an SAE is trained again, from another seed, in another order of the data.

SAEs may have different numbers of features. Then each feature of the smaller SAE has a match in the larger one. The rest of
the larger one's features have no match, so they don't come back.

Shapes: F features, G features of another SAE, D = activation_dim, S SAEs. All features count, dead ones included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import torch as t
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, issparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from sklearn.preprocessing import normalize

from ..errors import UserError
from ..evaluation.metrics import Number
from .directions import RandomDirections

AS_DIRECTION = "as a direction"
IN_FUNCTION = "in what they do"
"""The two ways in which features come back, as tables name them."""
RETURNING = (0.7, 0.9)
"""The least absolute cosine with its match for a feature to come back as a direction. The first one decides; tables show
both."""
EXACT_UP_TO = 4096
"""The most features of an SAE for which the assignment is exact."""
CANDIDATES = 64
"""How many candidates each feature has in the other dictionary where the assignment is not exact."""
NULL_ERROR = 0.001
"""Random dictionaries are drawn until their mean PW-MCC has a standard error below this."""
_MOST_DRAWS = 10_000
_ROWS_AT_ONCE = 1024


Vectors = Any
"""An ndarray or csr_matrix with a row for each feature. Products of two SAEs' rows are between -1 and 1, as of unit
vectors."""


class ReproducibilityError(UserError):
    """These SAEs can't be compared."""


DIRECTION_MEASURES = (
    Number(
        "pw_mcc",
        "PW-MCC",
        "mean absolute cosine of the decoder directions of matched features, matched one to one to maximise it",
    ),
    Number(
        "null",
        "null",
        "PW-MCC of random directions with the same covariance, averaged over draws until its standard error is below "
        f"{NULL_ERROR:g}",
    ),
    Number("null_error", "null's standard error", "standard error of the null"),
    Number("null_draws", "null's draws", "number of draws of the null", form=".0f"),
    Number("pw_mcc_less_null", "PW-MCC less null", "difference of the two"),
    Number("agreement", "agreement", "as PW-MCC with signed cosines, under its own matching"),
)
"""The measures of a pair's directions."""


@dataclass(frozen=True)
class Directions:
    """The decoder directions of one SAE."""

    unit_FD: np.ndarray
    """The directions, of length 1, float32."""

    @cached_property
    def random(self) -> RandomDirections:
        """Random directions with the same second moments."""
        return RandomDirections(t.from_numpy(self.unit_FD))


@dataclass(frozen=True)
class PairOfSAEs:
    """How the directions of two SAEs agree. Each measure is computed when it is first used."""

    match_F: np.ndarray
    """(F,), the absolute cosine of each feature of the first with its match in the second; 0 without a match."""
    matched_F: np.ndarray
    """(F,), the number of that match; -1 without one."""
    n_others: int
    """G, the features of the second."""
    dictionaries: tuple[Directions, Directions]
    seed: int = 0
    """Seeds the random directions."""

    @property
    def pw_mcc(self) -> float:
        """Mean absolute cosine of matched features, under the one-to-one assignment that maximises it (Song et al.
        2025). It is over as many pairs as the smaller has features."""
        return _mean_of_pairs(self.matched_F, self.match_F)

    @cached_property
    def _null(self) -> tuple[float, float, int]:
        a, b = self.dictionaries
        return null_of(a.random, b.random, self.seed)

    @property
    def null(self) -> float:
        """The PW-MCC of random directions with the sizes and covariances of these SAEs, the mean over some draws, see
        `null_of`."""
        return self._null[0]

    @property
    def null_error(self) -> float:
        """The standard error of `null`."""
        return self._null[1]

    @property
    def null_draws(self) -> int:
        """The number of draws for `null`."""
        return self._null[2]

    @cached_property
    def random_match_f(self) -> np.ndarray:
        """(f,), the absolute cosine of each matched pair, in one draw of random directions with these covariances."""
        a, b = self.dictionaries
        return _random_match(a.random, b.random, t.Generator().manual_seed(self.seed))

    @cached_property
    def mean_signed_cosine(self) -> float:
        """The mean signed cosine of features matched to maximise it."""
        a, b = self.dictionaries
        return _mean_of_pairs(*matching(a.unit_FD, b.unit_FD, signed=True))

    @cached_property
    def turned(self) -> tuple[np.ndarray, np.ndarray]:
        """matched_G and match_G: of the second's features, as `matched_F` and `match_F` of the first's."""
        return from_the_other(self.matched_F, self.match_F.astype(np.float64), self.n_others)

    @property
    def match_G(self) -> np.ndarray:
        """(G,), the absolute cosine of each feature of the second with its match in the first; 0 without a match."""
        return self.turned[1]

    @property
    def measures(self) -> dict[str, float]:
        """The DIRECTION_MEASURES by key, and the share of the smaller SAE's features that come back as a direction."""
        return {
            "pw_mcc": self.pw_mcc,
            "null": self.null,
            "null_error": self.null_error,
            "null_draws": self.null_draws,
            "pw_mcc_less_null": self.pw_mcc - self.null,
            "agreement": self.mean_signed_cosine,
            **{
                f"direction_{least:g}": _mean_of_pairs(self.matched_F, self.match_F >= least)
                for least in RETURNING
            },
        }


@dataclass(frozen=True, repr=False)
class Reproducibility:
    """How several SAEs agree."""

    pairs: dict[tuple[str, str], PairOfSAEs]
    """Every pair, by the two names in the order given."""
    dictionaries: dict[str, Directions]
    """The directions of each SAE."""

    @cached_property
    def within(self) -> dict[str, float]:
        """For each SAE, the mean over its features of the largest cosine with another of its features. An SAE whose
        directions cluster agrees more with any other."""
        return {name: within(dictionary.unit_FD) for name, dictionary in self.dictionaries.items()}

    @property
    def names(self) -> list[str]:
        return list(self.dictionaries)

    @property
    def random_share(self) -> float:
        """The share of random directions with these covariances that come back as a direction, the mean over pairs."""
        of_pairs = [pair.random_match_f >= RETURNING[0] for pair in self.pairs.values()]
        return float(np.mean([returns_f.mean() for returns_f in of_pairs]))

    @property
    def pair(self) -> PairOfSAEs:
        """The only pair, of two SAEs."""
        (pair,) = self.pairs.values()
        return pair

    def __repr__(self) -> str:
        lines = [
            f"{a} and {b}: PW-MCC {pair.pw_mcc:.4f} (null {pair.null:.4f} ± {pair.null_error:.4f})"
            for (a, b), pair in self.pairs.items()
        ]
        for name in self.names:
            shares = (
                f"{share:.1%} (cosine {least:g})"
                for least, share in self.as_direction(name).items()
            )
            lines.append(f"{name}: {' and '.join(shares)} come back as a direction")
        return "\n".join(lines)

    def as_direction(self, name: str) -> dict[float, float]:
        """The share of an SAE's features that come back as a direction, the mean over the other SAEs, by the least cosine
        in RETURNING. In an SAE of half its size, at most half of them do."""
        matches_SF = self._matches_SF(name)
        return {least: float(np.mean(matches_SF >= least)) for least in RETURNING}

    def share_as_direction(self, names: Sequence[str]) -> float:
        """The share of features that come back as a direction, the mean over some SAEs."""
        return fmean(self.as_direction(name)[RETURNING[0]] for name in names)

    def scores(self, name: str) -> "FeatureScores":
        """How well each feature of an SAE matches one of the others'."""
        matches_SF = self._matches_SF(name)
        returns_F = (matches_SF >= RETURNING[0]).sum(axis=0)
        pairs = [pair for names, pair in self.pairs.items() if name in names]
        random = float(np.mean([pair.random_match_f.mean() for pair in pairs]))
        matched = {other: self.matched(name, other) for other in self.names}
        return FeatureScores(matches_SF.mean(axis=0), returns_F, len(matches_SF), random, matched)

    def means(self) -> dict[str, float]:
        """The pairs' measures, averaged over the pairs.

        The mean null's standard error is at most the mean of theirs: they share random numbers.
        """
        measures = [pair.measures for pair in self.pairs.values()]
        return {
            name: float(np.mean([of_pair[name] for of_pair in measures])) for name in measures[0]
        }

    def _matches_SF(self, name: str) -> np.ndarray:
        """(S - 1, F), the absolute cosine of each feature of an SAE with its match in each other SAE."""
        return np.stack([self.matches(name, other) for other in self.names if other != name])

    def _matching(self, name: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """`matched` and `matches` of two different SAEs."""
        if (name, other) in self.pairs:
            pair = self.pairs[name, other]
            return pair.matched_F, pair.match_F
        return self.pairs[other, name].turned

    def matches(self, name: str, other: str) -> np.ndarray:
        """(F,), the absolute cosine of each feature of an SAE with its match in another; 0 without a match."""
        return self._matching(name, other)[1]

    def matched(self, name: str, other: str) -> np.ndarray:
        """(F,), the number in another SAE of each feature's match there; -1 without one, as in the SAE itself."""
        if name == other:
            return np.full(len(self.dictionaries[name].unit_FD), -1)
        return self._matching(name, other)[0]


@dataclass(frozen=True)
class FeatureScores:
    """How each feature of an SAE is matched in the other SAEs."""

    match_F: np.ndarray
    """(F,), the absolute cosine with its match, the mean over the other SAEs."""
    returns_F: np.ndarray
    """(F,), in how many of them the cosine is at least 0.7."""
    of: int
    """How many other SAEs there are."""
    random: float
    """The mean cosine of random directions with their matches."""
    matched: dict[str, np.ndarray]
    """(F,), the number of each feature's match in an SAE, by that SAE's name; -1 without one."""


def reproducibility(directions: Mapping[str, t.Tensor], seed: int = 0) -> Reproducibility:
    """Compare SAEs that were trained from different seeds.

    Arguments:
        directions: the decoder directions of two or more SAEs, (F, D) each, by their names, see
            `decoder_directions`. Their lengths do not matter, and F may differ.
        seed: seeds the random directions of the null. A pair's null does not depend on the other SAEs.

    Raises: ReproducibilityError if there is only one SAE, or D differs.
    """
    first, *others = directions
    if not others:
        raise ReproducibilityError(
            f"{first}: expected two or more SAEs, trained from different seeds"
        )
    for name in others:
        width, other_width = directions[first].shape[1], directions[name].shape[1]
        if width != other_width:
            raise ReproducibilityError(
                f"{name} has features of {other_width} dimensions, {first} of {width}: expected the same number"
            )
    unit: dict[str, Any] = {
        name: normalize(vectors.detach().float().cpu().numpy())
        for name, vectors in directions.items()
    }
    dictionaries = {name: Directions(vectors) for name, vectors in unit.items()}
    pairs = {}
    for a, b in combinations(unit, 2):
        matched_F, match_F = matching(unit[a], unit[b], signed=False)
        both = dictionaries[a], dictionaries[b]
        pairs[a, b] = PairOfSAEs(match_F, matched_F, len(unit[b]), both, seed)
    return Reproducibility(pairs, dictionaries)


def _mean_of_pairs(matched_F: np.ndarray, match_F: np.ndarray) -> float:
    """The mean over the features that have a match."""
    return float(match_F[matched_F >= 0].mean())


def null_of(a: RandomDirections, b: RandomDirections, seed: int) -> tuple[float, float, int]:
    """The PW-MCC of random directions, averaged over draws until its standard error is below NULL_ERROR.

    The standard deviation of a draw is estimated twice: from the spread of its F matches, as if they were independent, and
    from the spread of the draws. The larger estimate counts. The first is 0.9 to 1.6 times the true one, for F from 16 to
    1,024 and spectra from flat to steep. So one draw is enough for 16,384 features; 128 features take 18 to 60 draws.

    Returns: the mean, its standard error, and the number of draws.
    """
    generator = t.Generator().manual_seed(seed)
    means, variances = [], []
    error = np.inf
    while error >= NULL_ERROR and len(means) < _MOST_DRAWS:
        match_f = _random_match(a, b, generator)
        means.append(match_f.mean())
        variances.append(match_f.var() / len(match_f))
        draws_variance = np.var(means, ddof=1) if len(means) > 1 else 0.0
        error = float(np.sqrt(max(np.mean(variances), draws_variance) / len(means)))
    return float(np.mean(means)), error, len(means)


def _random_match(a: RandomDirections, b: RandomDirections, generator: t.Generator) -> np.ndarray:
    """(f,), the absolute cosine of each matched pair, in one draw of each."""
    draws = (dictionary.draw(generator).numpy() for dictionary in (a, b))
    matched_F, match_F = matching(*draws, signed=False)
    return match_F[matched_F >= 0]


def matching(
    unit_FD: Vectors, others_GD: Vectors, *, signed: bool, exact_up_to: int = EXACT_UP_TO
) -> tuple[np.ndarray, np.ndarray]:
    """Match the features of two SAEs one to one, to maximise their mean product, e.g. a cosine.

    All features of the smaller SAE have a match. For up to `exact_up_to` features the assignment is exact (scipy's). For
    more, it is the best among candidates: the 64 nearest of each feature in the other SAE, both ways. With 2,048 and 4,096
    random features, 30% of which come back, that gave the exact mean. 16,384 features took 12 seconds on two cores.

    Arguments:
        unit_FD, others_GD: a row for each feature, see `Vectors`.
        signed: maximise the products. Otherwise, their absolute values.

    Returns: for each feature of the first, (F,), the number of its match, and the product or its absolute value; -1 and 0
    without a match.
    """
    if unit_FD.shape[0] > others_GD.shape[0]:
        matched_G, match_G = matching(others_GD, unit_FD, signed=signed, exact_up_to=exact_up_to)
        return from_the_other(matched_G, match_G, unit_FD.shape[0])
    if others_GD.shape[0] <= exact_up_to:
        cosines_FG = _products(unit_FD, others_GD.T)
        values_FG = cosines_FG if signed else np.abs(cosines_FG)
        _, matched_F = linear_sum_assignment(values_FG, maximize=True)
    else:
        matched_F = _matched_among_candidates(unit_FD, others_GD, signed)
    match_F = products_of_each(unit_FD, others_GD[matched_F])
    return matched_F, match_F if signed else np.abs(match_F)


def from_the_other(
    matched_F: np.ndarray, match_F: np.ndarray, n_others: int
) -> tuple[np.ndarray, np.ndarray]:
    """A result of `matching` as the G features of the other SAE have it: the number of each one's match, and the product."""
    ours_P = np.flatnonzero(matched_F >= 0)
    matched_G, match_G = np.full(n_others, -1), np.zeros(n_others, dtype=match_F.dtype)
    matched_G[matched_F[ours_P]], match_G[matched_F[ours_P]] = ours_P, match_F[ours_P]
    return matched_G, match_G


def products_of_each(a_FD: Vectors, b_FD: Vectors) -> np.ndarray:
    """(F,), the product of each row of the first with that of the second."""
    if issparse(a_FD):
        return np.asarray(a_FD.multiply(b_FD).sum(axis=1)).ravel()
    return np.einsum("fd,fd->f", a_FD, b_FD)


def _products(rows_nD: Any, columns_DF: Any) -> np.ndarray:
    products = rows_nD @ columns_DF
    return products.toarray() if issparse(products) else products


def within(unit_FD: np.ndarray) -> float:
    """The mean over features of the largest cosine with another feature of the same SAE."""
    largest = []
    for start in range(0, len(unit_FD), _ROWS_AT_ONCE):
        cosines_nF = unit_FD[start : start + _ROWS_AT_ONCE] @ unit_FD.T
        np.fill_diagonal(cosines_nF[:, start:], -np.inf)
        largest.append(cosines_nF.max(axis=1))
    return float(np.concatenate(largest).mean())


def _matched_among_candidates(unit_FD: Vectors, others_GD: Vectors, signed: bool) -> np.ndarray:
    """(F,), the number of each feature's match, the best among the candidates. F is at most G."""
    sizes = n, n_others = unit_FD.shape[0], others_GD.shape[0]
    ours, theirs = _nearest(unit_FD, others_GD, signed), _nearest(others_GD, unit_FD, signed)
    rows = np.concatenate([ours[0], theirs[1]])
    columns = np.concatenate([ours[1], theirs[0]])
    values = np.concatenate([ours[2], theirs[2]])
    left, right = _left_over(rows, columns, values, sizes)
    # These make sure that a complete assignment exists among the candidates.
    rows, columns = np.concatenate([rows, left]), np.concatenate([columns, right])
    products = products_of_each(unit_FD[left], others_GD[right])
    values = np.concatenate([values, products if signed else np.abs(products)])
    _, first = np.unique(rows * n_others + columns, return_index=True)
    costs = 2.0 - values[first]  # above 0: a cost of 0 would count as no candidate
    graph = coo_matrix((costs, (rows[first], columns[first])), shape=sizes).tocsr()
    rows, columns = min_weight_full_bipartite_matching(graph)
    matched_F = np.empty(n, dtype=np.int64)
    matched_F[rows] = columns
    return matched_F


def _nearest(unit_FD: Vectors, others_FD: Vectors, signed: bool) -> tuple[Any, Any, Any]:
    """The candidates of each feature of the first: rows, columns and products, flat."""
    n = min(CANDIDATES, others_FD.shape[0])
    others_DF: Any = others_FD.T
    others_DF = others_DF.tocsr() if issparse(others_DF) else others_DF
    parts, generator = [], t.Generator().manual_seed(0)
    for start in range(0, unit_FD.shape[0], _ROWS_AT_ONCE):
        products_nF = _products(unit_FD[start : start + _ROWS_AT_ONCE], others_DF)
        values_nF = t.from_numpy(products_nF if signed else np.abs(products_nF))
        top = values_nF.topk(n, dim=1, sorted=False)
        # Vectors of zeros would all have the same candidates.
        zeros_n = ~values_nF.any(dim=1)
        anywhere = t.randint(others_FD.shape[0], (int(zeros_n.sum()), n), generator=generator)
        top.indices[zeros_n] = anywhere
        rows = np.repeat(np.arange(start, start + len(products_nF)), n)
        parts.append((rows, top.indices.numpy().ravel(), top.values.numpy().ravel()))
    rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, columns, values


def _left_over(
    rows: Any, columns: Any, values: Any, sizes: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The features of the first that a greedy assignment leaves without a match, each paired with one that is free."""
    is_free, is_untaken = (np.ones(n, dtype=bool) for n in sizes)
    for edge in np.argsort(-values, kind="stable"):
        if is_free[rows[edge]] and is_untaken[columns[edge]]:
            is_free[rows[edge]] = is_untaken[columns[edge]] = False
    left = np.flatnonzero(is_free)
    return left, np.flatnonzero(is_untaken)[: len(left)]
