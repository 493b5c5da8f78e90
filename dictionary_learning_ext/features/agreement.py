"""How SAEs agree in what their features do on the same tokens, besides in their directions.

    result = AgreementOfCodes({"a": codes_a, "b": codes_b}, reproducibility({"a": …, "b": …}))
    result.in_function["a", "b"]

An SAE's *code* of a token is what its `encode` returns: the activation of each feature (of a vSAE, its mean). A feature is
*selected* where its activation is not zero.

Memory: a pair takes about 40 bytes for each selection of the two SAEs, and 20 bytes for each correlation: all F x F up to
EXACT_UP_TO features, and 1,024 rows at a time for more. With 16,384 features, k = 64 and 100,000 tokens, these are 0.5 GB
and 0.4 GB, and a pair takes a minute on one core.

Shapes: N tokens, F features, G features of another SAE.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags, hstack
from torch.nn.functional import normalize

from ..codes.codes import KIND_OF, Codes
from ..evaluation.metrics import METRICS, Number, fve_of, is_near_dead
from .reproducibility import (
    AS_DIRECTION,
    IN_FUNCTION,
    RETURNING,
    PairOfSAEs,
    Reproducibility,
    from_the_other,
    matching,
    products_of_each,
)

NEAR_DEAD = 0.1
"""A feature selected in fewer than this times k/F of the tokens is near-dead."""
NEAR_DEAD_KEY = f"near_dead_{NEAR_DEAD:g}"
"""The metric's key."""

CODE_MEASURES = (
    Number(
        "in_function_fve",
        "FVE of what comes back",
        "FVE of the reconstruction by those features alone that come back in what they do, with the decoder and its bias as "
        "trained; the mean over the two SAEs",
        form=".3f",
        better="higher",
    ),
    Number(
        "in_function",
        IN_FUNCTION,
        "share of all features, near-dead ones included, whose activations have a match in another seed: features are "
        "matched one to one by the correlation of their activations, and a pair counts from "
        f"{RETURNING[0]:g}; the number of pairs over the mean of the two sizes",
        form=".1%",
        better="higher",
        title=f"Features that come back {IN_FUNCTION}",
    ),
    Number(
        "in_function_selections",
        f"selections of these ({IN_FUNCTION})",
        "share of all selections that belong to features that come back in what they do",
        form=".1%",
    ),
    Number(
        "in_function_energy",
        f"energy of these ({IN_FUNCTION})",
        "share of the activation energy that belongs to features that come back in what they do",
        form=".1%",
    ),
    Number(
        "in_function_one_token",
        "of these, of one token's kind",
        "of the features that come back in what they do, the share of one token's kind: their direction has a cosine of at "
        f"least {RETURNING[0]:g} with the activation of one of the text's first {KIND_OF:,} tokens, less the mean",
        form=".1%",
    ),
    Number(
        "near_dead",
        METRICS[NEAR_DEAD_KEY].label,
        "share of features that are near-dead, the mean over the two SAEs: selected in fewer than "
        f"{NEAR_DEAD:g} k/F of the tokens",
        form=".1%",
    ),
    Number(
        "correlation",
        "correlation",
        "mean correlation over tokens of the activations of matched features, matched one to one to maximise it; as many "
        "pairs as the smaller SAE has features. A feature that never fires has 0",
    ),
    Number(
        "correlation_by_direction",
        "correlation by direction",
        "mean correlation of the activations of features matched by their decoder directions, with the sign reversed for "
        "opposite directions",
    ),
    *(
        Number(
            f"direction_{least:g}_not_near_dead",
            f"{AS_DIRECTION} (cosine {least:g}), not near-dead",
            f"of the features that are not near-dead, the share that comes back as a direction (absolute cosine of at "
            f"least {least:g})",
            form=".1%",
        )
        for least in RETURNING
    ),
    Number(
        "direction_selections",
        f"selections of these ({AS_DIRECTION})",
        "share of all selections that belong to features that come back as a direction",
        form=".1%",
    ),
    Number(
        "direction_energy",
        f"energy of these ({AS_DIRECTION})",
        "share of the activation energy, the sum of squared activations, that belongs to features that come back as a "
        "direction",
        form=".1%",
    ),
    Number(
        "direction_fve",
        f"FVE of these ({AS_DIRECTION})",
        "FVE of the reconstruction by those features alone that come back as a direction",
        form=".3f",
    ),
    Number(
        "jaccard",
        "Jaccard index",
        "mean over tokens of the Jaccard index of the sets of features that the two select, matched by direction: those "
        "that both select, as a share of those that either selects",
    ),
)
"""The measures of a pair's codes."""
COME_BACK = (
    CODE_MEASURES[0],
    Number(
        "as_direction",
        AS_DIRECTION,
        "share of features that come back in another seed as a direction: their match there has an absolute cosine of "
        f"at least {RETURNING[0]:g}",
        form=".1%",
        better="higher",
        title=f"Features that come back {AS_DIRECTION}",
    ),
    CODE_MEASURES[1],
)
"""How much comes back, as tables show it: the FVE of what comes back, and the two shares of features."""
SHOWN = (*COME_BACK, METRICS[NEAR_DEAD_KEY], METRICS["fve"])
"""The columns of tables of what comes back."""


@dataclass(frozen=True)
class AgreementOfCodes:
    """How the codes of several SAEs agree on the same tokens. Each measure is computed when it is first used."""

    codes: Mapping[str, Codes]
    """The codes of each SAE, by its name."""
    measured: Reproducibility
    """How their directions agree."""

    @property
    def tokens(self) -> int:
        """The number of tokens, N."""
        return next(iter(self.codes.values())).tokens

    @cached_property
    def correlations(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """The result of `same_in_another` for every pair, by the two names."""
        return {
            (a, b): same_in_another(self.codes[a], self.codes[b]) for a, b in self.measured.pairs
        }

    @property
    def in_function(self) -> dict[tuple[str, str], float]:
        """The share of features that come back in what they do, for every pair: the number of features that match, over their
        mean number of features."""
        return {
            names: float(np.mean(np.concatenate(both) >= RETURNING[0]))
            for names, both in self.correlations.items()
        }

    @cached_property
    def fve(self) -> dict[tuple[str, str], tuple[float | None, ...]]:
        """The FVE of what comes back of each SAE of every pair, by the two names; None where the activations have no variance."""
        return {
            names: tuple(
                fve_of(self.codes[name], correlation >= RETURNING[0])
                for name, correlation in zip(names, both, strict=True)
            )
            for names, both in self.correlations.items()
        }

    def one_token(self, name: str) -> float:
        """Of an SAE's features that come back in what they do, the share of one token's kind, the mean over its pairs."""
        kind_F = of_one_token(self.codes[name])
        returns_SF = self.correlation_SF(name) >= RETURNING[0]
        return fmean(_weight_share(returns_F, kind_F) for returns_F in returns_SF)

    def numbers(self, name: str | None = None) -> dict[str, float | None]:
        """An SAE's numbers in tables, by the keys of SHOWN, and its L0: means over its pairs. Default: means over all SAEs and
        pairs."""
        names = [*self.codes] if name is None else [name]
        codes = [self.codes[one] for one in names]
        pairs = self.fve.items()
        fve = [own for pair in pairs for of, own in zip(*pair, strict=True) if of in names]
        shares = self.in_function.items()
        return {
            "in_function_fve": mean_or_none(fve),
            "as_direction": self.measured.share_as_direction(names),
            "in_function": fmean(share for pair, share in shares if {*pair} & {*names}),
            NEAR_DEAD_KEY: fmean(1 - float(is_used(one).mean()) for one in codes),
            "fve": mean_or_none([fve_of(one) for one in codes]),
            "l0": mean_or_none([one.totals.mean("l0") for one in codes]),
        }

    @cached_property
    def pairs(self) -> dict[tuple[str, str], dict[str, float | None]]:
        """The CODE_MEASURES of every pair, by the two names, by key."""
        return {names: self._measures(*names) for names in self.measured.pairs}

    def _measures(self, a: str, b: str) -> dict[str, float | None]:
        """Every measure of a pair. All are symmetric in the two.

        Correlations are Pearson's over all tokens, also those at which a feature is not selected, for all features of the
        smaller SAE. Shares that belong to features that come back are means over the two SAEs.
        """
        both, pair = (self.codes[a], self.codes[b]), self.measured.pairs[a, b]
        correlations = self.correlations[a, b]
        in_function = [correlation >= RETURNING[0] for correlation in correlations]
        as_direction = {
            least: [match >= least for match in (pair.match_F, pair.match_G)] for least in RETURNING
        }
        counts, energies = [one.count_F for one in both], [one.energy_F for one in both]
        used = [is_used(one) for one in both]
        first = as_direction[RETURNING[0]]
        return {
            "in_function_fve": mean_or_none(self.fve[a, b]),
            "in_function": self.in_function[a, b],
            "in_function_selections": _mean_share(counts, in_function),
            "in_function_energy": _mean_share(energies, in_function),
            "in_function_one_token": _mean_share(in_function, map(of_one_token, both)),
            "near_dead": 1 - float(np.mean([used_F.mean() for used_F in used])),
            "correlation": float(correlations[0].sum() / min(map(len, correlations))),
            "correlation_by_direction": _correlation_by_direction(*both, pair),
            **{
                f"direction_{least:g}_not_near_dead": _mean_share(used, returns)
                for least, returns in as_direction.items()
            },
            "direction_selections": _mean_share(counts, first),
            "direction_energy": _mean_share(energies, first),
            "direction_fve": mean_or_none([fve_of(*one) for one in zip(both, first, strict=True)]),
            "jaccard": _jaccard(both[0].code_NF, both[1].code_NF, pair.matched_F),
        }

    def means(self) -> dict[str, float | None]:
        """The measures, averaged over the pairs."""
        measures = list(self.pairs.values())
        return {key: mean_or_none([of_pair[key] for of_pair in measures]) for key in measures[0]}

    def correlation_SF(self, name: str) -> np.ndarray:
        """(S, F), the correlation of the activations of each of an SAE's features with its match's, in each of S other SAEs."""
        pairs = self.correlations.items()
        return np.stack([both[names.index(name)] for names, both in pairs if name in names])


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean; None unless all values are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def of_one_token(codes: Codes) -> np.ndarray:
    """Which features are of one token's kind, (F,)."""
    return codes.token_cosine_F >= RETURNING[0]


def same_in_another(a: Codes, b: Codes) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of each feature's activations with those of its match in the other SAE, over all tokens: (F,), (G,).

    All features are matched one to one, to maximise the mean correlation. A feature that never fires or has no match has 0.
    """
    centred = _centred(a.code_NF), _centred(b.code_NF, sign=-1.0)
    matched_F, correlation_F = matching(*centred, signed=True)
    _, correlation_G = from_the_other(matched_F, correlation_F, b.n_features)
    return correlation_F, correlation_G


def _correlation_by_direction(a: Codes, b: Codes, pair: PairOfSAEs) -> float:
    """The mean correlation of the activations of features matched by direction, with the sign reversed for opposite ones."""
    ours_P = np.flatnonzero(pair.matched_F >= 0)
    theirs_P = pair.matched_F[ours_P]
    centred_F, others_G = _centred(a.code_NF), _centred(b.code_NF, sign=-1.0)
    correlation_P = products_of_each(centred_F[ours_P], others_G[theirs_P])
    units = normalize(a.directions_FD[ours_P]), normalize(b.directions_FD[theirs_P])
    signs_P = (units[0] * units[1]).sum(1).sign().numpy()
    return float((signs_P * correlation_P).mean())


def is_used(codes: Codes) -> np.ndarray:
    """Which features are not near-dead, (F,)."""
    return ~is_near_dead(codes.firing_rate_F, codes.k, NEAR_DEAD).cpu().numpy()


def _centred(code_NF: Any, sign: float = 1.0) -> Any:
    """A row for each feature. Its product with another SAE's row, made with the other sign, is the correlation of the two.

    The standardised activations are not sparse. But with activations f of mean m and standard deviation s,

        corr(f, g) = sum_N f g / (N s_f s_g) - (m_f / s_f) (m_g / s_g)

    which is one product of rows (f / (s_f sqrt N), +- m_f / s_f). A feature that does not vary has zeros.
    """
    n = code_NF.shape[0]
    code_NF = code_NF.astype(np.float64)
    means_F = np.asarray(code_NF.mean(axis=0)).ravel()
    squares_F = np.asarray(code_NF.power(2).mean(axis=0)).ravel()
    variances_F = squares_F - means_F**2
    varies_F = variances_F > 1e-12 * squares_F
    scales_F = np.where(varies_F, 1 / np.sqrt(np.where(varies_F, variances_F, 1.0)), 0.0)
    scaled_FN = (code_NF @ diags(scales_F / np.sqrt(n))).T
    return hstack([scaled_FN, csr_matrix(sign * means_F * scales_F).T], format="csr")


def _mean_share(weights: Iterable[np.ndarray], is_in: Iterable[np.ndarray]) -> float:
    """`_weight_share`, the mean over the two SAEs of a pair."""
    return float(np.mean([*map(_weight_share, weights, is_in)]))


def _weight_share(weights_F: np.ndarray, is_in_F: np.ndarray) -> float:
    """The share of the weights that belongs to some features; 0 if there is no weight."""
    total = weights_F.sum()
    return weights_F[is_in_F].sum() / total if total else 0.0


def _jaccard(a_NF: Any, b_NG: Any, matched_F: np.ndarray) -> float:
    """The mean Jaccard index over tokens at which either SAE selects a feature; 0 if there is none."""
    ours_P = np.flatnonzero(matched_F >= 0)
    theirs_P = matched_F[ours_P]
    both_NP = (a_NF[:, ours_P] != 0).multiply(b_NG[:, theirs_P] != 0)
    both_N = both_NP.getnnz(axis=1)
    either_N = a_NF.getnnz(axis=1) + b_NG.getnnz(axis=1) - both_N
    selects_N = either_N > 0
    return float((both_N[selects_N] / either_N[selects_N]).mean()) if selects_N.any() else 0.0
