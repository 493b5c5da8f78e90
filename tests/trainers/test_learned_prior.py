"""The learned prior: its minimum, its running update, its limit for a point, and what it leaves alone."""

import math

import pytest
import torch as t
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from variational_trainers import POSTERIORS, F, assert_same_weights, data, make_trainer, weights_of

from dictionary_learning_ext import VariationalTopKAutoEncoder
from dictionary_learning_ext.run_folder.resume_points import load_point, save_point
from dictionary_learning_ext.trainers.state import load_trainer_state, trainer_state

SCOPES = ["all", "selected"]
every_kind = pytest.mark.parametrize("posterior", POSTERIORS)
every_scope = pytest.mark.parametrize("kl_scope", SCOPES)


def made(**changes):
    """In float64, with noise that does not choose, so that a token's K largest means are its set."""
    options = {"prior": "learned", "noise_on": "values", "beta": 0.3, "kl_schedule": "constant"}
    trainer = make_trainer(**options | changes)
    trainer.ae.double()
    return trainer


def std_in_kl(ae, x):
    """sigma as the KL has it, (B, F)."""
    if ae.posterior_kind == "point":
        return t.full((len(x), F), float(ae.least_std), dtype=t.float64)
    return (0.5 * ae.log_var(x)).exp().expand(len(x), F)


def counted_squares(ae, x, kl_scope):
    """Each feature's sum of mu^2 + sigma^2 over the tokens whose KL counts, and how many."""
    mu = (x - ae.b_dec) @ ae.encoder.weight.T + ae.encoder.bias
    mu = mu.relu() if ae.rectify else mu
    counts = t.ones_like(mu)
    if kl_scope == "selected":
        counts = t.zeros_like(mu).scatter(1, mu.topk(int(ae.k)).indices, 1.0)
    return ((mu**2 + std_in_kl(ae, x) ** 2) * counts).sum(0).detach(), counts.sum(0)


@given(st.integers(0, 1000), st.floats(-2, 2))
def test_the_mean_square_minimises_the_expected_kl(seed, log_p):
    generator = t.Generator().manual_seed(seed)
    mu, log_var = t.randn(2, 50, generator=generator, dtype=t.float64)
    posterior = Normal(2 * mu, (log_var / 2).exp())
    best = (4 * mu**2 + log_var.exp()).mean().sqrt()

    def expected_kl(p):
        return kl_divergence(posterior, Normal(t.zeros_like(mu), p)).mean()

    assert expected_kl(best) <= expected_kl(best * math.exp(log_p)) + 1e-12
    expected = best.log() - log_var.mean() / 2  # as the module says
    t.testing.assert_close(expected_kl(best), expected)


@pytest.mark.parametrize("rectify", [False, True])
@every_scope
@every_kind
def test_each_step_moves_the_running_mean_by_its_definition(posterior, kl_scope, rectify):
    trainer = made(posterior=posterior, kl_scope=kl_scope, rectify=rectify, lr=1e-2)
    squares, tokens = t.zeros(2, F, dtype=t.float64)
    expected = t.ones(F, dtype=t.float64)
    trainer.update(0, data(dtype=t.float64))  # sets b_dec, after which the test can follow
    squares, tokens = trainer.prior_square_sum_F.clone(), trainer.prior_tokens_F.clone()
    expected = trainer.ae.prior_std.clone()
    for step in range(1, 6):
        x = data(8, seed=step, dtype=t.float64)
        new_squares, new_tokens = counted_squares(trainer.ae, x, kl_scope)
        trainer.update(step, x)
        squares, tokens = 0.99 * squares + new_squares, 0.99 * tokens + new_tokens
        expected = t.where(new_tokens > 0, (squares / tokens).sqrt(), expected)
        t.testing.assert_close(trainer.ae.prior_std, expected, rtol=1e-9, atol=0)
    assert (new_tokens == 0).any() == (kl_scope == "selected"), "a feature that none keeps stays"


@every_scope
@every_kind
def test_the_steps_kl_is_that_of_torch_with_the_prior_before_it(posterior, kl_scope):
    trainer = made(posterior=posterior, kl_scope=kl_scope)
    for step in range(3):
        trainer.update(step, data(seed=step, dtype=t.float64))
    ae, x = trainer.ae, data(seed=9, dtype=t.float64)
    mu = ae.encoder(x - ae.b_dec)
    kl = kl_divergence(Normal(mu, std_in_kl(ae, x)), Normal(t.zeros_like(mu), ae.prior_std))
    t.testing.assert_close(ae.posterior(x).kl, kl)
    if kl_scope == "selected":
        kl = kl * t.zeros_like(mu).scatter(1, mu.topk(4).indices, 1.0)
    logged = trainer.loss(x, 3, logging=True).losses
    assert logged["kl_loss"] == pytest.approx(kl.sum(1).mean().item(), rel=1e-9)
    assert logged["mean_prior_std"] == pytest.approx(ae.prior_std.mean().item())


@every_kind
def test_without_a_weight_the_other_weights_are_those_of_a_fixed_prior_to_the_bit(posterior):
    learned, fixed = (
        make_trainer(posterior=posterior, prior=prior, beta=0.0) for prior in ("learned", "fixed")
    )
    for step in range(6):
        for trainer in (learned, fixed):
            trainer.update(step, data(seed=step))
    assert (learned.ae.prior_std - 1).abs().min() > 1e-4
    one, other = weights_of(learned), weights_of(fixed)
    for name in ("prior_std", "least_std"):
        for weights in (one, other):
            weights.pop(name, None)
    assert_same_weights(one, other)


@every_scope
def test_a_points_prior_has_a_lower_limit_where_its_kl_is_0(kl_scope):
    trainer = made(posterior="point", noise_on="both", kl_scope=kl_scope, prior_std=0.5, lr=1e-12)
    trainer.ae.encoder.weight.data.zero_()
    for step in range(4):
        trainer.update(step, data(seed=step, dtype=t.float64))
    kept = trainer.prior_tokens_F > 0
    assert kept.all() if kl_scope == "all" else 0 < kept.sum() < F
    expected = t.where(kept, 0.01 * 0.5, 0.5).double()
    t.testing.assert_close(trainer.ae.prior_std, expected, rtol=1e-6, atol=0)
    kl = trainer.ae.posterior(data(dtype=t.float64)).kl[:, kept]
    assert kl.abs().max() < 1e-9


@every_kind
def test_a_learned_prior_pulls_weak_features_to_0_more_than_a_fixed_one(posterior):
    """The price of a feature is the logarithm of its scale, not its square."""
    shares = []
    for prior in ("learned", "fixed"):
        trainer = made(posterior=posterior, prior=prior, beta=0.2, lr=1e-2, noise_on="both")
        for step in range(200):
            trainer.update(step, data(64, seed=step, dtype=t.float64))
        squares_F = trainer.ae.posterior(data(500, 1000, dtype=t.float64)).mu.square().mean(0)
        shares.append((squares_F.median() / squares_F.max()).item())
    assert shares[0] < shares[1]


@every_scope
@every_kind
def test_a_step_that_is_not_finite_leaves_the_prior_as_it_was(posterior, kl_scope):
    trainer = made(posterior=posterior, kl_scope=kl_scope)
    trainer.update(0, data(dtype=t.float64))
    before = [trainer.ae.prior_std, trainer.prior_square_sum_F, trainer.prior_tokens_F]
    before = [value.clone() for value in before]
    trainer.update(1, data(dtype=t.float64) * math.nan)
    after = [trainer.ae.prior_std, trainer.prior_square_sum_F, trainer.prior_tokens_F]
    assert all(t.equal(*pair) for pair in zip(before, after, strict=True))


@every_scope
@every_kind
def test_a_trainer_resumes_from_the_disk_bit_for_bit(posterior, kl_scope, tmp_path):
    options = {"posterior": posterior, "kl_scope": kl_scope, "prior": "learned", "beta": 0.1}
    whole, other = make_trainer(**options), make_trainer(**options, seed=1)
    for step in range(5):
        whole.update(step, data(seed=step))
    save_point(tmp_path, 5, trainer_state(whole), {})
    load_trainer_state(other, load_point(tmp_path, 5).trainer)
    for step in range(5, 10):
        for trainer in (whole, other):
            trainer.update(step, data(seed=step))
    assert_same_weights(weights_of(whole), weights_of(other))
    assert t.equal(whole.prior_tokens_F, other.prior_tokens_F)


@every_kind
def test_scaling_leaves_the_kl_and_the_file_holds_the_prior(posterior, tmp_path):
    trainer = made(posterior=posterior, noise_on="both")
    for step in range(4):
        trainer.update(step, data(seed=step, dtype=t.float64))
    ae, x = trainer.ae, data(seed=9, dtype=t.float64)
    prior, kl, codes = ae.prior_std.clone(), ae.posterior(x).kl, ae.encode(x)
    ae.scale_biases(7.0)
    t.testing.assert_close(ae.posterior(7 * x).kl, kl, rtol=1e-9, atol=1e-11)
    t.testing.assert_close(ae.encode(7 * x), 7 * codes)
    t.testing.assert_close(ae.prior_std, 7 * prior)
    t.save(ae.state_dict(), tmp_path / "ae.pt")
    loaded = VariationalTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt")
    assert_same_weights(loaded.state_dict(), ae.state_dict())
    assert t.equal(loaded.posterior(x).kl, ae.posterior(x).kl)


def test_a_fixed_prior_is_one_number_in_the_file():
    state = make_trainer().ae.state_dict()
    assert state["prior_std"].shape == ()
    assert "least_std" not in state
