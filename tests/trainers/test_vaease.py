"""VAEase: against its equations written out, under scaling, on planted data, in upstream's loop."""

import math

import pytest
import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from hypothesis import given, settings
from hypothesis import strategies as st
from measurement import Measurement
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext import VAEase, VAEaseTrainer, load_dictionary
from dictionary_learning_ext.evaluation.metrics import computed
from dictionary_learning_ext.run_folder.weights import for_raw_activations, save_weights

D, F = 8, 20


def data(batch=32, seed=0, dtype=t.float32):
    generator = t.Generator().manual_seed(seed)
    return (2 * t.randn(batch, D, generator=generator) + 0.5).to(dtype)


def make_trainer(**changes):
    arguments = {
        "steps": 200,
        "activation_dim": D,
        "dict_size": F,
        "layer": 0,
        "lm_name": "tiny",
        "warmup_steps": 10,
        "seed": 0,
        "device": "cpu",
    }
    return VAEaseTrainer(**arguments | changes)


def disturbed(seed=0, dtype=t.float64, **changes):
    """A trainer whose every parameter is away from its initial value, some gates being closed."""
    trainer = make_trainer(**changes)
    generator = t.Generator().manual_seed(seed)
    trainer.ae.to(dtype)
    for parameter in trainer.ae.parameters():
        parameter.data += 0.2 * t.randn(parameter.shape, generator=generator, dtype=dtype)
    trainer.ae.variance_encoder.bias.data[::3] += 6.0
    trainer.ae.variance_encoder.weight.data[::6] = 0.0
    return trainer


def written_out(ae, x, eps):
    """The model of one batch by the paper's symbols, from the state dict alone, token by token."""
    w = ae.state_dict()
    codes, losses = [], []
    for x_D, eps_F in zip(x, eps, strict=True):
        mu = w["encoder.weight"] @ (x_D - w["b_dec"]) + w["encoder.bias"]
        raw = w["variance_encoder.weight"] @ (x_D - w["b_dec"]) + w["variance_encoder.bias"]
        sigma = w["prior_std"] / (1 + (-raw).exp()).sqrt()
        code = (1 - sigma / w["prior_std"]) * (mu + sigma * eps_F)
        x_hat = w["decoder.weight"] @ code + w["b_dec"]
        kl = kl_divergence(Normal(mu, sigma), Normal(t.zeros_like(mu), w["prior_std"])).sum()
        gamma = w["log_gamma"].exp()
        losses.append((x_D - x_hat).pow(2).sum() / gamma + D * gamma.log() + 2 * kl)
        codes.append((mu, sigma, code))
    mu, sigma, code = (t.stack(part) for part in zip(*codes, strict=True))
    return mu, sigma, code, t.stack(losses).mean()


# --- the model


def test_it_starts_as_upstreams_top_k_with_gates_open():
    ours = make_trainer(log_var_init=-0.7, gamma_init=0.3).ae
    arguments = {"steps": 9, "layer": 0, "lm_name": "x", "warmup_steps": 1, "seed": 0}
    theirs = TopKTrainer(activation_dim=D, dict_size=F, k=2, device="cpu", **arguments).ae
    for name in ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"):
        assert t.equal(ours.state_dict()[name], theirs.state_dict()[name]), name
    posterior = ours.posterior(data())
    assert t.allclose(posterior.log_ratio, t.tensor(-0.7), atol=1e-6)
    assert t.allclose(posterior.gate, t.tensor(1 - math.exp(-0.35)), atol=1e-6)
    assert ours.log_gamma.item() == pytest.approx(math.log(0.3))


@pytest.mark.parametrize("prior_std", [1.0, 0.4])
def test_the_model_is_the_equations(prior_std):
    ae = disturbed(prior_std=prior_std).ae
    x = data(dtype=t.float64)
    eps = t.randn(len(x), F, generator=t.Generator().manual_seed(5), dtype=t.float64)
    mu, sigma, code, _ = written_out(ae, x, eps)
    posterior = ae.posterior(x)
    t.testing.assert_close(posterior.mu, mu)
    t.testing.assert_close(posterior.std, sigma)
    gate = 1 - sigma / prior_std
    t.testing.assert_close(posterior.gate, gate)
    is_active = gate > 0.05
    assert 0.3 < is_active.double().mean() < 0.9
    t.testing.assert_close(ae.encode(x), t.where(is_active, gate * mu, 0.0))
    sampled = ae.encode(x, sample=True, generator=t.Generator().manual_seed(5))
    t.testing.assert_close(sampled, t.where(is_active, code, 0.0))
    x_hat, f = ae(x, output_features=True)
    t.testing.assert_close(x_hat, ae.encode(x) @ ae.decoder.weight.T + ae.b_dec)
    assert t.equal(f, ae.encode(x))
    assert t.equal(ae(x), x_hat)


def test_encode_takes_sequences_and_other_dtypes_and_draws_only_when_asked():
    ae = disturbed(dtype=t.float32).ae
    x = data(12)
    assert t.allclose(ae.encode(x.view(3, 4, D)), ae.encode(x).view(3, 4, F), atol=1e-6)
    assert ae.encode(x.bfloat16()).dtype == ae(x.double()).dtype == t.float32
    state = t.get_rng_state()
    assert t.equal(ae.encode(x), ae.encode(x))
    assert t.equal(t.get_rng_state(), state)
    one, two = (ae.encode(x, sample=True, generator=t.Generator().manual_seed(i)) for i in (1, 2))
    again = ae.encode(x, sample=True, generator=t.Generator().manual_seed(1))
    assert t.equal(one, again)
    assert not t.equal(one, two)


@pytest.mark.slow
def test_samples_have_the_gated_posteriors_moments():
    ae = disturbed().ae
    x = data(3, dtype=t.float64)
    generator, n = t.Generator().manual_seed(0), 4000
    draws = t.stack([ae.encode(x, sample=True, generator=generator) for _ in range(n)])
    posterior = ae.posterior(x)
    std = posterior.gate * posterior.std * (posterior.gate > 0.05)
    assert ((draws.mean(0) - ae.encode(x)).abs() <= 5 * std / math.sqrt(n)).all()
    assert t.allclose(draws.std(0), std, atol=0.02)


def test_what_the_count_calls_inactive_is_zero_and_l0_is_the_count():
    ae = disturbed(active_gate=0.3).ae
    x = data(dtype=t.float64)
    is_on = ae.posterior(x).gate > 0.3
    for f in (ae.encode(x), ae.encode(x, sample=True)):
        assert t.equal(f != 0, is_on)
    measurement = Measurement(ae)
    measurement.add(x)
    assert computed(measurement.totals)["l0"] == pytest.approx(is_on.sum(1).double().mean().item())
    assert (disturbed(active_gate=0.0).ae.encode(x) != 0).all()


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(0.01, 100.0), prior_std=st.floats(0.2, 5.0), seed=st.integers(0, 1000))
def test_scaling_is_equivariant(scale, prior_std, seed):
    """encode(c x) = c encode(x), sampled or not; gates and KL stay, the loss gains 2 D log c."""
    trainer = disturbed(seed, prior_std=prior_std)
    x = data(seed=seed, dtype=t.float64)

    def everything(x):
        noise = t.Generator().manual_seed(1)
        return (
            trainer.ae.encode(x),
            trainer.ae.encode(x, sample=True, generator=noise),
            trainer.ae(x),
        )

    def losses(x):
        return trainer.loss(x, 0, logging=True).losses

    before, losses_before, gate = everything(x), losses(x), trainer.ae.posterior(x).gate
    trainer.ae.scale_biases(scale)
    after, losses_after = everything(scale * x), losses(scale * x)
    for one, other in zip(before, after, strict=True):
        assert t.allclose(scale * one, other, rtol=1e-11, atol=1e-13 * scale)
    assert t.allclose(trainer.ae.posterior(scale * x).gate, gate, rtol=1e-11, atol=1e-13)
    assert losses_after["kl_loss"] == pytest.approx(losses_before["kl_loss"], rel=1e-11)
    assert losses_after["gamma"] == pytest.approx(losses_before["gamma"] * scale**2, rel=1e-11)
    assert losses_after["active_dims"] == losses_before["active_dims"]
    shifted = losses_before["loss"] + 2 * D * math.log(scale)
    assert losses_after["loss"] == pytest.approx(shifted, rel=1e-11, abs=1e-11)


def test_a_unit_norm_decoder_changes_no_reconstruction():
    trainer = disturbed()
    ae, x = trainer.ae, data(dtype=t.float64)
    norms = ae.decoder.weight.detach().norm(dim=0)
    assert (norms - 1).abs().max() > 0.1
    before, f, loss = ae(x), ae.encode(x), trainer.loss(x, 0, logging=True).losses["loss"]
    ae.normalize_decoder()
    t.testing.assert_close(ae.decoder.weight.norm(dim=0), t.ones(F, dtype=t.float64))
    t.testing.assert_close(ae(x), before)
    t.testing.assert_close(ae.encode(x), f * norms)
    assert trainer.loss(x, 0, logging=True).losses["loss"] == pytest.approx(loss)
    ae.decoder.weight.data[:, 3] = 0.0
    ae.normalize_decoder()
    assert ae(x).isfinite().all()


def test_from_pretrained_needs_no_other_file(tmp_path):
    trainer = make_trainer(prior_std=0.7, gamma_init=0.2, active_gate=0.1)
    for step in range(12):
        trainer.update(step, data(seed=step))
    save_weights(tmp_path / "ae.pt", for_raw_activations(trainer.ae, 3.0))
    trainer.ae.scale_biases(3.0)
    trainer.ae.normalize_decoder()
    t.save(trainer.ae.state_dict(), tmp_path / "unit.pt")
    for name in ("ae.pt", "unit.pt"):
        loaded = VAEase.from_pretrained(tmp_path / name)
        x = 3 * data()
        assert (loaded.activation_dim, loaded.dict_size) == (D, F)
        t.testing.assert_close(loaded(x), trainer.ae(x))
        t.testing.assert_close(
            loaded.decode(loaded.encode(x, sample=True, generator=t.Generator().manual_seed(0))),
            trainer.ae.decode(
                trainer.ae.encode(x, sample=True, generator=t.Generator().manual_seed(0))
            ),
        )
        assert loaded.log_gamma.item() == trainer.ae.log_gamma.item()
    t.save(trainer.ae.double().state_dict(), tmp_path / "double.pt")
    assert VAEase.from_pretrained(tmp_path / "double.pt").b_dec.dtype == t.float64


# --- the trainer


@pytest.mark.parametrize("prior_std", [1.0, 0.4])
def test_the_loss_and_its_gradients_are_the_equations(prior_std):
    trainer = disturbed(prior_std=prior_std)
    x = data(dtype=t.float64)
    generator = t.Generator()
    generator.set_state(trainer.generator.get_state())
    eps = t.empty(len(x), F, dtype=t.float64).normal_(generator=generator)
    loss = trainer.loss(x, 0)
    t.testing.assert_close(loss, written_out(trainer.ae, x, eps)[-1], rtol=1e-10, atol=0)
    loss.backward()
    step = 1e-6
    for name, parameter in trainer.ae.named_parameters():
        direction = t.randn(
            parameter.shape, generator=t.Generator().manual_seed(3), dtype=t.float64
        )
        sides = []
        for sign in (1, -1):
            parameter.data += sign * step * direction
            sides.append(written_out(trainer.ae, x, eps)[-1])
            parameter.data -= sign * step * direction
        expected = (sides[0] - sides[1]) / (2 * step)
        got = (parameter.grad * direction).sum()
        assert got.item() == pytest.approx(expected.item(), rel=1e-6), name


@pytest.mark.slow
def test_gamma_tends_to_the_mean_squared_error_per_dimension():
    trainer = make_trainer(steps=500, lr=2e-2)
    for step in range(500):
        trainer.update(step, data(128, seed=step))
    losses = [trainer.loss(data(4000, seed=s), 0, logging=True).losses for s in (-1, -2)]
    for one in losses:
        assert one["gamma"] == pytest.approx(one["l2_loss"] / D, rel=0.05)


def test_what_is_logged_is_what_it_says():
    trainer = disturbed(prior_std=1.5)
    x = data(dtype=t.float64)
    losses = trainer.loss(x, 0, logging=True).losses
    mu, sigma, _, _ = written_out(trainer.ae, x, t.zeros(len(x), F, dtype=t.float64))
    kl = kl_divergence(Normal(mu, sigma), Normal(t.zeros_like(mu), 1.5)).sum(-1).mean()
    assert losses["kl_loss"] == pytest.approx(kl.item())
    assert losses["mean_sigma"] == pytest.approx(sigma.mean().item())
    assert losses["gamma"] == pytest.approx(trainer.ae.log_gamma.exp().item())
    assert losses["active_dims"] == pytest.approx(
        (sigma < 0.95 * 1.5).sum(1).double().mean().item()
    )
    parts = losses["l2_loss"] / losses["gamma"] + D * math.log(losses["gamma"])
    assert losses["loss"] == pytest.approx(parts + 2 * losses["kl_loss"])
    measurement = Measurement(trainer.ae, norm_factor=2.0)
    measurement.add(x)
    measured = computed(measurement.totals)
    assert measured["kl_per_token"] == pytest.approx(kl.item())
    assert measured["mean_sigma"] == pytest.approx(sigma.mean().item() / 2)
    assert measured["fve_sampled"] < measured["fve"]
    assert measured["noise_to_signal"] is None


def planted(batch, seed):
    """Positive sums of four orthogonal directions, each in 0.4 of the rows, and noise: (B, D)."""
    generator = t.Generator().manual_seed(seed)
    is_on = t.rand(batch, 4, generator=generator) < 0.4
    strengths = (1 + t.rand(batch, 4, generator=generator)) * is_on
    noise = 0.02 * t.randn(batch, D, generator=generator)
    return 2 * strengths @ directions() + noise


def directions():
    """Orthonormal, (4, D)."""
    return t.linalg.qr(t.randn(D, D, generator=t.Generator().manual_seed(9)))[0][:4]


@pytest.mark.slow
def test_gates_close_on_features_that_say_nothing():
    trainer = make_trainer(steps=800, lr=2e-2, warmup_steps=20, dict_size=12)
    for step in range(800):
        trainer.update(step, planted(128, step))
    x, model = planted(2000, 10_000), trainer.ae
    is_used = model.posterior(x).gate.mean(0) > model.active_gate
    assert is_used.sum() == 4
    unit_FD = t.nn.functional.normalize(model.decoder.weight.T, dim=1)
    cosines = (unit_FD[is_used] @ directions().T).abs()
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2, 3]
    assert cosines.amax(1).min() > 0.99
    assert 1.6 <= (model.encode(x) != 0).sum(1).double().mean() < 4, (
        "0.4 of four are planted in a row"
    )
    assert (x - model(x)).pow(2).sum() < 0.02 * (x - x.mean(0)).pow(2).sum()


# --- upstream's loop


@pytest.mark.parametrize("normalize", [False, True])
def test_upstreams_trainsae_takes_it(normalize, tmp_path):
    common = {"steps": 150, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
    own = {"trainer": VAEaseTrainer, "warmup_steps": 5, "seed": 0, "device": "cpu", "lr": 1e-2}
    batches = [planted(64, step) for step in range(200)]
    trainSAE(
        batches,
        [own | common],
        steps=150,
        save_dir=str(tmp_path),
        save_steps=[10],
        log_steps=50,
        verbose=True,
        normalize_activations=normalize,
        device="cpu",
    )
    model, config = load_dictionary(tmp_path / "trainer_0")
    assert type(model) is VAEase
    assert config["trainer"]["gamma_init"] == 0.1
    early = VAEase.from_pretrained(tmp_path / "trainer_0" / "checkpoints" / "ae_10.pt")
    x = planted(500, 10_000)
    errors = [(x - one(x)).pow(2).sum().item() for one in (early, model)]
    assert errors[1] < errors[0]
