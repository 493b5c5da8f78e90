"""Probabilistic TopK: its gates' distribution, their two limits, its equations, its training."""

import math
from itertools import pairwise

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from small_trainers import assert_same
from torch.distributions import RelaxedBernoulli
from variational_trainers import D, F, data, make_trainer

from dictionary_learning_ext import ProbabilisticTopKTrainer, load_dictionary
from dictionary_learning_ext.trainers import probabilistic_top_k
from dictionary_learning_ext.trainers.probabilistic_top_k import (
    gate_logits,
    sample_gates,
)

K = 4


def made(**changes):
    return make_trainer(ProbabilisticTopKTrainer, **changes)


def noise_of(generator, shape):
    """The logistic noise that is drawn next, by its inverse distribution function, in float64."""
    copy = t.Generator()
    copy.set_state(generator.get_state())
    u = t.empty(shape, dtype=t.float64).uniform_(generator=copy)
    return -(1 / u - 1).log()


def pre_activations(rows=200, seed=0):
    return 3 * t.randn(rows, F, generator=t.Generator().manual_seed(seed), dtype=t.float64) + 1


# --- the gates


@pytest.mark.parametrize("temperature", [5.0, 0.5])
def test_gates_have_the_relaxed_bernoullis_distribution(temperature):
    """The distribution function at q is the logistic one at T logit(q) - l: compared at its deciles."""
    logits = t.linspace(-3, 4, 5, dtype=t.float64).expand(40_000, 5)
    gates = sample_gates(logits, temperature, t.Generator().manual_seed(0))
    expected = RelaxedBernoulli(t.tensor(temperature).double(), logits=logits[0])
    n = len(logits)
    for share in (0.1, 0.5, 0.9):
        q = ((logits[0] + math.log(share / (1 - share))) / temperature).sigmoid()
        below = (gates <= q).double().mean(0)
        assert (below - share).abs().max() < 5 * math.sqrt(share * (1 - share) / n)
    is_open = (gates > 0.5).double().mean(0)
    assert (is_open - logits[0].sigmoid()).abs().max() < 5 * 0.5 / math.sqrt(n)
    # E[log p] under p, of torch's density, is what the samples have.
    theirs = expected.sample((n,))
    inner = gates.clamp(1e-12, 1 - 1e-12)
    likelihoods = [expected.log_prob(g.clamp(1e-12, 1 - 1e-12)).mean(0) for g in (inner, theirs)]
    t.testing.assert_close(*likelihoods, atol=0.05, rtol=0.05)


def score_order(scaled_logits, pre):
    """The K features whose gate, and a little of its logit, is largest."""
    return (scaled_logits.sigmoid() + 1e-4 * gate_logits(pre)).topk(K).indices


def test_a_hot_gate_is_the_top_k_of_the_noisy_logits():
    pre, generator = pre_activations(), t.Generator().manual_seed(3)
    noisy = gate_logits(pre) + noise_of(generator, pre.shape)
    code, _, gate_BK = made()._code(pre, 20.0, generator)
    expected = t.zeros_like(pre).scatter(1, noisy.topk(K).indices, 1.0) * pre.relu()
    is_same = ((code != 0) == (expected != 0)).all(1)
    assert is_same.double().mean() > 0.98, (
        "all but near ties, which the logit's small weight decides"
    )
    kept = score_order(noisy / 20, pre)
    t.testing.assert_close(
        gate_BK.sort().values, (noisy / 20).sigmoid().gather(1, kept).sort().values
    )
    assert (code != made()._code(pre, 20.0, generator).features_BF).any()


def test_a_cold_gate_is_the_top_k_of_the_features_whose_gate_opens():
    pre, generator = pre_activations(), t.Generator().manual_seed(3)
    is_open = gate_logits(pre) + noise_of(generator, pre.shape) > 0
    code, _, gate_BK = made()._code(pre, 1e-6, generator)
    assert (is_open.sum(1) >= K).all()
    assert t.equal(gate_BK.round(), t.ones_like(gate_BK))
    top = pre.masked_fill(~is_open, -math.inf).topk(K)
    expected = t.zeros_like(pre).scatter(1, top.indices, top.values)
    assert (top.values > 0).all()
    t.testing.assert_close(code, expected, rtol=1e-4, atol=0)
    assert (t.zeros_like(pre).scatter(1, pre.topk(K).indices, 1.0) != (code != 0)).any()


def test_cold_gates_without_noise_are_upstreams_top_k(monkeypatch):
    """Where K features exceed the token's average: what is trained turns into what is evaluated."""
    monkeypatch.setattr(
        probabilistic_top_k, "sample_gates", lambda logits, T, *_: (logits / T).sigmoid()
    )
    trainer = made()
    trainer.ae.double()
    x = data(dtype=t.float64)
    pre = trainer.ae.encoder(x - trainer.ae.b_dec)
    code = trainer._code(pre, 1e-3, t.Generator()).features_BF
    assert (gate_logits(pre).topk(K).values > 0.05).all()
    t.testing.assert_close(code, trainer.ae.encode(x), rtol=1e-9, atol=1e-12)


def test_the_temperature_falls_geometrically_from_one_end_of_the_run_to_the_other():
    steps = 11
    found = [made(steps=steps)._temperature(step) for step in range(steps)]
    assert found[0] == 5.0
    assert found[-1] == pytest.approx(1e-3)
    ratios = [b / a for a, b in pairwise(found)]
    assert ratios == pytest.approx([(1e-3 / 5) ** 0.1] * 10)
    trainer = made(steps=20, temperature_start=2.0, temperature_end=0.5, warmup_steps=2)
    logged = [trainer.metrics(step, data())["temperature"] for step in (0, 19)]
    assert logged == pytest.approx([2.0, 0.5])


def test_the_units_of_the_activations_do_not_matter():
    trainer = made()
    trainer.ae.double()
    x = data(dtype=t.float64)
    before = trainer.loss(x, 50).item()
    trainer.ae.scale_biases(40.0)
    trainer.generator = made().generator
    assert trainer.loss(40 * x, 50).item() == pytest.approx(1600 * before, rel=1e-6)


# --- the trainer


def test_it_starts_as_upstreams_trainer():
    arguments = {"steps": 200, "layer": 0, "lm_name": "tiny", "warmup_steps": 10, "seed": 0}
    theirs = TopKTrainer(activation_dim=D, dict_size=F, k=K, device="cpu", **arguments).ae
    ours = made().ae
    assert type(ours) is AutoEncoderTopK
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))


def written_out(state, x, noise, temperature, dead, alpha):
    """The loss of one batch by the docstring's equations, token by token."""
    hats, pres = [], []
    for x_D, n_F in zip(x, noise, strict=True):
        a = state["encoder.weight"] @ (x_D - state["b_dec"]) + state["encoder.bias"]
        logit = (a - a.mean()) / (a - a.mean()).pow(2).mean().sqrt()
        gate = 1 / (1 + (-(logit + n_F) / temperature).exp())
        score = (gate + 1e-4 * logit).tolist()
        kept = sorted(range(F), key=score.__getitem__)[-K:]
        hats.append(
            state["b_dec"]
            + sum(
                state["decoder.weight"][:, i] * a[i].clamp(min=0) * (1 + gate[i]) / 2 for i in kept
            )
        )
        pres.append(a)
    x_hat, pre = t.stack(hats), t.stack(pres)
    l2 = (x - x_hat).pow(2).sum(1).mean()
    residual = (x - x_hat).detach()
    top = pre.clamp(min=0)[:, dead].topk(min(D // 2, len(dead)))
    columns = state["decoder.weight"][:, dead].T[top.indices]  # (B, k_aux, D)
    aux = residual - (top.values[..., None] * columns).sum(1)
    variance = (residual - residual.mean(0)).pow(2).sum(1).mean()
    return l2 + alpha * aux.pow(2).sum(1).mean() / variance


def test_the_loss_and_its_gradients_are_the_equations():
    trainer = made(auxk_alpha=0.5, dead_feature_threshold=1000)
    trainer.ae.double()
    generator = t.Generator().manual_seed(1)
    for parameter in trainer.ae.parameters():
        parameter.data += 0.1 * t.randn(parameter.shape, generator=generator, dtype=t.float64)
    x, step = data(12, dtype=t.float64), 60
    top = trainer.ae.encode(x)
    dead = [i for i in range(F) if (top[:, i] == 0).all()][:6]
    trainer.num_tokens_since_fired[dead] = 990
    temperature = trainer._temperature(step)
    noise = noise_of(trainer.generator, (len(x), F))
    state = {n: p.detach().clone().requires_grad_() for n, p in trainer.ae.named_parameters()}
    expected = written_out(state, x, noise, temperature, dead, 0.5)
    expected.backward()
    terms = trainer._terms(x, step, trainer.generator)
    assert terms.auxk_loss > 0
    assert 0.5 < terms.mean_gate < 1
    t.testing.assert_close(terms.loss, expected.detach(), rtol=1e-9, atol=0)
    terms.loss.backward()
    for name, parameter in trainer.ae.named_parameters():
        t.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-6, atol=1e-9)


def test_what_has_fired_and_the_threshold_are_of_top_k_without_gates():
    trainer = made(lr=1e-9)
    for step in range(7):  # the threshold starts after step 5
        trainer.update(step, data(seed=step))
    f = trainer.ae.encode(data(seed=6))
    smallest = f.masked_fill(f <= 0, math.inf).amin(1)
    assert trainer.ae.threshold.item() == pytest.approx(smallest.mean().item(), rel=1e-4)
    assert t.equal(trainer.num_tokens_since_fired == 0, (f > 0).any(0))


def test_upstreams_trainsae_takes_it_and_it_learns(tmp_path):
    common = {"steps": 300, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
    own = {"trainer": ProbabilisticTopKTrainer, "k": K, "warmup_steps": 5, "seed": 0, "lr": 5e-3}
    trainSAE(
        [data(64, step) for step in range(300)],
        [own | common | {"device": "cpu"}],
        steps=300,
        save_dir=str(tmp_path),
        save_steps=[10],
        device="cpu",
    )
    model, _ = load_dictionary(tmp_path / "trainer_0")
    early = AutoEncoderTopK.from_pretrained(tmp_path / "trainer_0" / "checkpoints" / "ae_10.pt")
    x = data(500, 10_000)
    errors = [(x - one(x)).pow(2).sum().item() for one in (early, model)]
    assert errors[1] < 0.7 * errors[0]
