"""Rows of a synthetic model, and runs on them. A stand-in of a few features stands for SAELens's model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch as t
from interrupted_runs import sae_of, stopped_at

from dictionary_learning_ext.errors import Interrupted, LanguageModelError
from experiments.ground_truth.synthetic import SMALL, Sampler, Settings, SyntheticModel
from experiments.trained_saes import train_missing

VECTORS = t.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


def stand_in(vectors_TD=VECTORS, probability_T=None, std=0.3, noise_std=0.0):
    """Has what is read of SAELens's `SyntheticModel`."""
    features, width = vectors_TD.shape
    generator = SimpleNamespace(
        firing_probabilities=t.full((features,), 0.5) if probability_T is None else probability_T,
        low_rank_correlation=None,
        mean_firing_magnitudes=t.ones(features),
        std_firing_magnitudes=t.full((features,), std),
    )
    directions = SimpleNamespace(feature_vectors=vectors_TD, bias=t.zeros(width))
    drawn = SimpleNamespace(activation_generator=generator, feature_dict=directions, hierarchy=None)
    return SyntheticModel(drawn, noise_std, "hash")


def test_a_batch_is_made_of_the_features_that_fired():
    rows = stand_in().rows("train", 8)
    for _ in range(3):
        x_BD, firing_BT = next(rows), rows.firing_BT()
        assert (firing_BT > 0).any()
        assert t.allclose(x_BD, firing_BT @ VECTORS)


def test_noise_has_the_standard_deviation_that_is_given():
    rows = stand_in(noise_std=0.06).rows("train", 50_000)
    noise_BD = next(rows) - rows.firing_BT() @ VECTORS
    assert noise_BD.std() == pytest.approx(0.06, rel=0.02)
    assert noise_BD.mean() == pytest.approx(0, abs=0.001)
    assert t.corrcoef(noise_BD.T)[0, 1] == pytest.approx(0, abs=0.02)


def test_rare_features_fire_as_often_as_they_should():
    """Among 2^16 equally likely normal numbers, none would be this rare."""
    probability_T = t.tensor([5e-4, 1e-4, 1e-5, 3e-6])
    rows, n = stand_in(t.eye(4), probability_T, std=0.0).rows("train", 500_000), 4_000_000
    fired_T = sum(next(rows).sum(0) for _ in range(8))
    assert ((fired_T - n * probability_T).abs() < 3.4 * (n * probability_T).sqrt()).all(), fired_T


def test_a_row_depends_on_its_stream_and_number_alone():
    model, before = stand_in(), t.get_num_threads()
    try:
        t.set_num_threads(1)
        small = model.rows("train", 50)
        expected = t.cat([next(small) for _ in range(12)])
        t.set_num_threads(2)
        large = model.rows("train", 600)
        assert t.equal(next(large), expected)
    finally:
        t.set_num_threads(before)
    for other in (model.rows("train", 600, seed=1), model.rows("heldout", 600)):
        assert not t.allclose(next(other), expected)


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path, monkeypatch):
    model = stand_in(t.eye(16), noise_std=0.06)
    run = model.run(steps=60, batch_size=64, log_steps=7)
    saes = {"a": sae_of(), "b": sae_of("top_k")}
    finished = "ae.pt"
    train_missing(run, tmp_path / "whole", saes, finished, model.inputs)
    with monkeypatch.context() as patch:
        stopped_at(35, patch)
        with pytest.raises(Interrupted):
            train_missing(run, tmp_path / "run", saes, finished, model.inputs)
    with pytest.raises(LanguageModelError, match="has changed"):
        train_missing(run, tmp_path / "run", saes, finished, replace(model, hash="other").inputs)
    train_missing(run, tmp_path / "run", saes, finished, model.inputs)
    for path in (f"{name}/{file}" for name in saes for file in ("ae.pt", "metrics.jsonl")):
        assert (tmp_path / "run" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


@pytest.mark.extra
def test_directions_are_as_orthogonal_as_saelens_makes_them_and_kept(tmp_path):
    synthetic = pytest.importorskip("sae_lens.synthetic")
    few = {"num_features": 40, "hidden_dim": 16, "hierarchy": None}
    steps = {"orthogonalization": {"num_steps": 30, "lr": 1e-2, "chunk_size": 8}}
    settings = Settings("tiny", SMALL.config | few | steps)
    expected = synthetic.SyntheticModel(synthetic.SyntheticModelConfig.from_dict(settings.config))
    vectors_TD = expected.feature_dict.feature_vectors
    one, again = (SyntheticModel.of(settings, tmp_path) for _ in range(2))
    assert one.drawn.cfg == expected.cfg
    assert t.allclose(one.drawn.feature_dict.feature_vectors, vectors_TD, atol=1e-5)
    models = (Sampler(each.drawn)._model for each in (one, again))
    assert all(np.array_equal(*arrays) for arrays in zip(*models, strict=True))
    other = SyntheticModel.of(replace(settings, config=SMALL.config | few), tmp_path / "other")
    assert not t.allclose(other.drawn.feature_dict.feature_vectors, vectors_TD, atol=1e-2)
