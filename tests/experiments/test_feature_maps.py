"""The paper's maps of features: planted clusters are found, and SAEs are compared on equally many features."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from experiments.paper import feature_maps

GROUPS, EACH, TOKENS = feature_maps.CLUSTERS, 12, 600


@pytest.fixture(scope="module")
def planted():
    """Features in as many groups as a map has clusters: those of a group fire on the same tokens."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(GROUPS), EACH)
    of_token = rng.integers(GROUPS, size=TOKENS)
    is_on = (of_token[:, None] == groups) & (rng.random((TOKENS, len(groups))) < 0.8)
    return groups, csr_matrix(is_on * (1 + rng.random(is_on.shape)))


def test_planted_groups_are_clusters_of_the_map(planted):
    groups, code = planted
    map_xy, labels = feature_maps.feature_map(code, np.arange(len(groups)), seed=0)
    assert len(set(zip(groups.tolist(), labels.tolist(), strict=True))) == GROUPS
    distances = np.linalg.norm(map_xy[:, None] - map_xy[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(1)] == groups).all()


def test_saes_are_compared_on_equally_many_features_that_fire(planted):
    _, code = planted
    fewer = code.tolil()
    fewer[:, :20] = 0
    chosen = feature_maps.comparable_features([code, csr_matrix(fewer)], 1000, seed=0)
    assert [len(one) for one in chosen] == [100, 100]
    assert chosen[1].tolist() == list(range(20, 120))
    assert len(feature_maps.comparable_features([code], 17, seed=0)[0]) == 17


def test_the_largest_activation_is_the_furthest_from_0():
    code = csr_matrix(np.array([[1.0, 0, -3, 0], [2, 0, 1, -1]]))
    assert feature_maps.largest(code).tolist() == [2, -3, -1]


def test_dispersion_is_the_mean_distance_to_the_nearest_other():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(30, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest = [max(a @ b for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    assert feature_maps.dispersion(unit @ unit.T) == pytest.approx(1 - np.mean(nearest))


def test_evenness_is_an_effective_share():
    assert feature_maps.evenness(np.full(8, 5)) == pytest.approx(1)
    assert feature_maps.evenness(np.array([3, 3, 0, 0])) == pytest.approx(1 / 2)
