"""The model and the trainer: against upstream's, under scaling, in company, in bf16."""

import copy
import dataclasses
import math

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_ops import RecordedOps
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext import VariationalTopKAutoEncoder, VariationalTopKTrainer
from dictionary_learning_ext.config.options import LOG_VAR_LIMITS, PosteriorOptions
from dictionary_learning_ext.errors import CheckpointError, ConfigError, UserError
from dictionary_learning_ext.evaluation.measure import Measurement
from dictionary_learning_ext.evaluation.metrics import computed
from dictionary_learning_ext.trainers.kernels.step_form import StepForm

D, F = 8, 48
POSTERIORS = ["fixed", "learned", "point"]
NOISE_ON = ["both", "values", "selection"]


def data(batch=32, seed=0, dtype=t.float32, width=D):
    """Activations with structure: sparse sums of a few directions, and noise."""
    generator = t.Generator().manual_seed(seed)
    directions = t.randn(3 * width, width, generator=t.Generator().manual_seed(99))
    on = t.rand(batch, 3 * width, generator=generator) < 0.1
    strengths = t.rand(batch, 3 * width, generator=generator) * on
    noise = t.randn(batch, width, generator=generator)
    return (strengths @ directions + 0.1 * noise + 0.5).to(dtype)


def make_trainer(cls=VariationalTopKTrainer, **changes):
    arguments = {
        "steps": 200,
        "activation_dim": D,
        "dict_size": F,
        "k": 4,
        "layer": 0,
        "lm_name": "tiny",
        "lr": 1e-3,
        "warmup_steps": 10,
        "threshold_start_step": 5,
        "seed": 0,
        "device": "cpu",
    }
    return cls(**arguments | changes)


def as_upstream(**changes):
    """Our trainer, configured to be upstream's."""
    return make_trainer(posterior="point", rectify=True, beta=0.0, **changes)


def to_float64(trainer):
    trainer.ae.double()
    # Adam's state is made at the first step, in the parameters' dtype.
    return trainer


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.ae.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert t.equal(value, other[name]), name


# --- the model


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_initial_weights_are_upstreams_to_the_bit(posterior):
    ours, theirs = make_trainer(posterior=posterior).ae, make_trainer(TopKTrainer).ae
    for name, value in theirs.state_dict().items():
        assert t.equal(ours.state_dict()[name], value), name


def test_encode_equals_upstreams_when_rectified():
    theirs = AutoEncoderTopK(D, F, 4)
    ours = VariationalTopKAutoEncoder(D, F, 4, rectify=True)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    for x in (data(), data().view(4, 8, D)):
        assert t.allclose(ours.encode(x), theirs.encode(x), atol=1e-6)
        assert t.allclose(ours(x), theirs(x), atol=1e-6)
        x_hat, f = ours(x, output_features=True)
        assert f.shape == (*x.shape[:-1], F)
        assert t.allclose(x_hat, ours.decode(f))


@pytest.mark.parametrize("noise_on", NOISE_ON)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_encode_is_deterministic_unless_a_sample_is_asked_for(posterior, noise_on):
    sae = VariationalTopKAutoEncoder(D, F, 4, posterior=posterior, noise_on=noise_on)
    x = data()
    assert t.equal(sae.encode(x), sae.encode(x))
    one, two = (sae.encode(x, sample=True, generator=t.Generator().manual_seed(i)) for i in (1, 2))
    again = sae.encode(x, sample=True, generator=t.Generator().manual_seed(1))
    assert t.equal(one, again)
    assert t.equal(one, two) == (posterior == "point")
    assert (one != 0).sum(-1).eq(4).all()


def test_noise_on_says_what_a_sample_changes():
    x = data()
    mean_code, samples = {}, {}
    for noise_on in NOISE_ON:
        t.manual_seed(0)
        sae = VariationalTopKAutoEncoder(D, F, 4, noise_on=noise_on, sigma=0.5)
        mean_code[noise_on] = sae.encode(x)
        samples[noise_on] = sae.encode(x, sample=True, generator=t.Generator().manual_seed(1))
        mu = sae.encode(x, return_topk=True)[3]
        on = samples[noise_on] != 0
        same_set = t.equal(on, mean_code[noise_on] != 0)
        same_values = t.allclose(samples[noise_on][on], mu[on])
        assert (same_set, same_values) == {
            "both": (False, False),
            "values": (True, False),
            "selection": (False, True),
        }[noise_on]


@pytest.mark.parametrize("posterior", ["fixed", "learned"])
def test_samples_have_the_posteriors_moments(posterior):
    """With k = F nothing is selected away: z itself is seen."""
    sae = VariationalTopKAutoEncoder(D, F, F, posterior=posterior, sigma=0.7, log_var_init=-1.0)
    x = data(batch=4)
    generator = t.Generator().manual_seed(0)
    draws = t.stack([sae.encode(x, sample=True, generator=generator) for _ in range(4000)])
    mu, std = sae.encode(x), 0.7 if posterior == "fixed" else math.exp(-0.5)
    assert t.allclose(draws.mean(0), mu, atol=5 * std / math.sqrt(4000))
    assert t.allclose(draws.std(0), t.full_like(mu, std), atol=0.05)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.01, 100.0),
    posterior=st.sampled_from(POSTERIORS),
    noise_on=st.sampled_from(NOISE_ON),
    rectify=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scaling_is_equivariant(scale, posterior, noise_on, rectify, seed):
    """encode(c x) = c encode(x), sampled or not, by threshold or not, and the KL is unchanged."""
    trainer = make_trainer(posterior=posterior, noise_on=noise_on, rectify=rectify, sigma=0.3)
    sae = trainer.ae.double()
    generator = t.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data += 0.1 * t.randn(parameter.shape, generator=generator, dtype=t.float64)
    sae.threshold = t.tensor(0.2, dtype=t.float64)
    x = data(seed=seed, dtype=t.float64)

    def everything(x):
        noise = t.Generator().manual_seed(1)
        return (
            sae.encode(x),
            sae.encode(x, sample=True, generator=noise),
            sae.encode(x, use_threshold=True),
            sae(x),
        )

    def kl(x):
        return trainer.loss(x, 50, logging=True).losses["kl_loss"]

    before, kl_before = everything(x), kl(x)
    sae.scale_biases(scale)
    after, kl_after = everything(x * scale), kl(x * scale)
    for one, other in zip(before, after, strict=True):
        assert t.allclose(one * scale, other, rtol=1e-11, atol=1e-13 * scale)
    assert kl_after == pytest.approx(kl_before, rel=1e-11)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_from_pretrained_needs_no_other_file(posterior, tmp_path):
    trainer = make_trainer(posterior=posterior, noise_on="values", rectify=True, sigma=0.4)
    for step in range(12):
        trainer.update(step, data(seed=step))
    trainer.ae.scale_biases(3.0)
    t.save(trainer.ae.state_dict(), tmp_path / "ae.pt")
    loaded = VariationalTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt", k=4)
    assert_same_weights(loaded.state_dict(), trainer.ae.state_dict())
    x, noise = data(), t.Generator()
    assert t.equal(loaded.encode(x), trainer.ae.encode(x))
    assert t.equal(
        loaded.encode(x, sample=True, generator=noise.manual_seed(0)),
        trainer.ae.encode(x, sample=True, generator=noise.manual_seed(0)),
    )


def test_from_pretrained_refuses_another_class_and_another_k(tmp_path):
    t.save(AutoEncoderTopK(D, F, 4).state_dict(), tmp_path / "topk.pt")
    with pytest.raises(CheckpointError, match="load_dictionary"):
        VariationalTopKAutoEncoder.from_pretrained(tmp_path / "topk.pt")
    t.save(VariationalTopKAutoEncoder(D, F, 4).state_dict(), tmp_path / "ae.pt")
    with pytest.raises(ConfigError, match="k=5: expected 4"):
        VariationalTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt", k=5)


def test_threshold_selects_by_mean_and_must_be_set():
    sae = make_trainer().ae
    with pytest.raises(ConfigError, match="threshold"):
        sae.encode(data(), use_threshold=True)
    mu = sae.encode(data(), return_topk=True)[3]
    at = mu[mu > 0.3].min().detach()  # one mean is exactly there: as upstream, it is not selected
    sae.threshold = at
    features = sae.encode(data(), use_threshold=True)
    assert t.equal(features, mu * (mu > at))
    assert (features != 0).sum() == (mu >= at).sum() - 1
    with pytest.raises(ConfigError, match="sample=False"):
        sae.encode(data(), use_threshold=True, sample=True)


def test_bf16_activations_meet_fp32_weights():
    sae = VariationalTopKAutoEncoder(D, F, 4)
    assert sae(data().bfloat16()).dtype == t.float32


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": F + 1},
        {"posterior": "gaussian"},
        {"noise_on": "all"},
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"prior_std": 0.0},
        {"log_var_init": LOG_VAR_LIMITS[1] + 1},
        {"beta": -0.1},
        {"kl_scope": "some"},
        {"kl_schedule": "sine"},
        {"kl_warmup_steps": -1},
        {"kl_cycle_steps": 0},
        {"noise_anneal_steps": 0},
        {"noise_anneal_steps": -1},
        {"free_bits": -1.0},
        {"free_bits": 1.0, "kl_scope": "selected"},
        {"auxk_alpha": -1.0},
        {"dead_feature_threshold": 0},
        {"dtype": "float16"},
        {"beta": math.nan},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make_trainer(**wrong)


# --- the trainer against upstream's


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


def test_company_changes_nothing():
    alone, beside, other = make_trainer(), make_trainer(), make_trainer(seed=5, k=7)
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


def test_posterior_options_are_the_models_arguments():
    """The trainer hands them on by name; a default that differs would be silent."""
    trainer = make_trainer()
    assert trainer.posterior_options == PosteriorOptions()
    assert dataclasses.asdict(trainer.options)["beta"] == 1.0
