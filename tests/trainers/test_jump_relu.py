"""JumpReLU with its threshold applied once, against the paper's equations and upstream's trainer."""

import pytest
import torch as t
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from small_trainers import BATCH, D, F, batch, built

from dictionary_learning_ext.trainers.upstream import CorrectedJumpReluTrainer

SETTINGS = {
    "steps": 50,
    "activation_dim": D,
    "dict_size": F,
    "layer": 0,
    "lm_name": "tiny",
    "warmup_steps": 5,
    "sparsity_warmup_steps": 5,
    "target_l0": 4.0,
    "bandwidth": 0.5,
}


def trainer_of(cls, **changes):
    t.manual_seed(0)
    trainer = cls(**SETTINGS | changes)
    trainer.ae.double()
    trainer.ae.threshold.data += 0.3
    return trainer


def threshold_gradient(trainer, x, step=20):
    """Its gradient from the sparsity loss alone."""
    whole = t.autograd.grad(trainer.loss(x, step=step), trainer.ae.threshold)[0]
    trainer.sparsity_coefficient = 0.0
    return whole - t.autograd.grad(trainer.loss(x, step=step), trainer.ae.threshold)[0]


def test_the_sparsity_losss_gradient_is_the_papers():
    """Equation 12: pre-activations on either side of the threshold, within half a bandwidth."""
    x = batch(0).double()
    trainer = trainer_of(CorrectedJumpReluTrainer)
    ae, width = trainer.ae, SETTINGS["bandwidth"]
    pre = x @ ae.W_enc + ae.b_enc
    near = ((pre - ae.threshold) / width).abs() < 0.5
    l0 = (pre > ae.threshold).double().sum(1).mean()
    target = SETTINGS["target_l0"]
    expected = 2 * (l0 / target - 1) / target * -near.double().sum(0) / width / BATCH
    t.testing.assert_close(threshold_gradient(trainer, x), expected.detach())
    assert (pre[near] < ae.threshold.expand_as(pre)[near]).any()


def test_upstreams_leaves_out_those_below():
    x = batch(0).double()
    ours = threshold_gradient(trainer_of(CorrectedJumpReluTrainer), x)
    upstreams = threshold_gradient(trainer_of(JumpReluTrainer), x)
    assert 0.3 < float(upstreams.norm() / ours.norm()) < 0.7


def test_the_loss_has_upstreams_value_and_counters():
    ours, upstreams = trainer_of(CorrectedJumpReluTrainer), trainer_of(JumpReluTrainer)
    for step in range(3):
        x = batch(step).double()
        log, theirs = (one.loss(x, step, logging=True) for one in (ours, upstreams))
        t.testing.assert_close(log.f, theirs.f)
        assert log.losses == pytest.approx(theirs.losses, rel=1e-12)
    assert t.equal(ours.num_tokens_since_fired, upstreams.num_tokens_since_fired)
    assert ours.dead_features == upstreams.dead_features


def test_the_flag_is_upstreams_trainer_to_the_bit():
    twice = trainer_of(CorrectedJumpReluTrainer, threshold_twice=True)
    once, upstreams = trainer_of(CorrectedJumpReluTrainer), trainer_of(JumpReluTrainer)
    for step in range(20):
        for trainer in (twice, once, upstreams):
            trainer.update(step, batch(step).double())
    states = [trainer.ae.state_dict() for trainer in (twice, once, upstreams)]
    assert all(t.equal(states[0][name], states[2][name]) for name in states[0])
    assert not t.equal(states[1]["threshold"], states[2]["threshold"])


def test_config_json_says_which_and_upstreams_readers_still_know_the_class():
    for twice in (False, True):
        config = built("jump_relu", threshold_twice=twice).config
        assert config["threshold_twice"] is twice
        assert config["trainer_class"] == "JumpReluTrainer"
    assert built("jump_relu").config["threshold_twice"] is False
