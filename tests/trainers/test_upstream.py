"""Upstream's trainers as the loop's: metrics change nothing, and finite weights are kept."""

import copy
import math

import pytest
import torch as t
from small_trainers import STEPS, batch, built

from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.trainers.upstream import UpstreamTrainer

UPSTREAMS = [name for name in TRAINED if isinstance(built(name), UpstreamTrainer)]


def trained(architecture, steps=3, **options):
    trainer = built(architecture, **options)
    for step in range(steps):
        trainer.update(step, batch(step))
    return trainer


def snapshot(trainer):
    """All that a step may change: weights, optimiser, counters, and torch's generator."""
    state = trainer.state()
    counters = {
        n: v for n, v in vars(state).items() if isinstance(v, t.Tensor | bool | int | float)
    }
    return copy.deepcopy(
        (
            dict(trainer.ae.state_dict()),
            state.optimizer.state_dict()["state"],
            trainer.scheduler.state_dict(),
            counters,
            t.get_rng_state(),
        )
    )


def assert_same(one, other):
    if isinstance(one, t.Tensor):
        assert t.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple | list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.ae.state_dict().items()}


def test_a_token_without_a_positive_pre_activation_leaves_the_threshold_as_it_was():
    """Upstream's mean of each row's smallest value is infinite then, and would stay so."""
    trainer = trained("top_k", steps=STEPS // 2 + 3)
    threshold = float(trainer.ae.threshold)
    assert 0 < threshold < math.inf
    trainer.ae.encoder.bias.data -= 1e3
    trainer.update(STEPS // 2 + 3, batch(0))
    assert float(trainer.ae.threshold) == threshold
    assert trainer.check(STEPS // 2 + 3) is None
    trainer.ae.encoder.bias.data += 1e3
    trainer.update(STEPS // 2 + 4, batch(0))
    assert float(trainer.ae.threshold) != threshold, "it goes on"


def spoil(trainer):
    next(trainer.ae.parameters()).data.fill_(math.nan)


@pytest.mark.parametrize("architecture", UPSTREAMS)
def test_metrics_change_nothing(architecture):
    trainer, x = trained(architecture), batch(9)
    before, x_before = snapshot(trainer), x.clone()
    trainer.metrics(3, x)
    assert_same(snapshot(trainer), before)
    assert t.equal(x, x_before)
    trainer.update(3, x)
    with pytest.raises(AssertionError):  # so that the comparison could fail
        assert_same(snapshot(trainer), before)


@pytest.mark.parametrize("architecture", UPSTREAMS)
def test_metrics_are_those_of_the_reconstruction(architecture):
    trainer, x = trained(architecture), batch(9)
    with t.no_grad():
        # BatchTopK's own threshold is for inference: in training it keeps B k of the batch.
        by_batch = architecture in ("batch_top_k", "matryoshka")
        f = trainer.ae.encode(x, use_threshold=False) if by_batch else trainer.ae.encode(x)
        x_hat = trainer.ae.decode(f)
    errors = (x - x_hat).double().square().sum(1)
    metrics = trainer.metrics(3, x)
    assert metrics["l2_loss"] == pytest.approx(errors.mean().item(), rel=1e-5)
    variance = (x - x.mean(0)).double().square().sum()
    assert metrics["fve"] == pytest.approx(1 - (errors.sum() / variance).item(), rel=1e-4)
    assert metrics["l0"] == pytest.approx((f != 0).sum(1).double().mean().item())


@pytest.mark.parametrize("architecture", UPSTREAMS)
def test_check_keeps_the_last_finite_weights_and_restores_them(architecture):
    trainer = trained(architecture)
    assert trainer.check(2) is None
    finite = weights_of(trainer)
    trainer.update(3, batch(3))
    spoil(trainer)
    failure = trainer.check(7)
    assert failure.step == 7
    assert "not finite" in failure.what
    assert_same(weights_of(trainer), finite)
    assert trainer.check(8) is None, "restored weights are finite"


def test_restore_puts_back_what_the_last_check_found():
    trainer = trained("top_k")
    trainer.check(2)
    finite = weights_of(trainer)
    trainer.update(3, batch(3))
    assert not t.equal(trainer.ae.encoder.weight, finite["encoder.weight"])
    trainer.restore_last_finite()
    assert_same(weights_of(trainer), finite)


def test_before_a_check_there_is_nothing_to_restore():
    trainer = trained("top_k")
    weights = weights_of(trainer)
    trainer.restore_last_finite()
    assert_same(weights_of(trainer), weights)


def test_after_a_load_the_loaded_weights_are_restored():
    """As a resume does: load, check, and fail at a later step."""
    saved, resumed = trained("top_k", steps=5), trained("top_k", seed=1)
    resumed.check(2)
    resumed.ae.load_state_dict(saved.ae.state_dict())
    assert resumed.check(5) is None
    spoil(resumed)
    assert resumed.check(6) is not None
    assert_same(weights_of(resumed), weights_of(saved))


def test_steps_are_upstreams_to_the_bit():
    wrapped, bare = built("top_k"), built("top_k").state()
    for step in range(4):
        wrapped.update(step, batch(step))
        wrapped.metrics(step, batch(step))
        bare.update(step, batch(step))
    assert_same(dict(wrapped.ae.state_dict()), dict(bare.ae.state_dict()))


def test_bfloat16_rounds_the_steps_and_not_the_parameters():
    exact, rounded = (trained("relu", dtype=dtype, lr=1e-2) for dtype in ("float32", "bfloat16"))
    assert not t.equal(exact.ae.encoder.weight, rounded.ae.encoder.weight)
    assert t.allclose(exact.ae.encoder.weight, rounded.ae.encoder.weight, atol=0.05)
    assert all(p.dtype == t.float32 for p in rounded.ae.parameters())
