"""The trainer: against upstream's, in company, in bf16, with activations that are not finite."""

import copy
import dataclasses
import math

import pytest
import torch as t
from dense_reference import dense_loss
from dictionary_learning.trainers.top_k import TopKTrainer
from recorded_ops import RecordedOps
from torch.distributions import Normal, kl_divergence
from variational_trainers import (
    NOISE_ON,
    POSTERIORS,
    D,
    F,
    as_upstream,
    assert_same_weights,
    data,
    make_trainer,
    to_float64,
    weights_of,
)

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.config.sae import ObjectiveOptions, PosteriorOptions
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.evaluation.measure import Measurement
from dictionary_learning_ext.evaluation.metrics import computed
from dictionary_learning_ext.trainers.kernels.products import StepForm
from dictionary_learning_ext.trainers.kernels.step import StepObjective


@pytest.mark.parametrize("k", [4, F // 2], ids=["narrow", "padded"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_point_rectified_without_kl_is_upstreams_trainer(form, k):
    """In float64: the same selections, and weights within 1e-10, over 100 steps.

    With a large k, rows have fewer positive features and are padded with zeros.
    """
    ours, theirs = to_float64(as_upstream(k=k)), to_float64(make_trainer(TopKTrainer, k=k))
    ours.form = StepForm(sparse_density=1.0 if form == "sparse" else 0.0)
    for step in range(100):
        x = data(seed=step, dtype=t.float64)
        with RecordedOps() as ops:
            ours.update(step, x.clone())
        assert ops.code_form == form
        theirs.update(step, x.clone())
        assert t.equal(ours.num_tokens_since_fired, theirs.num_tokens_since_fired)
    x = data(seed=1000, dtype=t.float64)
    assert t.equal(ours.ae.encode(x) != 0, theirs.ae.encode(x) != 0)
    for name, value in theirs.ae.state_dict().items():
        difference = (ours.ae.state_dict()[name] - value).abs().max()
        assert difference < (1e-5 if name == "threshold" else 1e-10), name  # kept in float32


@pytest.mark.parametrize("reads_count", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_auxk_is_upstreams(form, reads_count):
    """Upstream computes its AuxK in fp32, so the two agree to that. The GPU's form on the CPU."""
    ours, theirs = to_float64(as_upstream()), to_float64(make_trainer(TopKTrainer))
    density = 1.0 if form == "sparse" else 0.0
    ours.form = StepForm(sparse_density=density, reads_dead_count=reads_count)
    ours.dead_feature_threshold = theirs.dead_feature_threshold = 64
    for step in range(40):
        x = data(seed=step, dtype=t.float64)
        with RecordedOps() as ops:
            ours.update(step, x.clone())
        assert (ops.code_form, ops.counts["nonzero"] > 0) == (form, reads_count)
        theirs.update(step, x.clone())
    assert ours.dead_features == theirs.dead_features > 0
    for name, value in theirs.ae.state_dict().items():
        assert (ours.ae.state_dict()[name] - value).abs().max() < 1e-5, name


def test_one_float32_step_from_a_shared_state_is_upstreams_within_rounding():
    ours, theirs = as_upstream(), make_trainer(TopKTrainer)
    for step in range(20):
        theirs.update(step, data(seed=step))
    ours.ae.load_state_dict(theirs.ae.state_dict(), strict=False)
    groups = ours.optimizer.state_dict()["param_groups"]
    state = copy.deepcopy(theirs.optimizer.state_dict())
    ours.optimizer.load_state_dict(state | {"param_groups": groups})
    ours.optimizer.param_groups[0]["lr"] = theirs.optimizer.param_groups[0]["lr"]
    ours.update(20, data(seed=20))
    theirs.update(20, data(seed=20))
    for name, value in theirs.ae.state_dict().items():
        assert t.allclose(ours.ae.state_dict()[name], value, atol=2e-6), name


@pytest.mark.parametrize("step", [0, 15, 30, 60])
@pytest.mark.parametrize(
    "options",
    [
        {"noise_on": "selection", "noise_anneal_steps": 60, "kl_scope": "selected"},
        {"noise_on": "both", "noise_anneal_steps": 60},
        {"noise_on": "values", "rectify": True},
        {"posterior": "learned"},
        {"select_by": "magnitude", "noise_on": "selection", "prior_std": 1.7},
    ],
    ids=str,
)
def test_the_loss_is_the_equations_with_the_trainers_own_options(options, step):
    """At every step: tau(t) and s(t) are written out here."""
    trainer = to_float64(make_trainer(beta=0.3, kl_warmup_steps=20, **options))
    x = data(seed=step, dtype=t.float64)
    generator = t.Generator()
    generator.set_state(trainer.generator.get_state())
    names = [field.name for field in dataclasses.fields(PosteriorOptions)]
    posterior = PosteriorOptions(
        **{"sigma": 1.0} | {n: v for n, v in options.items() if n in names}
    )
    anneal = options.get("noise_anneal_steps")
    objective = StepObjective(
        k=4,
        posterior=posterior,
        options=ObjectiveOptions(beta=0.3, **{n: v for n, v in options.items() if n not in names}),
        kl_weight=0.3 * min(step / 20, 1),
        noise_scale=1.0 if anneal is None else max(0.0, 1 - step / anneal),
        auxk_alpha=0.0,
        top_k_aux=4,
        dead_feature_threshold=10**9,
        matmul_dtype=t.float64,
        sigma=t.tensor(posterior.sigma, dtype=t.float64),
        prior_std=t.tensor(posterior.prior_std, dtype=t.float64),
        log_var_limits=(t.tensor(-10.0).double(), t.tensor(4.0).double()),
        tokens_since_fired_F=t.zeros(F, dtype=t.long),
        generator=generator,
        form=StepForm(),
    )
    expected = dense_loss(x, trainer.ae.weights, objective)["loss"]
    assert trainer.loss(x, step).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [t.float32, t.bfloat16])
def test_loss_is_the_loss_update_descends(dtype):
    """`loss(x, step)` is differentiable, and gives what an identical trainer's update returns."""
    one, two = make_trainer(), make_trainer()
    x = data().to(dtype)
    one.ae.b_dec.data = two.ae.b_dec.data = t.full((D,), 0.1)
    loss = one.loss(x, 3)
    loss.backward()
    assert one.ae.encoder.weight.grad.abs().sum() > 0
    assert t.equal(loss.detach(), two.update(3, x))


# --- promises


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_logging_changes_nothing(posterior):
    logged, silent = make_trainer(posterior=posterior), make_trainer(posterior=posterior)
    for step in range(12):
        x = data(seed=step)
        log = logged.loss(x.clone(), step=step, logging=True)
        assert t.equal(log.f, logged.ae.encode(x))
        logged.update(step, x.clone())
        silent.update(step, x.clone())
    assert_same_weights(weights_of(logged), weights_of(silent))
    assert t.equal(logged.num_tokens_since_fired, silent.num_tokens_since_fired)
    assert t.equal(logged.generator.get_state(), silent.generator.get_state())


@pytest.mark.parametrize("select_by", ["value", "magnitude"])
def test_company_changes_nothing(select_by):
    alone, beside = (make_trainer(select_by=select_by) for _ in range(2))
    other = make_trainer(seed=5, k=7)
    for step in range(10):
        other.update(step, data(seed=step))
        beside.update(step, data(seed=step))
        t.randn(step)  # whatever else draws from torch's generator
        other.update(step, data(seed=step))
    for step in range(10):
        alone.update(step, data(seed=step))
    assert_same_weights(weights_of(alone), weights_of(beside))


def test_seeds_differ():
    one, two = make_trainer(seed=0), make_trainer(seed=1)
    assert not t.equal(one.ae.encoder.weight, two.ae.encoder.weight)
    assert not t.equal(one.generator.get_state(), two.generator.get_state())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 6])
def test_a_batch_that_is_not_finite_moves_nothing(bad, at):
    trainer = make_trainer(auxk_alpha=0.1)
    for step in range(at):
        trainer.update(step, data(seed=step))
    weights, fired = weights_of(trainer), trainer.num_tokens_since_fired.clone()
    x = data()
    x[3, 2] = bad
    trainer.update(at, x)
    assert_same_weights(weights_of(trainer), weights)
    assert t.equal(trainer.num_tokens_since_fired, fired)
    assert trainer.optimizer.skipped_steps == 1
    assert trainer.optimizer.first_skipped_step == at
    trainer.update(at + 1, data())
    assert all(value.isfinite().all() for value in weights_of(trainer).values())
    assert not t.equal(trainer.ae.encoder.weight, weights["encoder.weight"])


def test_activations_of_another_width_name_both_widths_and_the_hook():
    trainer = make_trainer(submodule_name="blocks.0.hook_resid_post")
    with pytest.raises(ConfigError, match=r"width 9 from blocks\.0.*activation_dim=8"):
        trainer.update(0, t.randn(4, 9))


def test_an_empty_batch_is_an_error():
    with pytest.raises(ConfigError, match="empty batch"):
        make_trainer().update(0, data()[:0])


@pytest.mark.parametrize(
    "options",
    [{}, {"posterior": "learned"}, {"posterior": "point", "rectify": True, "k": F - 1}],
    ids=str,
)
def test_a_loss_in_inference_mode_leaves_training_as_it_was(options):
    """In several blocks, which other threads write to."""
    watched, other = (make_trainer(dtype="bfloat16", **options) for _ in range(2))
    watched.form = other.form = StepForm(rows_at_once=4)
    for step in range(3):
        with t.inference_mode():
            watched.loss(data(), step, logging=True)
        watched.update(step, data(seed=step))
        other.update(step, data(seed=step))
    assert_same_weights(weights_of(watched), weights_of(other))


def test_zero_is_a_legal_beta_and_none_of_the_defaults_replaces_it():
    trainer = make_trainer(beta=0.0, auxk_alpha=0.0)
    assert (trainer.config["beta"], trainer.config["auxk_alpha"]) == (0.0, 0.0)


def test_config_builds_the_same_trainer_again():
    trainer = make_trainer(
        posterior="learned", beta=0.3, noise_anneal_steps=50, kl_scope="selected"
    )
    config = trainer.config
    assert (config.pop("trainer_class"), config.pop("dict_class")) == (
        "VariationalTopKTrainer",
        "VariationalTopKAutoEncoder",
    )
    again = VariationalTopKTrainer(**config)
    assert again.config == trainer.config
    assert_same_weights(weights_of(again), weights_of(trainer))


@pytest.mark.parametrize("noise_on", NOISE_ON)
def test_a_point_draws_nothing(noise_on):
    trainer = make_trainer(posterior="point", noise_on=noise_on)
    state = trainer.generator.get_state()
    for step in range(3):
        trainer.update(step, data(seed=step))
    assert t.equal(trainer.generator.get_state(), state)


def test_annealed_noise_is_gone_after_its_steps():
    trainer = make_trainer(noise_anneal_steps=10)
    state = trainer.generator.get_state()
    trainer.loss(data(), 10)
    assert t.equal(trainer.generator.get_state(), state), "no noise is drawn any more"
    trainer.loss(data(), 9)
    assert not t.equal(trainer.generator.get_state(), state)


def test_the_kl_keeps_the_unannealed_sigma():
    annealed, steady = (make_trainer(noise_anneal_steps=n, sigma=0.5) for n in (1, None))
    kl = [tr.loss(data(), 5, logging=True).losses["kl_loss"] for tr in (annealed, steady)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-6)


def test_logged_kl_and_noise_to_signal_are_what_they_say():
    trainer = make_trainer(sigma=0.5, prior_std=1.5)
    x = data()
    losses = trainer.loss(x, 50, logging=True).losses
    mu = trainer.ae.encode(x, return_topk=True)[3]
    kl = kl_divergence(Normal(mu, 0.5), Normal(t.zeros_like(mu), 1.5)).sum(-1).mean()
    assert losses["kl_loss"] == pytest.approx(kl.item(), rel=1e-5)
    signal = x.pow(2).sum(-1).mean().item()
    assert losses["noise_to_signal"] == pytest.approx(4 * 0.25 / signal, rel=1e-5)
    assert losses["mean_sigma"] == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_sigma_is_the_mean_standard_deviation_in_log_and_evaluation(dtype):
    trainer = make_trainer(posterior="learned", dtype=dtype)
    trainer.ae.log_var_encoder.weight.data.normal_(generator=t.Generator().manual_seed(1))
    x = data()
    logged = trainer.loss(x, 50, logging=True).losses
    std = (trainer.ae.log_var(x).double() / 2).exp()
    assert std.square().mean().sqrt() > 1.1 * std.mean(), "the case must tell them apart"
    assert logged["mean_sigma"] == pytest.approx(std.mean().item(), rel=1e-5)
    measurement = Measurement(trainer.ae)
    measurement.add(x)
    measured = computed(measurement.totals)
    for name in ("mean_sigma", "noise_to_signal"):
        assert logged[name] == pytest.approx(measured[name], rel=1e-5), name


def test_bf16_matmuls_keep_fp32_parameters():
    trainer = make_trainer(dtype="bfloat16", posterior="learned")
    for step in range(3):
        trainer.update(step, data(seed=step))
    assert all(p.dtype == t.float32 for p in trainer.ae.parameters())
    assert trainer.optimizer.state[trainer.ae.b_dec]["exp_avg"].dtype == t.float32


def test_bf16_rounds_the_products():
    fp32, bf16 = (
        make_trainer(dtype=dtype, posterior="point", beta=0.0).loss(data(), 0).item()
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < abs(bf16 - fp32) < 0.1 * fp32


def test_auxk_without_dead_features_is_zero_on_a_gpu_too():
    trainer = make_trainer()
    trainer.form = StepForm(reads_dead_count=False)
    with RecordedOps() as ops:
        trainer.update(0, data())
    assert ops.counts["nonzero"] == 0
    assert trainer.loss(data(), 1, logging=True).losses["auxk_loss"] == 0


def test_decoder_columns_stay_unit_norm():
    trainer = make_trainer()
    for step in range(30):
        trainer.update(step, data(seed=step))
    norms = trainer.ae.decoder.weight.norm(dim=0)
    assert t.allclose(norms, t.ones(F), atol=1e-5)


def test_the_defaults_are_those_of_the_options():
    trainer = make_trainer()
    assert trainer.posterior_options == PosteriorOptions(sigma=1.0)
    assert dataclasses.asdict(trainer.options)["beta"] == 1.0


def test_the_model_gets_every_option_of_the_posterior():
    given = {"noise_on": "values", "sigma": 0.3, "prior_std": 0.7, "select_by": "magnitude"}
    ae = make_trainer(**given, rectify=True).ae
    assert (ae.noise_on, ae.select_by, ae.rectify, ae.posterior_kind) == (
        "values",
        "magnitude",
        True,
        "fixed",
    )
    assert (float(ae.sigma), float(ae.prior_std)) == (pytest.approx(0.3), pytest.approx(0.7))
    learned = make_trainer(posterior="learned", log_var_init=-3.0).ae
    assert learned.posterior_kind == "learned"
    assert t.equal(learned.log_var(data()), t.full((len(data()), F), -3.0))
    covered = {*given, "rectify", "posterior", "log_var_init"}
    assert covered == {field.name for field in dataclasses.fields(PosteriorOptions)}
