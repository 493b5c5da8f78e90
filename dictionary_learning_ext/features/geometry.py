"""All features at once: a t-SNE map, clusters, how evenly they are used, where they point.

SAEs are compared on the same number of features each (`comparable_features`). Otherwise an SAE with
fewer live features would look more dispersed for that reason alone.

Shapes: N sampled tokens, n features chosen of F, D = activation_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

from ..config.checks import require_choice
from ..config.run import MapSpace
from ..errors import Template, UserError

LEAST_FEATURES = 12
_COMPONENTS = 50
_BOOTSTRAPS = 2000


class GeometryError(UserError):
    """There are not enough live features or sampled tokens for a map."""


@dataclass(frozen=True)
class Geometry:
    """Where n features of an SAE lie. The arrays are in the order of `features`."""

    features: np.ndarray
    """(n,), their numbers."""
    map_xy: np.ndarray
    """(n, 2), t-SNE."""
    cluster: np.ndarray
    """(n,), KMeans in the space that the map is made from. Cluster 1 is the largest."""
    map_cluster: np.ndarray
    """(n,), KMeans on the map (as in the paper)."""
    cosine_counts: np.ndarray
    """Pairs of features by the cosine of their decoder directions, in the bins below."""
    cosine_edges: np.ndarray
    """The edges of the bins."""
    dispersion: tuple[float, float, float]
    """Mean cosine distance from a decoder direction to the nearest other one, and the ends of its
    95% bootstrap interval over features."""
    evenness: float
    """exp(entropy of the features' shares of all selections) / n: 1 if all are used equally."""


def comparable_features(profiles: Sequence[Any], limit: int, seed: int = 0) -> list[np.ndarray]:
    """Live features of each SAE, the same number for all SAEs, drawn at random and sorted.

    Arguments:
        profiles: a scipy csr_matrix (N, F) for each SAE. A feature that is zero at all N tokens is
            not live.
        limit: the largest number of features per SAE.

    Raises: GeometryError if an SAE has fewer than `LEAST_FEATURES` of them or of tokens, or the limit is lower.
    """
    if limit < LEAST_FEATURES:
        expected = f"at least {LEAST_FEATURES} for a map"
        raise GeometryError(name="map_features", value=limit, expected=expected)
    live = [np.flatnonzero(profile.getnnz(axis=0)) for profile in profiles]
    n, n_tokens = min(limit, *(len(one) for one in live)), profiles[0].shape[0]
    if min(n, n_tokens) < LEAST_FEATURES:
        raise GeometryError(
            f"{n} features were selected in the {n_tokens} sampled tokens: expected at least "
            f"{LEAST_FEATURES} of each for a map",
            instead=Template("raise {map_tokens}"),
        )
    generator = np.random.default_rng(seed)
    return [np.sort(generator.choice(one, n, replace=False)) for one in live]


def geometry(
    profiles_NF: Any,
    directions_FD: np.ndarray,
    features: np.ndarray,
    *,
    space: MapSpace = "profiles",
    clusters: int = 10,
    seed: int = 0,
) -> Geometry:
    """The map, clusters and directions of some features. One seed always gives the same ones.

    Arguments:
        profiles_NF: activations at N tokens, a scipy csr_matrix.
        directions_FD: decoder directions.
        features: the features' numbers, see `comparable_features`.
        space: what the map and `cluster` are made from. "profiles" (the paper): a feature's
            activations at the N tokens, scaled to length 1. "directions": its decoder direction.
            Both are first reduced to 50 principal components.
        clusters: number of clusters, at most a third of the features.
    """
    require_choice("space", space, MapSpace)
    n = len(features)
    directions_nD: Any = normalize(directions_FD[features])
    if space == "profiles":
        points: Any = normalize(profiles_NF[:, features].T.tocsr())
        n_components = min(_COMPONENTS, *(size - 1 for size in points.shape))
        points = TruncatedSVD(n_components, random_state=seed).fit_transform(points)
    else:
        n_components = min(_COMPONENTS, *directions_nD.shape)
        points = PCA(n_components, random_state=seed).fit_transform(directions_nD)
    map_xy = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=seed).fit_transform(
        points
    )
    clusters = min(clusters, n // 3)
    cosines_nn = directions_nD @ directions_nD.T
    edges = np.linspace(-1, 1, 81)
    pairs = np.clip(cosines_nn[np.triu_indices(n, 1)], -1, 1)
    uses = np.asarray((profiles_NF[:, features] != 0).sum(axis=0)).ravel()
    return Geometry(
        features=features,
        map_xy=map_xy.astype(np.float64),
        cluster=_clusters(points, clusters, seed),
        map_cluster=_clusters(map_xy, clusters, seed),
        cosine_counts=np.histogram(pairs, edges)[0],
        cosine_edges=edges,
        dispersion=dispersion(cosines_nn, seed),
        evenness=evenness(uses),
    )


def dispersion(cosines_nn: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean cosine distance to the nearest other direction, and its 95% bootstrap interval.

    The bootstrap resamples the distances. Resampling the directions would make a feature that is
    drawn twice its own neighbour.
    """
    others_nn = cosines_nn - 3 * np.eye(len(cosines_nn))
    distance_n = 1 - others_nn.max(axis=1)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(distance_n), size=(_BOOTSTRAPS, len(distance_n)))
    low, high = np.quantile(distance_n[drawn].mean(axis=1), [0.025, 0.975])
    return float(distance_n.mean()), float(low), float(high)


def evenness(uses: np.ndarray) -> float:
    """The effective share of the features: exp(entropy of their shares of the uses) / n, 0 to 1."""
    shares = uses[uses > 0] / uses.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()) / len(uses))


def cosine_matrix(directions_nD: np.ndarray, cluster: np.ndarray, limit: int) -> np.ndarray:
    """Cosines between up to `limit` directions, spread evenly over the clusters in their order."""
    by_cluster = np.argsort(cluster, kind="stable")
    shown = by_cluster[np.linspace(0, len(by_cluster) - 1, min(limit, len(by_cluster))).astype(int)]
    unit: Any = normalize(directions_nD[shown])
    return unit @ unit.T


def _clusters(points: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """KMeans, with the clusters numbered from 1 by size, the largest first."""
    kmeans: Any = KMeans  # its annotations don't allow a number for n_init
    labels = kmeans(n_clusters, n_init=4, random_state=seed).fit_predict(points)
    by_size = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    return 1 + np.argsort(by_size)[labels]
