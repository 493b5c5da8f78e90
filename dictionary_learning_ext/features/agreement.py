"""How two SAEs agree: in the directions of their features, and in what these do on the same tokens.

    pair = reproducibility({"a": …, "b": …}, codes={"a": …, "b": …}).pair
    pair.pw_mcc, pair.in_function

An SAE's *code* of a token is what its `encode` returns: the activation of each feature (of a vSAE, its mean). A feature is
*selected* where its activation is not zero.

SAEs may have different numbers of features. Then each feature of the smaller SAE has a match in the larger one. The rest of
the larger one's features have no match, so they don't come back.

Memory: a pair takes about 40 bytes for each selection of the two SAEs, and 20 bytes for each correlation: all F x F up to
EXACT_UP_TO features, and 1,024 rows at a time for more. With 16,384 features, k = 64 and 100,000 tokens, these are 0.5 GB
and 0.4 GB, and a pair takes a minute on one core.

Shapes: N tokens, F features, G features of another SAE, D = activation_dim. All features count, dead ones included.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import torch as t
from scipy.sparse import csr_matrix, diags, hstack
from torch.nn.functional import normalize

from ..codes.codes import KIND_OF, Codes
from ..evaluation.metrics import METRICS, Number, fve_of, is_near_dead
from .directions import RandomDirections
from .matching import (
    NULL_ERROR,
    from_the_other,
    matching,
    null_of,
    products_of_each,
    random_match,
    within,
)

AS_DIRECTION = "as a direction"
IN_FUNCTION = "in what they do"
"""The two ways in which features come back, as tables name them."""
RETURNING = 0.7
"""A feature comes back as a direction if its match has at least this absolute cosine, and in what it does if its activations
have at least this correlation with its match's."""
RETURNING_COSINES = (RETURNING, 0.9)
"""The least cosines at which tables show how many come back as a direction."""
NEAR_DEAD = 0.1
"""A feature selected in fewer than this times k/F of the tokens is near-dead."""
NEAR_DEAD_KEY = f"near_dead_{NEAR_DEAD:g}"
"""The metric's key."""

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


_FVE_OF_RETURNING = Number(
    "in_function_fve",
    "FVE of what comes back",
    "FVE of the reconstruction by those features alone that come back in what they do, with the decoder and its bias as "
    "trained; the mean over the two SAEs",
    form=".3f",
    better="higher",
)
_IN_FUNCTION = Number(
    "in_function",
    IN_FUNCTION,
    "share of all features, near-dead ones included, whose activations have a match in another seed: features are "
    "matched one to one by the correlation of their activations, and a pair counts from "
    f"{RETURNING:g}; the number of pairs over the mean of the two sizes",
    form=".1%",
    better="higher",
    title=f"Features that come back {IN_FUNCTION}",
)
CODE_MEASURES = (
    _FVE_OF_RETURNING,
    _IN_FUNCTION,
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
        f"least {RETURNING:g} with the activation of one of the text's first {KIND_OF:,} tokens, less the mean",
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
        for least in RETURNING_COSINES
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
    _FVE_OF_RETURNING,
    Number(
        "as_direction",
        AS_DIRECTION,
        "share of features that come back in another seed as a direction: their match there has an absolute cosine of "
        f"at least {RETURNING:g}",
        form=".1%",
        better="higher",
        title=f"Features that come back {AS_DIRECTION}",
    ),
    _IN_FUNCTION,
)
"""How much comes back, as tables show it: the FVE of what comes back, and the two shares of features."""
SHOWN = (*COME_BACK, METRICS[NEAR_DEAD_KEY], METRICS["fve"])
"""The columns of tables of what comes back."""


@dataclass(frozen=True)
class ComparedSAE:
    """What is compared of one SAE."""

    unit_FD: np.ndarray
    """The decoder directions, of length 1, float32."""
    codes: Codes | None = None
    """Its codes on the text; None if only directions are compared."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The content of metrics.json, for its FVE and L0 where its codes aren't known; empty if it isn't known."""

    @cached_property
    def random(self) -> RandomDirections:
        """Random directions with the same second moments."""
        return RandomDirections(t.from_numpy(self.unit_FD))

    @cached_property
    def within(self) -> float:
        """The mean over its features of the largest cosine with another of its features. An SAE whose directions cluster
        agrees more with any other."""
        return within(self.unit_FD)

    @cached_property
    def numbers(self) -> dict[str, float | None]:
        """Its share of near-dead features, its FVE and its L0."""
        if self.codes is None:
            return {NEAR_DEAD_KEY: None, **{key: self.metrics.get(key) for key in ("fve", "l0")}}
        return {
            NEAR_DEAD_KEY: 1 - float(is_used(self.codes).mean()),
            "fve": fve_of(self.codes),
            "l0": self.codes.totals.mean("l0"),
        }


@dataclass(frozen=True)
class PairOfSAEs:
    """How two SAEs agree. Each measure is computed when it is first used. What is known of the features of both is a pair of
    arrays, (F,) and (G,)."""

    saes: tuple[ComparedSAE, ComparedSAE]
    matched: tuple[np.ndarray, np.ndarray]
    """The number in the other SAE of each feature's match by direction; -1 without one."""
    cosines: tuple[np.ndarray, np.ndarray]
    """The absolute cosine of each feature with that match; 0 without one."""
    seed: int = 0
    """Seeds the random directions."""

    @classmethod
    def of(cls, a: ComparedSAE, b: ComparedSAE, seed: int) -> "PairOfSAEs":
        """Match the directions of two SAEs."""
        matched_F, cosine_F = matching(a.unit_FD, b.unit_FD, signed=False)
        turned = from_the_other(matched_F, cosine_F.astype(np.float64), len(b.unit_FD))
        return cls((a, b), (matched_F, turned[0]), (cosine_F, turned[1]), seed)

    @cached_property
    def correlations(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The result of `same_in_another`; None without codes."""
        a, b = (sae.codes for sae in self.saes)
        return None if a is None or b is None else same_in_another(a, b)

    @property
    def pw_mcc(self) -> float:
        """Mean absolute cosine of matched features, under the one-to-one assignment that maximises it (Song et al.
        2025). It is over as many pairs as the smaller has features."""
        return _mean_of_pairs(self.matched[0], self.cosines[0])

    @cached_property
    def _null(self) -> tuple[float, float, int]:
        a, b = self.saes
        return null_of(a.random, b.random, self.seed)

    @property
    def null(self) -> float:
        """The PW-MCC of random directions with the sizes and covariances of these SAEs, the mean over some draws, see
        `null_of`."""
        return self._null[0]

    @cached_property
    def random_cosine_f(self) -> np.ndarray:
        """(f,), the absolute cosine of each matched pair, in one draw of random directions with these covariances."""
        a, b = self.saes
        return random_match(a.random, b.random, t.Generator().manual_seed(self.seed))

    @cached_property
    def agreement(self) -> float:
        """The mean signed cosine of features matched to maximise it."""
        a, b = self.saes
        return _mean_of_pairs(*matching(a.unit_FD, b.unit_FD, signed=True))

    @property
    def in_function(self) -> float | None:
        """The share of features that come back in what they do: the number of features that match, over their mean number of
        features. None without codes."""
        if self.correlations is None:
            return None
        return float(np.mean(np.concatenate(self.correlations) >= RETURNING))

    @cached_property
    def fve(self) -> tuple[float | None, ...]:
        """The FVE of what comes back of each of the two; None without codes, or where the activations have no variance."""
        if self.correlations is None:
            return None, None
        return tuple(
            None if sae.codes is None else fve_of(sae.codes, correlation >= RETURNING)
            for sae, correlation in zip(self.saes, self.correlations, strict=True)
        )

    @cached_property
    def measures(self) -> dict[str, float | None]:
        """The DIRECTION_MEASURES and, with codes, the CODE_MEASURES by key, and the share of the smaller SAE's features that
        come back as a direction."""
        null, null_error, null_draws = self._null
        return {
            "pw_mcc": self.pw_mcc,
            "null": null,
            "null_error": null_error,
            "null_draws": null_draws,
            "pw_mcc_less_null": self.pw_mcc - null,
            "agreement": self.agreement,
            **{
                f"direction_{least:g}": _mean_of_pairs(self.matched[0], self.cosines[0] >= least)
                for least in RETURNING_COSINES
            },
            **self._of_codes(),
        }

    def _of_codes(self) -> dict[str, float | None]:
        """The CODE_MEASURES. All are symmetric in the two. Empty without codes.

        Correlations are Pearson's over all tokens, also those at which a feature is not selected, for all features of the
        smaller SAE. Shares that belong to features that come back are means over the two SAEs.
        """
        both = [sae.codes for sae in self.saes if sae.codes is not None]
        if (correlations := self.correlations) is None:
            return {}
        in_function = [correlation >= RETURNING for correlation in correlations]
        as_direction = {
            least: [cosine >= least for cosine in self.cosines] for least in RETURNING_COSINES
        }
        counts, energies = [one.count_F for one in both], [one.energy_F for one in both]
        used = [is_used(one) for one in both]
        first = as_direction[RETURNING]
        return {
            "in_function_fve": mean_or_none(self.fve),
            "in_function": self.in_function,
            "in_function_selections": _mean_share(counts, in_function),
            "in_function_energy": _mean_share(energies, in_function),
            "in_function_one_token": _mean_share(in_function, map(of_one_token, both)),
            "near_dead": 1 - float(np.mean([used_F.mean() for used_F in used])),
            "correlation": float(correlations[0].sum() / min(map(len, correlations))),
            "correlation_by_direction": _correlation_by_direction(
                both[0], both[1], self.matched[0]
            ),
            **{
                f"direction_{least:g}_not_near_dead": _mean_share(used, returns)
                for least, returns in as_direction.items()
            },
            "direction_selections": _mean_share(counts, first),
            "direction_energy": _mean_share(energies, first),
            "direction_fve": mean_or_none([fve_of(*one) for one in zip(both, first, strict=True)]),
            "jaccard": _jaccard(both[0].code_NF, both[1].code_NF, self.matched[0]),
        }


def _mean_of_pairs(matched_F: np.ndarray, match_F: np.ndarray) -> float:
    """The mean over the features that have a match."""
    return float(match_F[matched_F >= 0].mean())


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean; None unless all values are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def of_one_token(codes: Codes) -> np.ndarray:
    """Which features are of one token's kind, (F,)."""
    return codes.token_cosine_F >= RETURNING


def same_in_another(a: Codes, b: Codes) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of each feature's activations with those of its match in the other SAE, over all tokens: (F,), (G,).

    All features are matched one to one, to maximise the mean correlation. A feature that never fires or has no match has 0.
    """
    centred = _centred(a.code_NF), _centred(b.code_NF, sign=-1.0)
    matched_F, correlation_F = matching(*centred, signed=True)
    _, correlation_G = from_the_other(matched_F, correlation_F, b.n_features)
    return correlation_F, correlation_G


def _correlation_by_direction(a: Codes, b: Codes, matched_F: np.ndarray) -> float:
    """The mean correlation of the activations of features matched by direction, with the sign reversed for opposite ones."""
    ours_P = np.flatnonzero(matched_F >= 0)
    theirs_P = matched_F[ours_P]
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
    """`weight_share`, the mean over the two SAEs of a pair."""
    return float(np.mean([*map(weight_share, weights, is_in)]))


def weight_share(weights_F: np.ndarray, is_in_F: np.ndarray) -> float:
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
