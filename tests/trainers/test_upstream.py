"""Upstream's trainers as the loop's, JumpReLU with its threshold applied once, and every trainer built."""

import math
from inspect import signature

import pytest
import torch as t
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from small_trainers import BATCH, STEPS, D, F, assert_same, batch, built, weights_of

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.config.architectures import TRAINED, import_class
from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae import CONFIGS, option_names
from dictionary_learning_ext.trainers.build import build_trainer
from dictionary_learning_ext.trainers.upstream import CorrectedJumpReluTrainer, UpstreamTrainer

# --- built from a configuration

OPTIONS = {
    "vsae_top_k": {"k": 5, "beta": 0.3, "sigma": 0.2, "noise_on": "values", "rectify": True},
    "vsae": {"beta": 0.3, "posterior": "learned", "log_var_init": -1.0},
    "vaease": {"gamma_init": 0.3, "active_gate": 0.1, "prior_std": 0.7},
    "vsae_as_published": {"k": 5, "beta": 0.3, "kl_warmup_steps": 7},
    "top_k": {"k": 5, "auxk_alpha": 0.25},
    "probabilistic_top_k": {"k": 5, "temperature_start": 2.0, "auxk_alpha": 0.25},
    "batch_top_k": {"k": 5, "auxk_alpha": 0.25},
    "relu": {"l1_penalty": 0.3, "sparsity_warmup_steps": 7},
    "jump_relu": {"sparsity_penalty": 0.3, "target_l0": 3.0, "sparsity_warmup_steps": 7},
    "matryoshka": {"k": 5, "auxk_alpha": 0.25, "group_fractions": (0.25, 0.75)},
}
"""Some options of each, none at its default."""


def inner(trainer):
    """Upstream's trainer if there is one."""
    return getattr(trainer, "_trainer", trainer)


def found(trainer, name):
    """An option's value in a trainer: an attribute, or an entry of its config."""
    attributes = vars(inner(trainer))
    return attributes[name] if name in attributes else trainer.config[name]


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_builds_with_its_options_and_trains(architecture):
    row, options = TRAINED[architecture], OPTIONS.get(architecture, {})
    trainer = built(architecture, lr=3e-3, warmup_steps=4, seed=3, **options)
    assert type(inner(trainer)) is import_class(row.trainer)
    assert type(trainer.ae) is import_class(row.dictionary)
    is_ours = row.trainer.startswith("dictionary_learning_ext") and architecture != "jump_relu"
    assert isinstance(trainer, UpstreamTrainer) != is_ours
    expected = {"lr": 3e-3, "seed": 3, "submodule_name": "blocks.0.hook_resid_post"}
    assert trainer.config.items() >= expected.items()
    for name, value in options.items():
        value = list(value) if isinstance(value, tuple) else value
        assert found(trainer, name) == value, name
    weights = weights_of(trainer)
    for step in range(3):
        trainer.update(step, batch(step))
    assert any(not t.equal(v, weights[n]) for n, v in trainer.ae.state_dict().items())


@pytest.mark.parametrize("architecture", TRAINED)
def test_the_seed_decides_the_initial_weights(architecture):
    one, again, other = (weights_of(built(architecture, seed=s)) for s in (0, 0, 1))
    assert_same(one, again)
    assert any(not t.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "architecture",
    [n for n, cls in CONFIGS.items() if "dead_feature_threshold" in option_names(cls)],
)
def test_what_upstreams_top_k_trainers_take_as_an_attribute_reaches_it(architecture):
    """And the threshold starts within a short run."""
    trainer = inner(built(architecture, dead_feature_threshold=77))
    assert (trainer.dead_feature_threshold, trainer.threshold_start_step) == (77, STEPS // 2)


@pytest.mark.parametrize(
    ("architecture", "steps", "averaged_over"),
    [
        ("batch_top_k", 8000, 80),
        ("batch_top_k", 30, 1),
        ("vsae_batch_top_k", 8000, 80),
        ("matryoshka", 10**6, 1000),
        ("top_k", 8000, 1000),
    ],
)
def test_a_threshold_that_encodes_averages_over_a_hundredth_of_a_run(
    architecture, steps, averaged_over
):
    """At most over upstream's 1,000 steps. A TopK's, by which nothing is encoded, is upstream's."""
    sae = {"dict_size": F, "k": 3}
    config = TrainConfig(CONFIGS[architecture](**sae), RunConfig(steps=steps)).resolved
    place = {"activation_dim": D, "layer": 0, "name": "x", "device": "cpu"}
    trainer = inner(build_trainer(config, energy=float(D), **place))
    assert 1 - trainer.threshold_beta == pytest.approx(1 / averaged_over)


def test_what_upstreams_top_k_trainer_was_built_with_is_an_attribute_of_the_vsaes():
    given = {"steps": STEPS, "activation_dim": D, "dict_size": F, "k": 3, "warmup_steps": 2}
    given |= {"layer": 0, "lm_name": "x", "device": "cpu", "seed": 0}
    theirs, ours = (vars(cls(**given)) for cls in (TopKTrainer, VariationalTopKTrainer))
    assert signature(TopKTrainer).parameters.keys() & theirs.keys() <= ours.keys()


def test_k_is_dict_size_where_the_architecture_says_so():
    assert built("vsae").ae.k == F


# --- upstream's, wrapped

UPSTREAMS = [
    name for name, row in TRAINED.items() if not (row.is_ours or name == "probabilistic_top_k")
]


def trained(architecture, steps=3, **options):
    trainer = built(architecture, **options)
    for step in range(steps):
        trainer.update(step, batch(step))
    return trainer


def spoil(trainer):
    next(trainer.ae.parameters()).data.fill_(math.nan)


def test_steps_are_upstreams_to_the_bit():
    wrapped, bare = built("top_k"), inner(built("top_k"))
    for step in range(4):
        wrapped.update(step, batch(step))
        wrapped.metrics(step, batch(step))
        bare.update(step, batch(step))
    assert_same(weights_of(wrapped), dict(bare.ae.state_dict()))


def test_bfloat16_rounds_the_steps_and_not_the_parameters():
    exact, rounded = (trained("relu", dtype=dtype, lr=1e-2) for dtype in ("float32", "bfloat16"))
    assert not t.equal(exact.ae.encoder.weight, rounded.ae.encoder.weight)
    assert t.allclose(exact.ae.encoder.weight, rounded.ae.encoder.weight, atol=0.05)
    assert all(p.dtype == t.float32 for p in rounded.ae.parameters())


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


@pytest.mark.parametrize("architecture", UPSTREAMS)
def test_metrics_are_those_of_the_reconstruction_and_change_nothing(architecture):
    trainer, same, x = trained(architecture), trained(architecture), batch(9)
    with t.no_grad():
        # BatchTopK's own threshold is for inference: in training it keeps B k of the batch.
        by_batch = architecture in ("batch_top_k", "matryoshka")
        f = trainer.ae.encode(x, use_threshold=False) if by_batch else trainer.ae.encode(x)
        x_hat = trainer.ae.decode(f)
    errors, generator = (x - x_hat).double().square().sum(1), t.get_rng_state()
    metrics = trainer.metrics(3, x)
    assert metrics["l2_loss"] == pytest.approx(errors.mean().item(), rel=1e-5)
    variance = (x - x.mean(0)).double().square().sum()
    assert metrics["fve"] == pytest.approx(1 - (errors.sum() / variance).item(), rel=1e-4)
    assert metrics["l0"] == pytest.approx((f != 0).sum(1).double().mean().item())
    states = [each.state_dict() for each in (trainer, same)]
    assert_same(*states)
    assert t.equal(x, batch(9))
    assert t.equal(t.get_rng_state(), generator)


@pytest.mark.parametrize("architecture", UPSTREAMS)
def test_check_keeps_the_last_finite_weights_and_restores_them(architecture):
    trainer = trained(architecture)
    start = weights_of(trainer)
    trainer.restore_last_finite()
    assert_same(weights_of(trainer), start, "before a check there is nothing to restore")
    assert trainer.check(2) is None
    trainer.update(3, batch(3))
    spoil(trainer)
    failure = trainer.check(7)
    assert failure.step == 7
    assert "not finite" in failure.what
    assert_same(weights_of(trainer), start)
    assert trainer.check(8) is None, "restored weights are finite"
    trainer.update(9, batch(3))
    assert any(not t.equal(v, start[n]) for n, v in trainer.ae.state_dict().items())
    trainer.restore_last_finite()
    assert_same(weights_of(trainer), start)


def test_after_a_load_the_loaded_weights_are_restored():
    """As a resume does: load, check, and fail at a later step."""
    saved, resumed = trained("top_k", steps=5), trained("top_k", seed=1)
    resumed.check(2)
    resumed.ae.load_state_dict(saved.ae.state_dict())
    assert resumed.check(5) is None
    spoil(resumed)
    assert resumed.check(6) is not None
    assert_same(weights_of(resumed), weights_of(saved))


# --- JumpReLU, against the paper's equations and upstream's trainer

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


def jump_relu(cls, **changes):
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


def test_the_sparsity_losss_gradient_is_the_papers_and_not_upstreams():
    """Equation 12: pre-activations on either side of the threshold, within half a bandwidth.

    Upstream leaves out those below.
    """
    x, trainer = batch(0).double(), jump_relu(CorrectedJumpReluTrainer)
    ae, width, target = trainer.ae, SETTINGS["bandwidth"], SETTINGS["target_l0"]
    pre = x @ ae.W_enc + ae.b_enc
    near = ((pre - ae.threshold) / width).abs() < 0.5
    l0 = (pre > ae.threshold).double().sum(1).mean()
    expected = 2 * (l0 / target - 1) / target * -near.double().sum(0) / width / BATCH
    ours = threshold_gradient(trainer, x)
    t.testing.assert_close(ours, expected.detach())
    assert (pre[near] < ae.threshold.expand_as(pre)[near]).any()
    upstreams = threshold_gradient(jump_relu(JumpReluTrainer), x)
    assert 0.3 < float(upstreams.norm() / ours.norm()) < 0.7


def test_the_loss_has_upstreams_value_and_counters():
    ours, upstreams = jump_relu(CorrectedJumpReluTrainer), jump_relu(JumpReluTrainer)
    for step in range(3):
        x = batch(step).double()
        log, theirs = (one.loss(x, step, logging=True) for one in (ours, upstreams))
        t.testing.assert_close(log.f, theirs.f)
        assert log.losses == pytest.approx(theirs.losses, rel=1e-12)
    assert t.equal(ours.num_tokens_since_fired, upstreams.num_tokens_since_fired)
    assert ours.dead_features == upstreams.dead_features


def test_upstreams_readers_know_the_class_in_config_json():
    assert built("jump_relu").config["trainer_class"] == "JumpReluTrainer"
