"""Batches that a synthetic model draws. A stand-in of a few features stands for SAELens's model."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch as t

from dictionary_learning_ext.activations.synthetic import Sampler, SyntheticSource, draw_model
from dictionary_learning_ext.config import synthetic_models
from dictionary_learning_ext.errors import ConfigError

VECTORS = t.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
HALF = t.full((3,), 0.5)


def stand_in(vectors_TD=VECTORS, probability_T=HALF, std=0.3):
    """Has what is read of SAELens's `SyntheticModel`."""
    generator = SimpleNamespace(
        firing_probabilities=probability_T,
        low_rank_correlation=None,
        mean_firing_magnitudes=t.ones(len(vectors_TD)),
        std_firing_magnitudes=t.full((len(vectors_TD),), std),
    )
    directions = SimpleNamespace(feature_vectors=vectors_TD, bias=t.zeros(vectors_TD.shape[1]))
    return SimpleNamespace(activation_generator=generator, feature_dict=directions, hierarchy=None)


def source(**options):
    return SyntheticSource("synthetic:small", stand_in(), **({"out_batch_size": 8} | options))


@pytest.fixture
def without_noise(monkeypatch):
    row = replace(synthetic_models.SYNTHETIC_MODELS["small"], noise_std=0.0)
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "small", row)


def test_a_batch_is_made_of_the_features_that_fired(without_noise):
    rows = source()
    for _ in range(3):
        x_BD = next(rows)
        assert (rows.firing_BT > 0).any()
        assert t.allclose(x_BD, rows.firing_BT @ rows.vectors_TD)
    assert rows.tokens_seen == 24
    assert rows.d_submodule == 2


def test_noise_has_the_standard_deviation_of_the_table():
    rows = source(out_batch_size=50_000)
    noise_BD = next(rows) - rows.firing_BT @ VECTORS
    expected = synthetic_models.SYNTHETIC_MODELS["small"].noise_std
    assert noise_BD.std() == pytest.approx(expected, rel=0.02)
    assert noise_BD.mean() == pytest.approx(0, abs=0.001)
    assert t.corrcoef(noise_BD.T)[0, 1] == pytest.approx(0, abs=0.02)


def test_rare_features_fire_as_often_as_they_should():
    """Among 2^16 equally likely normal numbers, none would be this rare."""
    probability_T = t.tensor([5e-4, 1e-4, 1e-5, 3e-6])
    sampler = Sampler(stand_in(t.eye(4), probability_T, std=0.0))
    n, parts = 4_000_000, 8
    fired_T = t.zeros(4)
    for part in range(parts):
        numbers = range(part * n // parts, (part + 1) * n // parts)
        fired_T += sampler.rows(2, numbers)[0].sum(0)
    assert ((fired_T - n * probability_T).abs() < 3.4 * (n * probability_T).sqrt()).all(), fired_T


def test_batches_follow_from_the_seed_alone_and_leave_torchs_generator():
    t.manual_seed(0)
    expected = t.rand(3)
    t.manual_seed(0)
    first = next(source())
    assert t.equal(t.rand(3), expected)
    assert t.equal(next(source()), first)
    for other in (source(seed=1), source(stream="heldout")):
        assert not t.allclose(next(other), first)
    again = source()
    assert not t.allclose([next(again), next(again)][1], first)


def test_a_row_depends_neither_on_the_batch_nor_on_the_threads():
    before = t.get_num_threads()
    try:
        t.set_num_threads(1)
        small = source(out_batch_size=50)
        expected = t.cat([next(small) for _ in range(12)])
        t.set_num_threads(2)
        large = source(out_batch_size=600)
        assert t.equal(next(large), expected)
        firing_BT = large.firing_BT
    finally:
        t.set_num_threads(before)
    assert t.equal(small.firing_BT, firing_BT[-50:])


def test_the_norm_is_that_of_the_first_rows_which_are_handed_out_later():
    rows = source(out_batch_size=4096)
    squares = rows.mean_squared_norm()
    assert rows.tokens_seen == 0
    handed_out = t.cat([next(rows) for _ in range(4)])
    assert squares == pytest.approx(float(handed_out.square().sum(1).mean()), rel=1e-5)


def test_it_resumes_with_the_next_batch():
    whole = source()
    batches = [next(whole) for _ in range(5)]
    stopped = source()
    for _ in range(3):
        next(stopped)
    state, resumed = stopped.state_dict(), source()
    resumed.load_state_dict(state)
    assert t.equal(next(resumed), batches[3])
    assert t.equal(next(resumed), batches[4])
    assert resumed.tokens_seen == 40


def test_without_saelens_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens.synthetic", None)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ConfigError, match=r"pip install 'dictionary-learning-ext\[synthetic\]'$"):
        draw_model("synthetic:small")
