"""The model: what it encodes, against upstream's, under scaling, saved and loaded."""

import math

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from hypothesis import given, settings
from hypothesis import strategies as st
from variational_trainers import (
    NOISE_ON,
    POSTERIORS,
    D,
    F,
    assert_same_weights,
    data,
    make_trainer,
)

from dictionary_learning_ext import VariationalTopKAutoEncoder
from dictionary_learning_ext.config.sae import LOG_VAR_LIMITS
from dictionary_learning_ext.errors import CheckpointError, ConfigError, UserError


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


@pytest.mark.parametrize("select_by", ["value", "magnitude"])
@pytest.mark.parametrize("noise_on", NOISE_ON)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_sample_of_contexts_is_that_of_their_tokens(posterior, noise_on, select_by):
    sae = VariationalTopKAutoEncoder(
        D, F, 4, posterior=posterior, noise_on=noise_on, select_by=select_by
    )
    x = data()
    flat, contexts = (
        sae.encode(each, sample=True, generator=t.Generator().manual_seed(1))
        for each in (x, x.view(4, 8, D))
    )
    assert t.equal(contexts, flat.view(4, 8, F))


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


def test_an_sae_with_a_learned_prior_is_refused(tmp_path):
    state = VariationalTopKAutoEncoder(D, F, 4).state_dict()
    t.save(state | {"prior_std": t.ones(F)}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match=r"ae.pt: prior_std has shape.*no longer supported"):
        VariationalTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt")


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
        {"noise_anneal_steps": 0},
        {"noise_anneal_steps": -1},
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
