"""Maps, clusters and dispersion: planted structure is found, and everything repeats."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from dictionary_learning_ext.errors import UserError
from dictionary_learning_ext.features.geometry import (
    GeometryError,
    comparable_features,
    cosine_matrix,
    dispersion,
    evenness,
    geometry,
)

GROUPS, EACH, TOKENS = 4, 15, 400


@pytest.fixture(scope="module")
def planted():
    """Features in four groups: those of a group fire on the same tokens and point alike."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(GROUPS), EACH)
    of_token = rng.integers(GROUPS, size=TOKENS)
    is_on = (of_token[:, None] == groups) & (rng.random((TOKENS, len(groups))) < 0.8)
    profiles = csr_matrix(is_on * (1 + rng.random(is_on.shape)))
    directions = np.eye(GROUPS, 8)[groups] + 0.1 * rng.normal(size=(len(groups), 8))
    return groups, profiles, directions


@pytest.mark.parametrize("space", ["profiles", "directions"])
def test_planted_groups_are_found_on_the_map_and_in_the_space(planted, space):
    groups, profiles, directions = planted
    features = np.arange(len(groups))
    found = geometry(profiles, directions, features, space=space, clusters=GROUPS)
    for cluster in (found.cluster, found.map_cluster):
        assert len({(int(a), int(b)) for a, b in zip(groups, cluster, strict=True)}) == GROUPS
    distances = np.linalg.norm(found.map_xy[:, None] - found.map_xy[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(1)] == groups).all()


@pytest.fixture(scope="module")
def some(planted):
    """Some of the features, directions that partly point the opposite way, and the geometry of both."""
    _, profiles, directions = planted
    signed = directions * np.where(np.arange(len(directions)) % 2, 1, -1)[:, None]
    features = np.arange(5, 50, 3)
    return features, signed, geometry(profiles, signed, features)


def test_it_repeats_exactly_for_one_seed(planted, some):
    _, profiles, _ = planted
    features, signed, found = some
    again = geometry(profiles, signed, features)
    for name, value in vars(found).items():
        assert np.array_equal(value, getattr(again, name)), name


def test_its_numbers_are_of_its_features(planted, some):
    """Selections count, however strong they are; opposite directions are far apart."""
    _, profiles, _ = planted
    features, signed, found = some
    n = len(features)
    unit = signed[features] / np.linalg.norm(signed[features], axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(n, 1)]
    assert found.cosine_counts.sum() == n * (n - 1) // 2
    assert found.cosine_counts[60:].sum() == (pairs >= 0.5).sum() > 0
    assert found.dispersion == pytest.approx(dispersion(unit @ unit.T))
    used = (profiles.toarray()[:, features] != 0).sum(0)
    shares = used / used.sum()
    assert found.evenness == pytest.approx(np.exp(-(shares * np.log(shares)).sum()) / n)
    for cluster in (found.cluster, found.map_cluster):
        none, *sizes = np.bincount(cluster)
        assert none == 0, "numbered from 1, by size"
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == n // 3


def test_saes_are_compared_at_one_number_of_live_features(planted):
    _, profiles, _ = planted
    fewer = profiles.tolil()
    fewer[:, :20] = 0
    chosen = comparable_features([profiles, csr_matrix(fewer)], 1000)
    assert [len(one) for one in chosen] == [40, 40]
    assert chosen[1].tolist() == list(range(20, 60))
    again = comparable_features([profiles, csr_matrix(fewer)], 1000)
    assert chosen[0].tolist() == again[0].tolist()
    few, others = (comparable_features([profiles], 17, seed)[0].tolist() for seed in (0, 1))
    assert len(few) == len(others) == 17
    assert few != others


def test_dispersion_is_the_mean_distance_to_the_nearest_other():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(30, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest = [max(a @ b for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    mean, low, high = dispersion(unit @ unit.T)
    assert mean == pytest.approx(1 - np.mean(nearest))
    # A 95% interval of a mean is about four standard errors wide.
    error = np.std(nearest) / np.sqrt(30)
    assert low < mean < high
    assert high - low == pytest.approx(3.92 * error, rel=0.1)
    assert dispersion(np.eye(5)) == (1.0, 1.0, 1.0)


def test_evenness_is_an_effective_share():
    assert evenness(np.full(8, 5)) == pytest.approx(1)
    assert evenness(np.array([7, 0, 0, 0])) == pytest.approx(1 / 4)
    assert evenness(np.array([3, 3, 0, 0])) == pytest.approx(1 / 2)


def test_the_cosine_matrix_lies_cluster_by_cluster():
    directions = np.eye(2)[[0, 1, 0, 1]]
    matrix = cosine_matrix(directions, np.array([0, 1, 0, 1]), 10)
    assert np.array_equal(matrix, np.kron(np.eye(2), np.ones((2, 2))))
    assert cosine_matrix(directions, np.zeros(4, int), 3).shape == (3, 3)


def test_too_few_features_or_tokens_are_one_line(planted):
    _, profiles, directions = planted
    with pytest.raises(GeometryError, match=r"0 features .* 400 sampled"):
        comparable_features([profiles, csr_matrix(profiles.shape)], 100)
    with pytest.raises(GeometryError, match=r"map_features=5: .*12"):
        comparable_features([profiles], 5)
    with pytest.raises(GeometryError, match=r"3 sampled tokens: .* 12"):
        comparable_features([profiles[:3]], 100)
    with pytest.raises(UserError, match=r"space='pixels': .*profiles, directions"):
        geometry(profiles, directions, np.arange(60), space="pixels")
