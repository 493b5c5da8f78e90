"""Which features come back when an SAE is trained again, from another seed, in another order of the data.

    found = reproducibility({"a": …, "b": …})
    found.as_direction(), found.pairs["a", "b"].measures

Shapes: F features, D = activation_dim, S other SAEs. All features count, dead ones included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import torch as t
from sklearn.preprocessing import normalize

from ..codes.codes import Codes
from ..errors import ReproducibilityError
from .agreement import (
    NEAR_DEAD_KEY,
    RETURNING,
    RETURNING_COSINES,
    ComparedSAE,
    PairOfSAEs,
    mean_or_none,
    of_one_token,
    weight_share,
)

Numbers = dict[str, float | None]
"""How much comes back, by the keys of `agreement.SHOWN`, and the L0."""


@dataclass(frozen=True)
class FeatureScores:
    """How each feature of an SAE is matched in the other SAEs."""

    match_F: np.ndarray
    """(F,), the absolute cosine with its match by direction, the mean over the other SAEs."""
    returns_F: np.ndarray
    """(F,), in how many of them the cosine is at least 0.7."""
    of: int
    """How many other SAEs there are."""
    random: float
    """The mean cosine of random directions with their matches."""
    matched: dict[str, np.ndarray]
    """(F,), the number of each feature's match by direction in an SAE, by that SAE's name; -1 without one, as in itself."""
    correlation_F: np.ndarray | None
    """(F,), the correlation of its activations with those of its match in what they do, the mean over the other SAEs; None
    without codes."""
    function_in_F: np.ndarray | None
    """(F,), in how many of them that is at least 0.7."""


@dataclass(frozen=True, repr=False)
class Reproducibility:
    """Which features of several SAEs come back in the others. SAEs are known by their short names.

    Numbers of an SAE are means over its pairs. Without a name they are means over all SAEs and pairs.
    """

    saes: dict[str, ComparedSAE]
    pairs: dict[tuple[str, str], PairOfSAEs]
    """Every pair, by the two names in the order given."""
    notes: Sequence[str] = ()
    """Warnings: the settings that differ besides the seeds, and the seeds that are shared."""
    share_batches: bool = False
    """Whether two of the SAEs were trained on the same batches."""
    random_tokens: Numbers | None = None
    """How much of dictionaries of random tokens comes back; None if it isn't known."""

    @property
    def names(self) -> list[str]:
        return list(self.saes)

    @property
    def pair(self) -> PairOfSAEs:
        """The only pair, of two SAEs."""
        (pair,) = self.pairs.values()
        return pair

    @property
    def tokens(self) -> int:
        """The tokens on which codes were compared; 0 if only directions were."""
        codes = next(iter(self.saes.values())).codes
        return 0 if codes is None else codes.tokens

    @property
    def random_share(self) -> float:
        """The share of random directions with these covariances that come back as a direction, the mean over pairs."""
        of_pairs = [pair.random_cosine_f >= RETURNING for pair in self.pairs.values()]
        return float(np.mean([returns_f.mean() for returns_f in of_pairs]))

    def __repr__(self) -> str:
        lines = []
        for (a, b), pair in self.pairs.items():
            error = pair.measures["null_error"]
            null = f"null {pair.null:.4f} ± {error:.4f}"
            lines.append(f"{a} and {b}: PW-MCC {pair.pw_mcc:.4f} ({null})")
        for name in self.names:
            shares = [f"{self.as_direction(name, c):.1%} (cosine {c:g})" for c in RETURNING_COSINES]
            lines.append(f"{name}: {' and '.join(shares)} come back as a direction")
        return "\n".join(lines)

    def means(self) -> dict[str, float | None]:
        """The pairs' measures, averaged over the pairs.

        The mean null's standard error is at most the mean of theirs: they share random numbers.
        """
        measures = [pair.measures for pair in self.pairs.values()]
        return {key: mean_or_none([of_pair[key] for of_pair in measures]) for key in measures[0]}

    def numbers(self, name: str | None = None) -> Numbers:
        """An SAE's numbers in tables. What features do, and near-dead ones, aren't known without codes."""
        saes = [self.saes[one] for one in self._named(name)]
        pairs = [pair for names, pair in self.pairs.items() if name is None or name in names]
        fve = [
            own
            for names, pair in self.pairs.items()
            for of, own in zip(names, pair.fve, strict=True)
            if name in (None, of)
        ]
        return {
            "in_function_fve": mean_or_none(fve),
            "as_direction": self.as_direction(name),
            "in_function": mean_or_none([pair.in_function for pair in pairs]),
            **{
                key: mean_or_none([sae.numbers[key] for sae in saes])
                for key in (NEAR_DEAD_KEY, "fve", "l0")
            },
        }

    def as_direction(self, name: str | None = None, least: float = RETURNING) -> float:
        """The share of an SAE's features that come back as a direction: with a match of at least this absolute cosine. In an
        SAE of twice the size of the others, at most half of them do."""
        return fmean(float(np.mean(self._cosine_SF(one) >= least)) for one in self._named(name))

    def in_function(self, name: str | None = None) -> float | None:
        """The share of an SAE's features that come back in what they do. None without codes."""
        return self.numbers(name)["in_function"]

    def returning_fve(self, name: str | None = None) -> float | None:
        """The FVE of an SAE's features that come back in what they do, alone. None without codes."""
        return self.numbers(name)["in_function_fve"]

    def one_token(self, name: str) -> float | None:
        """Of an SAE's features that come back in what they do, the share of one token's kind. None without codes."""
        codes, correlation_SF = self.saes[name].codes, self._correlation_SF(name)
        if codes is None or correlation_SF is None:
            return None
        kind_F = of_one_token(codes)
        return fmean(weight_share(each_F >= RETURNING, kind_F) for each_F in correlation_SF)

    def scores(self, name: str) -> FeatureScores:
        """How well each feature of an SAE matches one of the others'."""
        cosine_SF, correlation_SF = self._cosine_SF(name), self._correlation_SF(name)
        matched = {other: pair.matched[place] for other, pair, place in self._others(name)}
        itself = {name: np.full(len(self.saes[name].unit_FD), -1)}
        return FeatureScores(
            cosine_SF.mean(axis=0),
            (cosine_SF >= RETURNING).sum(axis=0),
            len(cosine_SF),
            float(np.mean([pair.random_cosine_f.mean() for _, pair, _ in self._others(name)])),
            {one: (itself | matched)[one] for one in self.names},
            None if correlation_SF is None else correlation_SF.mean(axis=0),
            None if correlation_SF is None else (correlation_SF >= RETURNING).sum(axis=0),
        )

    def _named(self, name: str | None) -> list[str]:
        return self.names if name is None else [name]

    def _others(self, name: str) -> Iterator[tuple[str, PairOfSAEs, int]]:
        """Each other SAE, its pair with an SAE, and the latter's place in that."""
        for names, pair in self.pairs.items():
            if name in names:
                place = names.index(name)
                yield names[1 - place], pair, place

    def _cosine_SF(self, name: str) -> np.ndarray:
        """(S, F), the absolute cosine of each feature of an SAE with its match in each other SAE."""
        return np.stack([pair.cosines[place] for _, pair, place in self._others(name)])

    def _correlation_SF(self, name: str) -> np.ndarray | None:
        known = [(pair.correlations, place) for _, pair, place in self._others(name)]
        own = [both[place] for both, place in known if both is not None]
        return np.stack(own) if own else None


def reproducibility(
    directions: Mapping[str, t.Tensor],
    codes: Mapping[str, Codes] | None = None,
    *,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Reproducibility:
    """Compare SAEs that were trained from different seeds.

    Arguments:
        directions: the decoder directions of two or more SAEs, (F, D) each, by their names, see
            `decoder_directions`. Their lengths do not matter, and F may differ.
        codes: the codes of each SAE, all on the same tokens. None: only directions are compared.
        metrics: the content of metrics.json of each SAE, see `ComparedSAE`.
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
    codes, metrics, saes = codes or {}, metrics or {}, dict[str, ComparedSAE]()
    for name, vectors in directions.items():
        unit_FD: Any = normalize(vectors.detach().float().cpu().numpy())
        saes[name] = ComparedSAE(unit_FD, codes.get(name), metrics.get(name, {}))
    pairs = {(a, b): PairOfSAEs.of(saes[a], saes[b], seed) for a, b in combinations(saes, 2)}
    return Reproducibility(saes, pairs)
