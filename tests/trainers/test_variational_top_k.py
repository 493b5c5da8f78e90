"""The vSAE: its model against upstream's and its posterior's moments; its trainer against upstream's."""

import copy
import dataclasses
import logging
import math
import re

import pytest
import torch as t
from dense_reference import compiled_noise, dense_loss
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from hypothesis import given, settings
from hypothesis import strategies as st
from measurement import Measurement
from small_trainers import assert_same, batch, built, in_float64, weights_of
from torch.utils.flop_counter import FlopCounterMode
from variational_trainers import NOISE_ON, POSTERIORS, D, F, as_upstream, data, make_trainer

from dictionary_learning_ext import VariationalTopKAutoEncoder
from dictionary_learning_ext.config.sae import TopKPosteriorOptions, VSAETopKConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.evaluation.metrics import computed
from dictionary_learning_ext.trainers import step as definition
from dictionary_learning_ext.trainers.base import batch_metrics
from dictionary_learning_ext.trainers.kernels import compiled
from dictionary_learning_ext.trainers.kernels import step as compiled_step
from dictionary_learning_ext.trainers.posterior import fixed_variance_kl
from dictionary_learning_ext.trainers.step import StepObjective

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
    assert ours(data().bfloat16()).dtype == t.float32


@pytest.mark.parametrize("select_by", ["value", "magnitude"])
@pytest.mark.parametrize("noise_on", NOISE_ON)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_sample_is_drawn_when_asked_for_alike_for_contexts_and_tokens(
    posterior, noise_on, select_by
):
    options = {"posterior": posterior, "noise_on": noise_on, "select_by": select_by}
    sae, x = VariationalTopKAutoEncoder(D, F, 4, **options), data()

    def sampled(x, seed):
        return sae.encode(x, sample=True, generator=t.Generator().manual_seed(seed))

    assert t.equal(sae.encode(x), sae.encode(x))
    assert t.equal(sampled(x, 1), sampled(x, 1))
    assert t.equal(sampled(x, 1), sampled(x, 2)) == (posterior == "point")
    assert (sampled(x, 1) != 0).sum(-1).eq(4).all()
    assert t.equal(sampled(x.view(4, 8, D), 1), sampled(x, 1).view(4, 8, F))


def test_noise_on_says_what_a_sample_changes():
    x, found = data(), {}
    for noise_on in NOISE_ON:
        t.manual_seed(0)
        sae = VariationalTopKAutoEncoder(D, F, 4, noise_on=noise_on, sigma=0.5)
        sample = sae.encode(x, sample=True, generator=t.Generator().manual_seed(1))
        on, mu = sample != 0, sae.encode(x, return_topk=True)[3]
        found[noise_on] = t.equal(on, sae.encode(x) != 0), t.allclose(sample[on], mu[on])
    assert found == {"both": (False, False), "values": (True, False), "selection": (False, True)}


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["fixed", "learned"])
def test_samples_have_the_posteriors_moments(posterior):
    """With k = F nothing is selected away: z itself is seen."""
    sae = VariationalTopKAutoEncoder(D, F, F, posterior=posterior, sigma=0.7, log_var_init=-1.0)
    x = data(batch=4)
    generator = t.Generator().manual_seed(0)
    draws = t.stack([sae.encode(x, sample=True, generator=generator) for _ in range(4000)])
    mu = sae.encode(x)
    std = {"fixed": t.tensor(0.7), "learned": t.tensor(math.exp(-0.5))}[posterior]
    assert ((draws.mean(0) - mu).abs() < 5 * std / math.sqrt(4000)).all()
    t.testing.assert_close(draws.std(0), std.expand_as(mu), atol=0, rtol=0.07)
    t.testing.assert_close(sae.posterior(x).std.expand_as(mu), std.expand_as(mu))


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.01, 100.0),
    posterior=st.sampled_from(POSTERIORS),
    noise_on=st.sampled_from(NOISE_ON),
    selection=st.sampled_from([(True, "value"), (False, "value"), (False, "magnitude")]),
    seed=st.integers(0, 1000),
)
def test_scaling_is_equivariant(scale, posterior, noise_on, selection, seed):
    """encode(c x) = c encode(x), sampled or not, by threshold or not, and the KL is unchanged."""
    options = dict(zip(("rectify", "select_by"), selection, strict=True))
    trainer = make_trainer(posterior=posterior, noise_on=noise_on, sigma=0.3, **options)
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

    before, kl_before = everything(x), sae.posterior(x).kl
    sae.scale_biases(scale)
    after, kl_after = everything(x * scale), sae.posterior(x * scale).kl
    for one, other in zip(before, after, strict=True):
        assert t.allclose(one * scale, other, rtol=1e-11, atol=1e-13 * scale)
    t.testing.assert_close(kl_after, kl_before, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_from_pretrained_needs_no_other_file(posterior, tmp_path):
    trainer = make_trainer(posterior=posterior, noise_on="values", rectify=True, sigma=0.4)
    for i in range(12):
        trainer.update(i, data(seed=i))
    trainer.ae.scale_biases(3.0)
    t.save(trainer.ae.state_dict(), tmp_path / "ae.pt")
    loaded = VariationalTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt", k=4)
    assert_same(loaded.state_dict(), dict(trainer.ae.state_dict()))
    x, noise = data(), t.Generator()
    assert t.equal(loaded.encode(x), trainer.ae.encode(x))
    assert t.equal(
        loaded.encode(x, sample=True, generator=noise.manual_seed(0)),
        trainer.ae.encode(x, sample=True, generator=noise.manual_seed(0)),
    )


def test_by_magnitude_the_largest_are_kept_with_their_signs(tmp_path):
    t.save(VariationalTopKAutoEncoder(D, F, 4, select_by="magnitude").state_dict(), tmp_path / "x")
    sae = VariationalTopKAutoEncoder.from_pretrained(tmp_path / "x")
    for x in (data(), data().view(4, 8, D)):
        f, values, indices, mu = sae.encode(x, return_topk=True)
        kept = t.zeros_like(mu, dtype=t.bool).scatter(-1, mu.abs().topk(4).indices, True)
        assert t.equal(f, mu * kept)
        assert t.equal(values, mu.gather(-1, indices))
        assert (values < 0).any()
    noise = t.Generator().manual_seed(1)
    sampled = sae.encode(data(), sample=True, generator=noise)
    z = mu.view(32, F) + t.empty(32, F).normal_(generator=noise.manual_seed(1))
    kept = t.zeros_like(z, dtype=t.bool).scatter(-1, z.abs().topk(4).indices, True)
    assert t.allclose(sampled, z * kept, atol=1e-6)


def test_by_magnitude_the_threshold_is_one_of_magnitudes():
    trainer = make_trainer(posterior="point", select_by="magnitude", threshold_start_step=0)
    sae = trainer.ae
    with t.no_grad():  # step 1 sets it, and its learning rate is 0
        smallest = sae.encode(data(), return_topk=True)[1].abs().amin(1).mean()
    trainer.update(1, data())
    assert sae.threshold.item() == pytest.approx(smallest.item(), rel=1e-5)
    mu = sae.encode(data(), return_topk=True)[3]
    features = sae.encode(data(), use_threshold=True)
    assert t.equal(features, mu * (mu.abs() > sae.threshold))
    assert (features < 0).any()


def test_threshold_selects_by_mean_and_must_be_set():
    sae = make_trainer().ae
    with pytest.raises(ConfigError, match="use_threshold"):
        sae.encode(data(), use_threshold=True)
    mu = sae.encode(data(), return_topk=True)[3]
    at = mu[mu > 0.3].min().detach()  # one mean is exactly there: as upstream, it is not selected
    sae.threshold = at
    features = sae.encode(data(), use_threshold=True)
    assert t.equal(features, mu * (mu > at))
    assert (features != 0).sum() == (mu >= at).sum() - 1
    with pytest.raises(ConfigError, match="sample"):
        sae.encode(data(), use_threshold=True, sample=True)


def test_the_model_gets_every_option_of_the_posterior():
    given = {"noise_on": "values", "sigma": 0.3, "prior_std": 0.7, "select_by": "magnitude"}
    ae = make_trainer(**given, rectify=True).ae
    found = (ae.noise_on, ae.select_by, ae.rectify, ae.posterior_kind)
    assert found == ("values", "magnitude", True, "fixed")
    assert (float(ae.sigma), float(ae.prior_std)) == (pytest.approx(0.3), pytest.approx(0.7))
    assert float(VariationalTopKAutoEncoder(D, F, 4, sigma=0.0, posterior="point").sigma) == 0
    learned = make_trainer(posterior="learned", log_var_init=-3.0).ae
    assert learned.posterior_kind == "learned"
    assert t.equal(learned.log_var(data()), t.full((len(data()), F), -3.0))
    covered = {*given, "rectify", "posterior", "log_var_init"} - {"sigma"}
    assert covered == {field.name for field in dataclasses.fields(TopKPosteriorOptions)}


# --- the trainer, against upstream's


@pytest.mark.slow
@pytest.mark.parametrize("k", [4, F // 2], ids=["narrow", "padded"])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_point_rectified_without_kl_is_upstreams_trainer(is_sparse, k, monkeypatch):
    """In float64: the same selections, and weights within 1e-10, over 100 steps.

    With a large k, rows have fewer positive features and are padded with zeros.
    """
    ours, theirs = in_float64(as_upstream(k=k)), in_float64(make_trainer(TopKTrainer, k=k))
    monkeypatch.setattr(definition, "dense_from", lambda *_: t.inf if is_sparse else 0.0)
    for i in range(100):
        x = data(seed=i, dtype=t.float64)
        ours.update(i, x.clone())
        theirs.update(i, x.clone())
        assert t.equal(ours.num_tokens_since_fired, theirs.num_tokens_since_fired)
    x = data(seed=1000, dtype=t.float64)
    assert t.equal(ours.ae.encode(x) != 0, theirs.ae.encode(x) != 0)
    for name, value in theirs.ae.state_dict().items():
        difference = (ours.ae.state_dict()[name] - value).abs().max()
        assert difference < (1e-5 if name == "threshold" else 1e-10), name  # kept in float32


def test_auxk_is_upstreams():
    """Upstream computes its AuxK in fp32, so the two agree to that."""
    ours, theirs = in_float64(as_upstream()), in_float64(make_trainer(TopKTrainer))
    assert ours.loss(data(), 1, logging=True).losses["auxk_loss"] == 0, "none is dead yet"
    ours.dead_feature_threshold = theirs.dead_feature_threshold = 64
    for i in range(40):
        x = data(seed=i, dtype=t.float64)
        ours.update(i, x.clone())
        theirs.update(i, x.clone())
    assert ours.dead_features == theirs.dead_features > 0
    for name, value in theirs.ae.state_dict().items():
        assert (ours.ae.state_dict()[name] - value).abs().max() < 1e-5, name


def test_one_float32_step_from_a_shared_state_is_upstreams_within_rounding():
    ours, theirs = as_upstream(), make_trainer(TopKTrainer)
    for i in range(20):
        theirs.update(i, data(seed=i))
    ours.ae.load_state_dict(theirs.ae.state_dict(), strict=False)
    own = ours.optimizer.state_dict()
    state = copy.deepcopy(theirs.optimizer.state_dict())
    ours.optimizer.load_state_dict(own | state | {"param_groups": own["param_groups"]})
    ours.optimizer.optimizer.param_groups[0]["lr"] = theirs.optimizer.param_groups[0]["lr"]
    ours.update(20, data(seed=20))
    theirs.update(20, data(seed=20))
    for name, value in theirs.ae.state_dict().items():
        assert t.allclose(ours.ae.state_dict()[name], value, atol=2e-6), name


# --- its loss: schedules, noise, KL, float64


@pytest.mark.parametrize("at", [0, 15, 30, 60])
@pytest.mark.parametrize(
    "options",
    [
        {"noise_on": "selection", "noise_anneal_steps": 60, "kl_scope": "selected"},
        {"noise_on": "both", "noise_anneal_steps": 60},
        {"noise_on": "values", "rectify": True},
        {"posterior": "learned", "kl_schedule": "cosine"},
        {"select_by": "magnitude", "noise_on": "selection", "prior_std": 1.7},
        {"posterior": "point", "kl_schedule": "constant", "kl_scope": "selected"},
    ],
    ids=str,
)
def test_the_loss_is_the_equations_with_the_trainers_own_options(options, at):
    """At every step: tau(t) and s(t) are written out here."""
    schedule, progress = options.get("kl_schedule", "linear"), min(at / 20, 1)
    warmup = {} if schedule == "constant" else {"kl_warmup_steps": 20}
    trainer = in_float64(make_trainer(beta=0.3, **warmup, **options))
    x = data(seed=at, dtype=t.float64)
    generator = t.Generator()
    generator.set_state(trainer.generator.get_state())
    own = dict(options)
    anneal = own.pop("noise_anneal_steps", None)
    plain = {"sigma": 1.0, "beta": 0.3, "noise_on": "both", "kl_scope": "all"}
    settings = VSAETopKConfig(**plain | own)
    objective = StepObjective(
        k=4,
        settings=settings,
        kl_of_sigma=fixed_variance_kl(1.0, 1.0) if settings.posterior == "fixed" else 0.0,
        kl_weight=0.3
        * {"constant": 1, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}[
            schedule
        ],
        noise_scale=1.0 if anneal is None else max(0.0, 1 - at / anneal),
        auxk_alpha=0.0,
        top_k_aux=4,
        dead_feature_threshold=10**9,
        matmul_dtype=t.float64,
        sigma=t.tensor(settings.sigma, dtype=t.float64),
        log_var_limits=(t.tensor(-10.0).double(), t.tensor(4.0).double()),
        tokens_since_fired_F=t.zeros(F, dtype=t.long),
        generator=generator,
    )
    expected = dense_loss(x, trainer.ae.weights, objective)
    logged = trainer.loss(x, at, logging=True).losses
    for name in ("loss", "l2_loss", "kl_loss"):
        assert logged[name] == pytest.approx(getattr(expected, name).item(), rel=1e-6), name
    assert trainer.loss(x, at).item() == logged["loss"]


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize(
    "noise",
    [{"posterior": "point"}]
    + [
        {"posterior": p, "noise_on": n} for p in ("fixed", "learned") for n in ("both", "selection")
    ],
    ids=str,
)
def test_a_float64_step_is_the_float32_step_without_its_rounding(noise, rectify, monkeypatch):
    """With the noise that the compiled form draws in float32."""

    def noise_of(mu, how):
        return compiled_noise(*mu.shape, how.generator).to(mu.dtype)

    monkeypatch.setattr(definition, "noise_of", noise_of)
    options = noise | {"rectify": rectify, "kl_schedule": "constant", "lr": 1e-2, "warmup_steps": 0}
    wide, narrow = in_float64(built("vsae_top_k", **options)), built("vsae_top_k", **options)
    for i in range(3):
        exact = wide.update(i, batch(i).double())
        assert exact.dtype == t.float64
        assert narrow.update(i, batch(i)).item() == pytest.approx(exact.item(), rel=1e-5)
    for name, value in wide.ae.named_parameters():
        assert value.dtype == t.float64
        assert value.grad is None
        # Adam divides by the gradient's size, so a rounding near 0 can move a weight by lr.
        close = (narrow.ae.state_dict()[name].double() - value).abs() < 1e-4
        assert close.double().mean() > 0.99, name


@pytest.mark.parametrize(
    ("options", "at", "draws"),
    [({"posterior": "point", "noise_on": n}, 0, False) for n in NOISE_ON]
    + [({"noise_anneal_steps": 10}, 10, False), ({"noise_anneal_steps": 10}, 9, True)],
    ids=str,
)
def test_noise_is_drawn_while_there_is_some(options, at, draws):
    trainer = make_trainer(**options)
    state = trainer.generator.get_state()
    trainer.loss(data(), at)
    assert t.equal(trainer.generator.get_state(), state) != draws


def test_the_kl_keeps_the_unannealed_sigma():
    annealed, steady = (make_trainer(noise_anneal_steps=n, sigma=0.5) for n in (1, None))
    kl = [tr.loss(data(), 5, logging=True).losses["kl_loss"] for tr in (annealed, steady)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-6)


@pytest.mark.parametrize("scope", ["all", "selected"])
def test_a_kl_without_weight_is_computed_for_the_log_alone(scope, monkeypatch):
    trainer = built("vsae_top_k", posterior="point", beta=0.0, kl_scope=scope)
    real, calls = compiled_step._batch_kl, []
    monkeypatch.setattr(compiled_step, "_batch_kl", lambda *given: calls.append(1) or real(*given))
    trainer.update(0, batch(0))
    assert not calls
    assert trainer.loss(batch(0), 0, logging=True).losses["kl_loss"] > 0
    weighed = built("vsae_top_k", posterior="point", beta=1.0, kl_scope=scope, kl_warmup_steps=1)
    calls.clear()
    weighed.update(5, batch(0))
    assert calls


# --- what it logs and counts


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


@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({"kl_scope": "selected"}, 5),
        ({"kl_scope": "selected", "posterior": "learned"}, 7),
        ({"kl_scope": "all"}, 5),
        ({"kl_scope": "all", "posterior": "learned"}, 7),
    ],
    ids=str,
)
def test_a_log_computes_nothing_twice(options, products):
    """The step's means, reconstruction and AuxK, the means and reconstruction of the code by the mean, and a learned
    sigma's log-variances, for the step and for their mean."""
    options = {"kl_schedule": "constant"} | options
    trainer = make_trainer(activation_dim=64, dict_size=256, k=8, **options)
    x = t.randn(32, 64, generator=t.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        kl = trainer.metrics(1, x)["kl_loss"]
    assert counter.get_total_flops() < (products + 0.5) * 2 * 32 * 64 * 256
    if options["kl_scope"] == "all":
        with t.no_grad():
            expected = trainer.ae.posterior(x).kl.sum(-1).mean().item()
        assert kl == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"posterior": "fixed", "rectify": True},
        {"posterior": "learned", "rectify": True, "select_by": "magnitude", "k": 12},
        {"posterior": "point", "select_by": "magnitude"},
        {"posterior": "point", "rectify": True, "dtype": "bfloat16", "k": 12},
        {"posterior": "learned", "dtype": "bfloat16"},
        {"posterior": "fixed", "select_by": "magnitude", "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_log_says_how_the_code_by_the_mean_reconstructs(options):
    trainer = built("vsae_top_k", **options)
    for i in range(3):
        trainer.update(i, batch(i))
    x = batch(3)
    x[0] = trainer.ae.b_dec.detach()  # a row of which a ReLU keeps less than K
    x[1:] -= 1
    logged = trainer.metrics(3, x)
    with t.no_grad():
        expected = batch_metrics(x, *trainer.ae(x, output_features=True))
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_what_is_logged_and_kept_in_float64_is_not_rounded_to_float32():
    options = {"posterior": "learned", "log_var_init": -0.7}
    trainer, fresh = (in_float64(built("vsae_top_k", **options)) for _ in range(2))
    x = batch(0).double() + 1 / 3
    losses = trainer.loss(x, 0, logging=True).losses
    assert losses["mean_sigma"] == pytest.approx(math.exp(-0.35), rel=1e-7)  # set in float32
    sigma = trainer.ae.posterior(x).std
    assert losses["mean_sigma"] == pytest.approx(sigma.mean().item(), rel=1e-13)
    energy = x.square().sum(1).mean().item()
    expected = int(trainer.ae.k) * sigma.square().mean().item() / energy
    assert losses["noise_to_signal"] == pytest.approx(expected, rel=1e-13)
    trainer.update(trainer.threshold_start_step + 1, x)
    top_BK = fresh.ae.encode(x, return_topk=True)[1]
    smallest = top_BK.masked_fill(top_BK <= 0, t.inf).amin(1).mean().item()
    assert trainer.ae.threshold.item() == pytest.approx(smallest, rel=1e-13)


def test_a_batch_without_a_positive_mean_leaves_the_threshold_as_it_was():
    trainer = built("vsae_top_k", posterior="point", lr=1e-6)
    start = trainer.threshold_start_step
    assert trainer.ae.threshold == -1

    def update(at, shift):
        bias = trainer.ae.encoder.bias.data.clone()
        trainer.ae.encoder.bias.data += shift
        trainer.update(at, batch(at))
        trainer.ae.encoder.bias.data.copy_(bias)
        return trainer.ae.threshold.item()

    assert update(start, 0.0) == -1, "not yet"
    assert update(start + 1, -1e3) == -1, "no row has a positive mean"
    first = update(start + 2, 0.0)
    assert first > 0
    assert update(start + 3, -1e3) == first
    later = update(start + 4, 5.0)
    assert first < later < first + 0.1, "a running mean"


def test_a_feature_is_dead_after_as_many_tokens_as_the_constructor_was_told():
    trainer = built("vsae_top_k", dead_feature_threshold=50, posterior="point")
    x = 5 * batch(0)[:1] + 0.01 * batch(1)  # all rows select nearly the same features
    for i in range(1, 5):  # not step 0, which sets b_dec
        loss = trainer.loss(x, i, logging=True).losses["auxk_loss"]
        trainer.update(i, x)
        is_after = len(x) * i >= 50
        assert (loss > 0) == (trainer.dead_features > 0) == is_after, i
    assert trainer.dead_features >= trainer.ae.dict_size - int(trainer.ae.k) - 4


@pytest.mark.parametrize(
    "options",
    [{}, {"posterior": "learned"}, {"posterior": "point", "rectify": True, "k": F - 1}],
    ids=str,
)
def test_a_loss_in_inference_mode_leaves_training_as_it_was(options, monkeypatch):
    """In several blocks, which other threads write to."""
    monkeypatch.setattr(compiled, "BLOCK_ROWS", 4)
    watched, other = (make_trainer(dtype="bfloat16", **options) for _ in range(2))
    for i in range(3):
        with t.inference_mode():
            watched.loss(data(), i, logging=True)
        watched.update(i, data(seed=i))
        other.update(i, data(seed=i))
    assert_same(weights_of(watched), weights_of(other))


# --- warnings


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"sigma": 2.0}, "sigma"),
        ({"posterior": "learned", "log_var_init": 2.0}, "log_var_init"),
    ],
    ids=str,
)
def test_noise_that_drowns_the_activations_is_warned_of_once_with_what_to_set(
    options, instead, caplog
):
    options = {"noise_anneal_steps": None, **options}
    x = batch(0) / 4  # E||x||^2 = 1
    trainer = built("vsae_top_k", **options)
    ratio = trainer.loss(x, 0, logging=True).losses["noise_to_signal"]
    assert ratio > 0.2
    trainer.update(0, x)
    trainer.update(1, x)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"noise_to_signal={ratio:.3g}" in record.message
    ((name, value, steps),) = re.findall(
        r"set (\w+)=(\S+) .*noise_anneal_steps=(\d+)$", record.message
    )
    assert (name, int(steps)) == (instead, 50)
    advised = built("vsae_top_k", **options | {name: float(value)})
    logged = advised.loss(x, 0, logging=True).losses
    assert logged["noise_to_signal"] == pytest.approx(0.1, rel=0.02)
