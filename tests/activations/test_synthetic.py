"""Batches that a synthetic model draws. A stand-in of three features stands for SAELens's model."""

import sys
from dataclasses import replace

import pytest
import torch as t

from dictionary_learning_ext.activations.synthetic import SyntheticSource, draw_model
from dictionary_learning_ext.activations.tokens import Share
from dictionary_learning_ext.config import synthetic_models
from dictionary_learning_ext.errors import ConfigError

VECTORS = t.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


class StandIn:
    """Draws from torch's global generator, as SAELens's `SyntheticModel` does."""

    class feature_dict:
        feature_vectors = VECTORS

    def sample_with_features(self, n):
        firing_BT = t.rand(n, 3) * (t.rand(n, 3) < 0.5)
        return firing_BT @ VECTORS, firing_BT


def source(**options):
    return SyntheticSource("synthetic:small", StandIn(), **({"out_batch_size": 8} | options))


@pytest.fixture
def without_noise(monkeypatch):
    row = replace(synthetic_models.SYNTHETIC_MODELS["small"], noise_std=0.0)
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "small", row)


def test_a_batch_is_made_of_the_features_that_fired(without_noise):
    rows = source()
    for _ in range(3):
        x_BD = next(rows)
        assert t.allclose(x_BD, rows.firing_BT @ rows.vectors_TD)
    assert rows.tokens_seen == 24
    assert rows.d_submodule == 2


def test_noise_has_the_standard_deviation_of_the_table():
    rows = source(out_batch_size=50_000)
    noise_BD = next(rows) - rows.firing_BT @ VECTORS
    expected = synthetic_models.SYNTHETIC_MODELS["small"].noise_std
    assert noise_BD.std() == pytest.approx(expected, rel=0.02)


def test_batches_follow_from_the_seed_alone_and_leave_torchs_generator():
    t.manual_seed(0)
    expected = t.rand(3)
    t.manual_seed(0)
    first = next(source())
    assert t.equal(t.rand(3), expected)
    assert t.equal(next(source()), first)
    for other in (source(seed=1), source(stream="heldout"), source(share=Share(1, 2))):
        assert not t.allclose(next(other), first)
    again = source()
    assert not t.allclose([next(again), next(again)][1], first)


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
    with pytest.raises(ConfigError, match=r"can't resume with seed=1: expected seed=0, as before"):
        source(seed=1).load_state_dict(state)


def test_without_saelens_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens.synthetic", None)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ConfigError, match=r"pip install 'dictionary-learning-ext\[synthetic\]'$"):
        draw_model("synthetic:small")
