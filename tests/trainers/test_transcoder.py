"""Transcoders: the trainer against a loop of its own in float64, the compiled step, and units."""

import math
from dataclasses import replace

import pytest
import torch as t
from step_cases import assert_close
from torch.nn import functional
from variational_trainers import D, F, data, make_trainer

from dictionary_learning_ext import VariationalBatchTopKTrainer, VariationalTopKTrainer
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder.weights import for_raw_activations
from dictionary_learning_ext.trainers.dictionaries import sides
from dictionary_learning_ext.trainers.kernels import step as compiled
from dictionary_learning_ext.trainers.step import variational_loss
from dictionary_learning_ext.trainers.variational_batch_top_k import VariationalBatchTopKTranscoder
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKTranscoder

KINDS = {
    VariationalTopKTrainer: VariationalTopKTranscoder,
    VariationalBatchTopKTrainer: VariationalBatchTopKTranscoder,
}
K = 4
both_kinds = pytest.mark.parametrize("kind", KINDS)


def rows(seed=0, dtype=t.float32):
    """x and, beside it, a y that x determines but for noise."""
    x = data(64, seed, dtype)
    weight = t.randn(D, D, generator=t.Generator().manual_seed(7)).to(dtype)
    return t.cat([x, 3 * (x @ weight).tanh() + data(64, seed + 500, dtype) / 10 + 1], 1)


def transcoder_trainer(kind=VariationalTopKTrainer, dtype=t.float32, **options):
    trainer = make_trainer(kind, dict_class=KINDS[kind], **options)
    if dtype == t.float64:
        trainer.ae.double()
    return trainer


def independent(trainer, steps):
    """The definition, with autograd and nothing of the package: weights after these steps, from the trainer's start."""
    is_batch = isinstance(trainer, VariationalBatchTopKTrainer)
    settings, start = trainer.settings, trainer.ae.state_dict()
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
    w = [start[name].clone().requires_grad_(True) for name in names]
    W_enc, b_enc, W_dec, b_dec = w
    adam = t.optim.Adam(w, lr=1e-3, betas=(0.9, 0.999))
    silent = t.zeros(F)
    for step in range(steps):
        x, y = rows(step, t.float64).chunk(2, 1)
        if step == 0:
            b_dec.data = geometric_median(y)
        mu = x @ W_enc.T + b_enc
        flat = mu.flatten() if is_batch else mu
        kept = flat.topk(K * len(x) if is_batch else K, dim=-1).indices
        mask = t.zeros_like(flat).scatter(-1, kept, 1.0).view(mu.shape)
        f = (mu.relu() if is_batch else mu) * mask
        error = f @ W_dec.T + b_dec - y
        kl = (mu.square() / 2).sum(1).mean()
        loss = error.square().sum(1).mean()
        loss = loss + 0.1 * min(1, step / settings.kl_warmup_steps) * kl
        silent = (silent + len(x)).masked_fill(((f > 0) if is_batch else (mask > 0)).any(0), 0)
        dead = silent >= settings.dead_feature_threshold
        if dead.any():
            n = min(D // 2, int(dead.sum()))
            strength, which = mu[:, dead].topk(n, dim=1)
            aux = (strength.relu().unsqueeze(1) @ W_dec.T[dead][which]).squeeze(1)
            rest = error.detach()
            loss = loss + trainer.auxk_alpha * (
                (aux + rest).square().sum(1).mean() / (rest - rest.mean(0)).square().sum(1).mean()
            )
        adam.zero_grad()
        loss.backward()
        unit = W_dec.detach() / (W_dec.detach().norm(dim=0) + 1e-6)
        W_dec.grad -= unit * (unit * W_dec.grad).sum(0)
        t.nn.utils.clip_grad_norm_(w, 1.0)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1, step / 10)
        adam.step()
        W_dec.data /= W_dec.data.norm(dim=0) + t.finfo(t.float64).eps
    return dict(zip(names, w, strict=True)), silent


def geometric_median(y, iterations=100):
    """As upstream's, which stops sooner."""
    guess = y.mean(0)
    for _ in range(iterations):
        previous, weights = guess, 1 / (y - guess).norm(dim=1)
        guess = (weights / weights.sum()) @ y
        if (guess - previous).norm() < 1e-5:
            break
    return guess


@both_kinds
def test_a_hundred_steps_are_those_of_an_independent_loop(kind):
    """In float64, without noise, with the KL of all features and AuxK."""
    options = {"posterior": "point", "beta": 0.1, "kl_warmup_steps": 20, "auxk_alpha": 1 / 32}
    trainer = transcoder_trainer(kind, t.float64, k=K, dead_feature_threshold=200, **options)
    expected, silent = independent(trainer, 100)
    for step in range(100):
        trainer.update(step, rows(step, t.float64))
    assert int((silent >= 200).sum()) > 0, "AuxK has dead features"
    assert t.equal(trainer.num_tokens_since_fired.double(), silent.double())
    own = trainer.ae.state_dict()
    for name, value in expected.items():
        assert (own[name] - value).abs().max() < 1e-10, name


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("kl_scope", ["all", "selected"])
def test_the_compiled_step_is_the_definition(rectify, kl_scope):
    options = {"posterior": "point", "rectify": rectify, "kl_scope": kl_scope, "beta": 0.3}
    trainer = transcoder_trainer(**options, dead_feature_threshold=128)
    for step in range(30):
        trainer.update(step, rows(step))
    batch, weights = rows(99), trainer.ae.weights
    objective = trainer._objective(batch, 30, trainer.generator)
    objective = replace(objective, auxk_alpha=1.0)
    assert bool((trainer.num_tokens_since_fired >= 128).any())
    assert compiled.supports(weights, objective)
    x, _ = sides(trainer.ae, batch)
    terms, gradients = compiled.step(weights, objective, x)
    defined = variational_loss(x, weights, objective)
    expected = t.autograd.grad(defined.loss, weights[:4])
    assert_close([terms.loss, *gradients], [defined.loss.detach(), *expected], 1e-4)


@both_kinds
@pytest.mark.parametrize("posterior", ["fixed", "learned", "point"])
def test_each_side_is_folded_in_by_its_own_factor(kind, posterior, tmp_path):
    trainer = transcoder_trainer(kind, posterior=posterior)
    for step in range(20):
        trainer.update(step, rows(step))
    ae, of_x, of_y = trainer.ae, 5.0, 0.25
    raw = for_raw_activations(ae, of_y, of_x)
    t.save(raw.state_dict(), tmp_path / "ae.pt")
    raw = KINDS[kind].from_pretrained(tmp_path / "ae.pt")
    x, _ = rows(99).chunk(2, 1)
    for options in ({}, {"sample": True}):
        seeded = [{"generator": t.Generator().manual_seed(1)} | options for _ in range(2)]
        f, own = raw.encode(of_x * x, **seeded[0]), ae.encode(x, **seeded[1])
        t.testing.assert_close(f, of_y * own, rtol=1e-4, atol=1e-4)
        t.testing.assert_close(raw.decode(f), of_y * ae.decode(own), rtol=1e-4, atol=1e-4)
    t.testing.assert_close(raw.posterior(of_x * x).kl, ae.posterior(x).kl, rtol=1e-3, atol=1e-3)
    norms = raw.decoder.weight.norm(dim=0)
    assert norms.tolist() == pytest.approx([1] * F, abs=1e-5)


def test_what_is_logged_is_of_y():
    trainer = transcoder_trainer(posterior="point")
    batch = rows()
    trainer.update(0, batch)
    x, y = batch.chunk(2, 1)
    y_hat = trainer.ae.decode(trainer.ae.encode(x))
    fve = 1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert trainer.metrics(1, batch)["fve"] == pytest.approx(fve.item(), abs=1e-5)
    logged = trainer.loss(batch, 1, logging=True)
    assert t.equal(logged.x, y)
    assert t.allclose(logged.x_hat, y_hat)


def test_a_batch_needs_both_sides():
    with pytest.raises(ConfigError, match=rf"\(64, {D}\).*2 \* activation_dim={D}"):
        transcoder_trainer().update(0, rows()[:, :D])
    assert math.isfinite(float(transcoder_trainer().update(0, rows())))


def test_x_is_encoded_as_it_is():
    """b_dec is y's."""
    ae = VariationalTopKTranscoder(D, F, K, posterior="point")
    with t.no_grad():
        ae.b_dec.fill_(3.0)
    x = data()
    mu = functional.linear(x, ae.encoder.weight, ae.encoder.bias)
    kept = mu.topk(K).indices
    assert t.equal(ae.encode(x), t.zeros_like(mu).scatter(1, kept, mu.gather(1, kept)))
