"""k's annealing: its equation, and that every trainer steps with it and keeps k otherwise."""

from types import SimpleNamespace

import pytest
import torch as t
from hypothesis import given
from hypothesis import strategies as st
from small_trainers import D, F, K, batch, built

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.base import KAnnealing

ANNEALED = ["vsae_top_k", "probabilistic_top_k", "top_k", "batch_top_k", "matryoshka"]


def dictionary(k, activation_dim, dict_size):
    return SimpleNamespace(k=t.tensor(k), activation_dim=activation_dim, dict_size=dict_size)


@given(
    st.integers(1, 500),
    st.integers(1, 600),
    st.integers(1, 600),
    st.integers(1, 10_000),
    st.integers(0, 12_000),
)
def test_k_falls_on_a_line_from_the_width_to_k(k, width, dict_size, steps, step):
    start = min(width, dict_size)
    if k >= start:
        with pytest.raises(
            ConfigError, match=f"^k_anneal_steps={steps}: .*k \\({k}\\) is not below"
        ):
            KAnnealing.of(dictionary(k, width, dict_size), steps)
        return
    annealing = KAnnealing.of(dictionary(k, width, dict_size), steps)
    share = min(step / steps, 1)
    assert annealing.at(step) == pytest.approx(start * (1 - share) + k * share, abs=1)
    assert (annealing.at(0), annealing.at(steps)) == (start, k)
    assert k <= annealing.at(step + 1) <= annealing.at(step) <= start


def test_it_is_the_line_of_upstreams_main_branch():
    """It takes int(D (1 - t/A) + k t/A) features."""
    annealing = KAnnealing.of(dictionary(3, 11, 40), 16)
    assert [annealing.at(t) for t in range(20)] == [
        int(11 * (1 - min(t, 16) / 16) + 3 * min(t, 16) / 16) for t in range(20)
    ]


def test_without_steps_k_stays():
    assert {KAnnealing.of(dictionary(7, 3, 4), None).at(step) for step in range(5)} == {7}


def weights_of(trainer):
    return {n: v.clone() for n, v in trainer.ae.state_dict().items() if n != "k"}


@pytest.mark.parametrize(("step", "k"), [(0, 16), (1, 14), (5, 8), (7, 5), (8, 4), (20, 4)])
@pytest.mark.parametrize("architecture", ANNEALED)
def test_a_step_is_that_of_a_trainer_with_its_k(architecture, step, k):
    """k = floor(16 (1 - t/8) + 4 t/8). Before and after the step the dictionary keeps K."""
    annealed, steady = built(architecture, k_anneal_steps=8), built(architecture, k=k)
    assert D == 16
    assert K == 4
    before = weights_of(annealed)
    for trainer in (annealed, steady):
        for i in range(2):  # the learning rate of the first one is 0
            trainer.update(step, batch(i))
    assert annealed.ae.k == annealed.config["k"] == K
    one, other = weights_of(annealed), weights_of(steady)
    assert all(t.equal(one[name], other[name]) for name in other)
    assert not any(t.equal(one[n], before[n]) for n in before if n.startswith(("W_enc", "encoder")))
    assert annealed.metrics(step, batch(1))["l0"] <= K


@pytest.mark.parametrize("architecture", ANNEALED)
def test_an_interrupted_step_leaves_k(architecture):
    trainer = built(architecture, k_anneal_steps=8)
    with pytest.raises((RuntimeError, ConfigError)):
        trainer.update(1, t.zeros(3, D + 1))
    assert trainer.ae.k == K


@pytest.mark.parametrize("architecture", ANNEALED)
def test_the_threshold_follows_the_selection_of_k_features_alone(architecture):
    """A short run's threshold would start at step 50, when 70 steps anneal k."""
    trainer = built(architecture, k_anneal_steps=70)
    for step in (50, 51, 69):
        trainer.update(step, batch(step))
        assert trainer.ae.threshold == -1, step
    trainer.update(70, batch(70))
    assert trainer.ae.threshold > 0


@pytest.mark.parametrize("architecture", ANNEALED)
def test_its_steps_are_in_the_trainers_config_and_its_k_is_refused(architecture):
    assert built(architecture, k_anneal_steps=8).config["k_anneal_steps"] == 8
    assert built(architecture).config.get("k_anneal_steps") is None
    with pytest.raises(ConfigError, match=rf"dim \({D}\) and dict_size \({F}\), and k \({D}\) is"):
        built(architecture, k=D, k_anneal_steps=8)
