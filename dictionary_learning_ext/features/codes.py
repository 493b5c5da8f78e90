"""How SAEs of several seeds agree in what they do on the same tokens, and not only in their directions.

    collectors = {name: CodeCollector(sae) for name, sae in saes.items()}
    for x_ND in batches:
        for collector in collectors.values():
            collector.add(x_ND)
    found = agreement_of_codes({name: each.codes() for name, each in collectors.items()}, measured)

An SAE's *code* of a token is what its `encode` returns: the activation of each feature (a vSAE's mean's).
A feature is *selected* where its activation is not zero.

Memory: 8 bytes for each selection of each SAE. A pair needs about 40 bytes more for each selection of the
two, and its correlations: all F x F at once (20 bytes each) up to EXACT_UP_TO features, and for more, 1,024
rows of them. With 16,384 features, k = 64 and 100,000 tokens, these are 50 MB an SAE, 0.5 GB and 0.4 GB. A
pair then takes a minute on one core.

Shapes: N tokens, F features, D = activation_dim.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from scipy.sparse import csr_matrix, diags, hstack, vstack
from torch.nn.functional import normalize

from ..evaluation.metrics import is_near_dead
from ..trainers.dictionaries import as_input, decoder_directions, k_of
from .collector import require_finite
from .reproducibility import (
    RETURNING,
    Measure,
    PairOfSAEs,
    Reproducibility,
    matching,
    products_of_each,
)

NEAR_DEAD = 0.1
"""A feature selected in fewer than this times k/F of the tokens is near-dead."""
_BATCH_ELEMENTS = 1 << 22
"""Activations (tokens x F) computed at a time."""


CODE_MEASURES = (
    Measure(
        "correlation",
        "correlation",
        ".4f",
        "mean correlation over tokens of the activations of two seeds' features. The features are "
        "matched one to one, so that it is as large as possible, as many pairs as the smaller SAE has. One that "
        "never fires has 0",
    ),
    *(
        Measure(
            f"correlation_{least:g}",
            f"correlation > {least:g}",
            ".1%",
            f"share of these pairs that have a correlation of at least {least:g}",
        )
        for least in RETURNING
    ),
    Measure(
        "same",
        "the same in another seed",
        ".1%",
        "share of features that do the same: of those that are not near-dead, matched one to one by the "
        f"correlation of their activations, the pairs of at least {RETURNING[0]:g}, over the mean of the two counts",
    ),
    Measure(
        "same_energy",
        "energy of the same",
        ".1%",
        "share of the activation energy that features that do the same carry",
    ),
    Measure(
        "correlation_by_direction",
        "correlation by direction",
        ".4f",
        "mean correlation of the activations of features matched by their decoder directions; of opposite "
        "directions, with the sign reversed",
    ),
    *(
        Measure(
            f"returning_{least:g}_not_near_dead",
            f"returning > {least:g}, not near-dead",
            ".1%",
            f"share that returns (absolute cosine of at least {least:g}) of the features that are not "
            f"near-dead: selected in at least {NEAR_DEAD:g} k/F of the tokens",
        )
        for least in RETURNING
    ),
    Measure(
        "returning_selections",
        "selections of returning",
        ".1%",
        "share of all selections that are of returning features",
    ),
    Measure(
        "returning_energy",
        "energy of returning",
        ".1%",
        "share of the activation energy, the sum of squared activations, that returning features carry",
    ),
    Measure(
        "jaccard",
        "Jaccard index",
        ".4f",
        "Jaccard index of the features that the two select at a token, matched by direction: how many "
        "both select, of those that either does; mean over tokens",
    ),
)
"""What tables show of a pair, see `measures_of_pair`."""


@dataclass(frozen=True)
class Codes:
    """What an SAE does on some tokens."""

    code_NF: Any
    """Its activations, a csr_matrix without stored zeros."""
    directions_FD: t.Tensor
    """What one unit of each feature adds to the reconstruction, on the CPU."""
    k: int | None
    """None for an SAE without one."""

    @cached_property
    def count_F(self) -> np.ndarray:
        """At how many tokens each feature is selected."""
        return self.code_NF.getnnz(axis=0)

    @cached_property
    def energy_F(self) -> np.ndarray:
        """Each feature's activation energy: the sum over tokens of its squared activation, in units of
        unit directions."""
        squares_F = np.asarray(self.code_NF.astype(np.float64).power(2).sum(axis=0)).ravel()
        return squares_F * self.directions_FD.double().square().sum(1).numpy()

    @cached_property
    def is_used_F(self) -> np.ndarray:
        """Which features are not near-dead."""
        frequency_F = t.from_numpy(self.count_F / self.code_NF.shape[0])
        return ~is_near_dead(frequency_F, self.k, NEAR_DEAD).numpy()

    @cached_property
    def unit_FD(self) -> t.Tensor:
        """The directions, of length 1."""
        return normalize(self.directions_FD.float(), dim=1)


class CodeCollector:
    """Collects the `Codes` of a dictionary that takes raw activations, batch by batch."""

    def __init__(self, dictionary: Dictionary):
        self.dictionary: Any = dictionary
        self._parts: list[csr_matrix] = []

    @t.no_grad()
    def add(self, x_ND: t.Tensor) -> None:
        """Add tokens. Raises NonFiniteError if the SAE's features are NaN or infinite."""
        sae, n_features = self.dictionary, self.dictionary.dict_size
        for x_nD in x_ND.split(max(1, _BATCH_ELEMENTS // n_features)):
            f_nF = sae.encode(as_input(sae, x_nD))
            row_M, feature_M = f_nF.nonzero(as_tuple=True)
            value_M = f_nF[row_M, feature_M].float().cpu()
            require_finite(value_M)
            places = row_M.int().cpu().numpy(), feature_M.int().cpu().numpy()
            self._parts.append(csr_matrix((value_M.numpy(), places), (len(x_nD), n_features)))

    def codes(self) -> Codes:
        """Of the tokens added until now."""
        code_NF = vstack(self._parts, format="csr")
        return Codes(code_NF, decoder_directions(self.dictionary), k_of(self.dictionary))


@dataclass(frozen=True)
class AgreementOfCodes:
    """How the codes of several SAEs agree."""

    tokens: int
    """N."""
    pairs: dict[tuple[str, str], dict[str, float | None]]
    """`measures_of_pair` of every pair, by the two names in the order given."""

    def means(self) -> dict[str, float | None]:
        """The measures, averaged over the pairs that have them."""
        measures = list(self.pairs.values())
        return {key: mean_of_known([one[key] for one in measures]) for key in measures[0]}


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def agreement_of_codes(codes: Mapping[str, Codes], measured: Reproducibility) -> AgreementOfCodes:
    """Compare the codes of SAEs on the same tokens.

    Arguments:
        codes: of each SAE, by its name.
        measured: how their directions agree.
    """
    pairs = {
        (a, b): measures_of_pair(codes[a], codes[b], pair)
        for (a, b), pair in measured.pairs.items()
    }
    return AgreementOfCodes(next(iter(codes.values())).code_NF.shape[0], pairs)


def measures_of_pair(a: Codes, b: Codes, pair: PairOfSAEs) -> dict[str, float | None]:
    """Every measure of CODE_MEASURES, by key. All are symmetric in the two.

    Correlations are Pearson's over all tokens, those included at which a feature is not selected. They
    are taken of all features of the smaller SAE. What is of returning features is the mean of the two SAEs.

    Arguments:
        pair: how the directions agree.
    """
    centred_F, others_G = _centred(a.code_NF), _centred(b.code_NF, sign=-1.0)
    matched_F, correlations_F = matching(centred_F, others_G, signed=True)
    same_F, same_G = (each >= RETURNING[0] for each in same_in_another(a, b))
    correlations_P = correlations_F[matched_F >= 0]
    ours_P = np.flatnonzero(pair.is_matched_F)
    theirs_P = pair.matched_F[ours_P]
    by_direction_P = products_of_each(centred_F[ours_P], others_G[theirs_P])
    signs_P = (a.unit_FD[ours_P] * b.unit_FD[theirs_P]).sum(1).sign().numpy()
    return {
        "correlation": float(correlations_P.mean()),
        **{
            f"correlation_{least:g}": float((correlations_P >= least).mean()) for least in RETURNING
        },
        "same": float(2 * same_F.sum() / max(1, a.is_used_F.sum() + b.is_used_F.sum())),
        "same_energy": float(np.mean([_part(a.energy_F, same_F), _part(b.energy_F, same_G)])),
        "correlation_by_direction": float((signs_P * by_direction_P).mean()),
        **{
            f"returning_{least:g}_not_near_dead": _share(a.is_used_F, b.is_used_F, least, pair)
            for least in RETURNING
        },
        "returning_selections": _share(a.count_F, b.count_F, RETURNING[0], pair),
        "returning_energy": _share(a.energy_F, b.energy_F, RETURNING[0], pair),
        "jaccard": _jaccard(a.code_NF, b.code_NF, pair.matched_F),
    }


def same_in_another(a: Codes, b: Codes) -> tuple[np.ndarray, np.ndarray]:
    """How much each feature does what its match in the other SAE does: (F,), (G,).

    The correlation over all tokens of their activations. Features that are not near-dead are matched one to one, so
    that it is as large as possible. A feature that is near-dead or has no match has 0.
    """
    found = np.zeros(a.code_NF.shape[1]), np.zeros(b.code_NF.shape[1])
    ours_f, theirs_g = np.flatnonzero(a.is_used_F), np.flatnonzero(b.is_used_F)
    if len(ours_f) and len(theirs_g):
        centred = _centred(a.code_NF[:, ours_f]), _centred(b.code_NF[:, theirs_g], sign=-1.0)
        matched_f, correlation_f = matching(*centred, signed=True)
        found[0][ours_f] = correlation_f
        found[1][theirs_g[matched_f[matched_f >= 0]]] = correlation_f[matched_f >= 0]
    return found


def _centred(code_NF: Any, sign: float = 1.0) -> Any:
    """A row for each feature. Its product with a row made with the other sign is their correlation.

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


def _share(a_F: np.ndarray, b_G: np.ndarray, least: float, pair: PairOfSAEs) -> float:
    """The share of these weights that returning features have, the mean of the two SAEs; of no weight 0."""
    both = (a_F, pair.match_F), (b_G, pair.match_G)
    return float(np.mean([_part(each, match >= least) for each, match in both]))


def _part(weights_F: np.ndarray, is_in_F: np.ndarray) -> float:
    """The share of these weights that some features have; of no weight 0."""
    total = weights_F.sum()
    return weights_F[is_in_F].sum() / total if total else 0.0


def _jaccard(a_NF: Any, b_NG: Any, matched_F: np.ndarray) -> float:
    """The mean over tokens at which either selects a feature; 0 if there is none."""
    ours_P = np.flatnonzero(matched_F >= 0)
    theirs_P = matched_F[ours_P]
    both_NP = (a_NF[:, ours_P] != 0).multiply(b_NG[:, theirs_P] != 0)
    both_N = both_NP.getnnz(axis=1)
    either_N = a_NF.getnnz(axis=1) + b_NG.getnnz(axis=1) - both_N
    selects_N = either_N > 0
    return float((both_N[selects_N] / either_N[selects_N]).mean()) if selects_N.any() else 0.0
