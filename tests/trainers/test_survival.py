"""`survival`: noise whose dose is the share of a token's noiseless top k that it leaves selected."""

import copy

import pytest
import torch as t
from small_trainers import BATCH, STEPS, D, K, assert_same, batch, built, in_float64, weights_of

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers.posterior import sigma_factor

NOISE = {"noise_on": "selection", "beta": 0.0}


def still_selected(trainer, x, sigma, seed=0):
    """The share of the noiseless top k that N(0, sigma^2) noise leaves selected, by brute force."""
    with t.no_grad():
        mu_BF = trainer.ae.encode(x, return_topk=True)[3]
    eps_BF = t.randn(mu_BF.shape, generator=t.Generator().manual_seed(seed), dtype=mu_BF.dtype)
    pairs = zip(mu_BF.topk(K).indices, (mu_BF + sigma * eps_BF).topk(K).indices, strict=True)
    shares = [len({*before.tolist()} & {*after.tolist()}) / K for before, after in pairs]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("noise_on", ["selection", "both"])
@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("dtype", [t.float32, t.float64])
def test_sigma_settles_where_the_noise_leaves_the_share(target, noise_on, dtype):
    trainer = built("vsae_top_k", survival=target, **NOISE | {"noise_on": noise_on}, lr=1e-6)
    trainer.ae.to(dtype)
    for step in range(150):
        trainer.update(step, batch(step, rows=256).to(dtype))
    x = batch(10**6, rows=4000).to(dtype)
    found = still_selected(trainer, x, trainer.ae.sigma)
    assert found == pytest.approx(target, abs=0.02)
    logged = trainer.metrics(STEPS, x)
    assert logged["survival"] == pytest.approx(found, abs=0.02)
    assert logged["survival_target"] == pytest.approx(target)


def test_log_sigma_moves_by_a_fifth_of_what_survives_less_what_should():
    """A share of the target instead of the difference would settle at the same sigma."""
    factor = sigma_factor(t.tensor(0.7).double(), 0.5, t.tensor(1.0))
    assert factor.log().item() == pytest.approx(0.2 * (0.7 - 0.5), rel=1e-6)
    assert sigma_factor(t.tensor(0.7), 0.5, t.tensor(t.inf)) == 1


def test_the_target_rises_to_one_and_then_there_is_no_noise():
    trainer = built("vsae_top_k", survival=0.5, noise_anneal_steps=60, **NOISE)
    sigmas, targets = [], []
    for step in range(70):
        trainer.update(step, batch(step, rows=256))
        sigmas.append(float(trainer.ae.sigma))
        targets.append(trainer.survival_target)
    assert targets[0] == 0.5
    assert targets[30] == pytest.approx(0.75)
    assert targets[60:] == [1.0] * 10
    assert sigmas[55] < sigmas[20] / 2
    assert sigmas[60:] == [0.0] * 10
    point = built("vsae_top_k", posterior="point", beta=0.0)
    point.load_state_dict(copy.deepcopy(trainer.state_dict()))
    x = batch(70)
    assert trainer.update(70, x) == point.update(70, x)
    assert t.equal(trainer.ae.encode(x, sample=True), trainer.ae.encode(x))


@pytest.mark.parametrize("factor", [1e-3, 300.0])
def test_it_has_no_unit(factor):
    """Activations of another scale: sigma scales with them, and the same features are selected."""
    one, other = (
        in_float64(built("vsae_top_k", survival=0.5, auxk_alpha=0.0, **NOISE)) for _ in range(2)
    )
    one.starts_trained = other.starts_trained = True  # the geometric median has a tolerance
    for step in range(5):  # Adam's steps have a unit
        x = batch(step).double()
        losses = [one.update(step, x), other.update(step, factor * x)]
        assert float(losses[1]) == pytest.approx(factor**2 * float(losses[0]), rel=1e-9)
        assert float(other.ae.sigma) == pytest.approx(factor * float(one.ae.sigma), rel=1e-9)
        other.ae.load_state_dict(one.ae.state_dict())
        other.ae.scale_biases(factor)


def test_the_penalty_is_on_the_means_alone():
    """With either scope: sigma, which is controlled, is no part of the KL."""
    for scope in ("selected", "all"):
        trainer = built("vsae_top_k", survival=0.5, **NOISE | {"beta": 1.0}, kl_scope=scope)
        trainer.update(0, batch(0))
        x = batch(1)
        terms = trainer._terms(x, 50, copy.deepcopy(trainer.generator))
        with t.no_grad():
            penalised = trainer.ae.encode(x, return_topk=True)[3]
        if scope == "selected":
            noise = copy.deepcopy(trainer.generator)
            penalised = trainer.ae.encode(
                x, sample=True, generator=noise
            )  # the means, where selected
        expected = float(penalised.square().sum(1).mean() / 2)
        assert float(terms.kl_loss) == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_has_the_same_sigma():
    def trained(first, last, state=None):
        trainer = built("vsae_top_k", survival=0.6, noise_anneal_steps=50, **NOISE)
        if state is not None:
            trainer.load_state_dict(state)
        for step in range(first, last):
            trainer.update(step, batch(step))
        return trainer

    half = copy.deepcopy(trained(0, 20).state_dict())
    assert_same(weights_of(trained(20, 40, half)), weights_of(trained(0, 40)))


def test_a_batch_that_is_not_finite_leaves_sigma_alone():
    trainer = built("vsae_top_k", survival=0.6, **NOISE)
    trainer.update(0, batch(0))
    before = trainer.ae.sigma.clone()
    trainer.update(1, t.full((BATCH, D), t.nan))
    assert t.equal(trainer.ae.sigma, before)


@pytest.mark.parametrize("posterior", ["learned", "point"])
def test_a_posterior_that_has_no_use_for_it_is_warned_of_and_trained_as_without_it(
    posterior, caplog
):
    shared = {"posterior": posterior, "noise_anneal_steps": 60, "noise_on": "selection"}
    arguments = {"steps": STEPS, "activation_dim": D, "dict_size": 32, "k": K, "layer": 0}
    arguments |= {"lm_name": "tiny", "seed": 0, "device": "cpu", "warmup_steps": 10}
    given, without = (
        VariationalTopKTrainer(**arguments, **shared, **more) for more in ({"survival": 0.5}, {})
    )
    assert "survival=0.5" in caplog.text
    for step in range(30):
        assert given.update(step, batch(step)) == without.update(step, batch(step))
    assert_same(weights_of(given), weights_of(without))
