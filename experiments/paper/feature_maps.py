"""The paper's figures 8 to 11 and section 4.3 in numbers: largest activations, a t-SNE map of the features, its clusters,
cosines of decoder directions; and section 1.2's synthesised tokens.

Shapes: N tokens, F features, n of them on the map, D = activation_dim.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize

from dictionary_learning_ext import synthesise
from dictionary_learning_ext.evaluation.folders import open_folders
from experiments.trained_saes import directions_of

MAP_TOKENS, MAP_FEATURES, CLUSTERS = 20_000, 2048, 10
DRAWN, SYNTHESISED = 48, 8
"""Features in the matrix of cosines, and those of them for which tokens are synthesised."""
_COMPONENTS = 50


def measure(folders: Sequence[Path], seed: int) -> list[dict[str, Any]]:
    """The largest activation of every feature that fires, and the map of these features with 10 clusters, for each SAE.

    As the paper did: 20,000 tokens, KMeans on the map. Maps of one call have equally many features. Otherwise an
    SAE with fewer live features would look more dispersed for that reason alone.
    """
    codes = codes_of(folders)
    chosen = comparable_features(codes, MAP_FEATURES, seed)
    rows = []
    for folder, code_NF, features in zip(folders, codes, chosen, strict=True):
        count_F = code_NF.getnnz(axis=0)
        mean_F = np.asarray(code_NF.sum(axis=0)).ravel() / np.maximum(count_F, 1)
        used, mean = count_F[features] / code_NF.shape[0], mean_F[features]
        map_xy, labels = feature_map(code_NF, features, seed)
        members = [labels == c for c in range(labels.max() + 1)]
        directions_nD = directions_of(folder)[features]
        row = {
            "largest": np.round(largest(code_NF), 2).tolist(),
            "cluster_sizes": np.bincount(labels).tolist(),
            "cluster_utilisation": [float(used[own].mean()) for own in members],
            "cluster_activation": [float(mean[own].mean()) for own in members],
            "silhouette": float(silhouette_score(map_xy, labels)),
            "evenness": evenness(count_F[features]),
            "dispersion": dispersion(directions_nD @ directions_nD.T),
        }
        if seed == 0:  # what figures 10 and 11 show
            row["map"] = np.round(map_xy, 1).tolist()
            row["map_utilisation"] = np.round(used, 4).tolist()
            row["map_mean"] = np.round(mean, 2).tolist()
            row["map_cluster"] = labels.tolist()
            drawn = np.random.default_rng(0).permutation(len(features))[:DRAWN]
            by_cluster = drawn[np.argsort(labels[drawn], kind="stable")]
            cosines_nn = directions_nD[by_cluster] @ directions_nD[by_cluster].T
            row["cosines"] = np.round(100 * cosines_nn).astype(int).tolist()  # in percent
            row["synthesised"] = synthesised(folder, code_NF, features[drawn[:SYNTHESISED]])
        rows.append(row)
    return rows


def synthesised(folder: Path, code_NF: Any, features: np.ndarray) -> list[dict[str, Any]]:
    """Tokens synthesised for some features, beside their largest activations in the text."""
    largest_F = code_NF.max(axis=0).toarray().ravel()
    return [
        {
            "feature": found.feature,
            "text": found.text,
            "activation": round(found.activation, 2),
            "random": round(found.random, 2),
            "in_text": round(float(largest_F[found.feature]), 2),
        }
        for found in synthesise(str(folder), features.tolist())
    ]


def largest_of(folders: Sequence[Path]) -> list[list[float]]:
    """The largest activation of every feature that fires, of each SAE."""
    return [np.round(largest(code_NF), 2).tolist() for code_NF in codes_of(folders)]


def codes_of(folders: Sequence[Path]) -> list[Any]:
    """Each SAE's activations at the same held-out tokens, a csr_matrix (N, F) without stored zeros."""
    found = open_folders(folders, keep=False).codes(MAP_TOKENS)
    return [codes.to_scipy() for codes in found.values()]


def comparable_features(codes: Sequence[Any], limit: int, seed: int) -> list[np.ndarray]:
    """Features of each SAE that fire, the same number for all SAEs, drawn at random and sorted."""
    live = [np.flatnonzero(code_NF.getnnz(axis=0)) for code_NF in codes]
    n = min(limit, *(len(one) for one in live))
    generator = np.random.default_rng(seed)
    return [np.sort(generator.choice(one, n, replace=False)) for one in live]


def largest(code_NF: Any) -> np.ndarray:
    """The activation furthest from 0 of each feature that fires."""
    fires_F = code_NF.getnnz(axis=0) > 0
    highest_F = code_NF.max(axis=0).toarray().ravel()
    lowest_F = code_NF.min(axis=0).toarray().ravel()
    return np.where(highest_F >= -lowest_F, highest_F, lowest_F)[fires_F]


def feature_map(code_NF: Any, features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where features lie by their activations, and in which cluster of the map.

    The activations of a feature at the N tokens, scaled to length 1 and reduced to 50 principal components, are
    mapped by t-SNE.

    Returns:
        (n, 2), and (n,): cluster 0 is the largest.
    """
    points: Any = normalize(code_NF[:, features].T.tocsr())
    n_components = min(_COMPONENTS, *(size - 1 for size in points.shape))
    points = TruncatedSVD(n_components, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(features) - 1) / 3)
    map_xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    kmeans: Any = KMeans  # its annotations don't allow a number for n_init
    labels = kmeans(CLUSTERS, n_init=4, random_state=seed).fit_predict(map_xy)
    by_size = np.argsort(-np.bincount(labels, minlength=CLUSTERS), kind="stable")
    return map_xy.astype(np.float64), np.argsort(by_size)[labels]


def dispersion(cosines_nn: np.ndarray) -> float:
    """Mean cosine distance from a decoder direction to the nearest other one."""
    return float(np.mean(1 - (cosines_nn - 3 * np.eye(len(cosines_nn))).max(axis=1)))


def evenness(uses: np.ndarray) -> float:
    """The effective share of the features: exp(entropy of their shares of the uses) / n, 0 to 1."""
    shares = uses[uses > 0] / uses.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()) / len(uses))
