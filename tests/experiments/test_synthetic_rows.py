"""Rows have the distribution of SAELens's generator: a million of each are compared."""

import pytest
import torch as t

from experiments.ground_truth.synthetic import Sampler

pytestmark = pytest.mark.extra

synthetic = pytest.importorskip(
    "sae_lens.synthetic", reason="needs the extra: pip install -e '.[sae-lens]'"
)

T, D, PARTS, PART = 40, 16, 100, 10_000
TREES = {
    "total_root_nodes": 2,
    "branching_factor": 3,
    "max_depth": 2,
    "mutually_exclusive_portion": 0.6,
    "scale_children_by_parent": True,
}
NODES = {  # the first and the third aren't features
    "children": [
        {"feature_index": 3, "children": [{"feature_index": 9}, {"feature_index": 8}]},
        {"feature_index": 4},
        {
            "scale_children_by_parent": True,
            "mutually_exclusive_children": True,
            "children": [{"feature_index": 5}, {"feature_index": 6}],
        },
    ],
    "mutually_exclusive_children": True,
}
UNDER_A_FEATURE = {
    "feature_index": 7,
    "scale_children_by_parent": True,
    "mutually_exclusive_children": True,
    "children": [
        {"feature_index": 10, "scale_children_by_parent": True, "children": [{"feature_index": 0}]},
        {"feature_index": 11},
        {"scale_children_by_parent": True, "children": [{"feature_index": 12}]},
        {"children": [{"feature_index": 13}]},
    ],
}


def model_of(roots=None, **changes):
    """Magnitudes that a ReLU often cuts, and firings of which many are correlated by 0.2 and more."""
    config = {
        "num_features": T,
        "hidden_dim": D,
        "firing_probability": {
            "generator_name": "linear",
            "max_prob": 0.6,
            "min_prob": 0.02,
        },
        "hierarchy": TREES,
        "correlation": {"rank": 4, "correlation_scale": 0.3},
        "mean_firing_magnitudes": {"generator_name": "linear", "start": 2.0, "end": 1.0},
        "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 1.0},
        "bias": 1.0,
        "seed": 0,
    }
    hierarchy = roots and synthetic.Hierarchy.from_dict({"roots": roots})
    settings = synthetic.SyntheticModelConfig.from_dict(config | changes)
    return synthetic.SyntheticModel(settings, hierarchy=hierarchy)


def moments(draw):
    """For each part: how often each feature and each pair fires, and the means of magnitudes and their products."""
    found = []
    for part in range(PARTS):
        firing_BT = draw(part)
        fires_BT = (firing_BT > 0).float()
        upper = t.triu_indices(T, T)
        pairs = [(each.T @ each)[tuple(upper)] for each in (fires_BT, firing_BT)]
        found.append(t.cat([firing_BT.sum(0), *pairs]) / len(firing_BT))
    return t.stack(found).double()


def furthest(one, other):
    """The largest difference of their means, in standard errors."""
    variance = (one.var(0) + other.var(0)) / PARTS
    differs = (one.mean(0) - other.mean(0)).abs()
    assert (differs[variance == 0] == 0).all()
    return float((differs / variance.sqrt())[variance > 0].max())


def ours(model):
    sampler = Sampler(model)

    def draw(part):
        numbers = range(part * PART, (part + 1) * PART)
        x_BD, firing_BT = sampler.rows(1, numbers, with_firing=True)
        expected_BD = firing_BT @ sampler.vectors_TD + model.feature_dict.bias
        assert t.allclose(x_BD, expected_BD, atol=1e-4)
        return firing_BT

    return moments(draw)


def saelens(model):
    t.manual_seed(0)
    return moments(lambda part: model.sample_with_features(PART)[1])


@pytest.fixture(scope="module")
def reference():
    return saelens(model_of())


def test_a_million_rows_are_distributed_as_saelens(reference):
    assert furthest(ours(model_of()), reference) < 5


MODELS = {
    "neither trees nor correlation": dict(hierarchy=None, correlation=None),
    "certain and impossible features": dict(
        correlation=None,
        firing_probability={"generator_name": "linear", "max_prob": 1.0, "min_prob": 1e-9},
    ),
    "nodes that are no features": dict(roots=[NODES, UNDER_A_FEATURE]),
    "probabilities that make up for the trees": dict(
        hierarchy=TREES | {"compensate_probabilities": True}
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models_are_distributed_as_saelens(name):
    model = model_of(**MODELS[name])
    assert furthest(ours(model), saelens(model)) < 5
