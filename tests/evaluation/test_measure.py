"""Each metric against a direct computation on all tokens at once."""

import json
import math

import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.evaluation import evaluate as upstream_evaluate
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext import VariationalTopKAutoEncoder, find_hook
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.inputs import HeldOut
from dictionary_learning_ext.errors import TextError
from dictionary_learning_ext.evaluation.measure import Measurement, measure
from dictionary_learning_ext.evaluation.metrics import METRICS, computed
from dictionary_learning_ext.evaluation.totals import LanguageModelLosses, Totals

D, F, K = 8, 64, 4


@pytest.fixture
def x():
    generator = t.Generator().manual_seed(0)
    return t.randn(3000, D, generator=generator) * t.linspace(0.2, 3, D) + 2


def metrics_of(sae, x, norm_factor=1.0, batch=500):
    measurement = Measurement(sae, norm_factor)
    for part in x.split(batch):
        measurement.add(part)
    return computed(measurement.totals)


def make(**options):
    t.manual_seed(1)
    return VariationalTopKAutoEncoder(D, F, K, **options)


def test_fve_is_one_minus_residual_over_variance_about_the_mean(x):
    sae = make(rectify=True)
    expected = 1 - (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert metrics_of(sae, x)["fve"] == pytest.approx(expected.item(), rel=1e-5)


def test_an_upstream_class_in_bf16_is_measured(x):
    t.manual_seed(1)
    sae = AutoEncoderTopK(D, F, K)
    whole = metrics_of(sae, x)
    half = metrics_of(sae.bfloat16(), x)
    for name in ("fve", "frac_variance_explained", "l2_loss", "stability_rms"):
        assert half[name] == pytest.approx(whole[name], rel=0.05), name


def test_totals_are_sums_over_all_tokens_whatever_the_batches(x):
    """To the last digits, so that a total that starts at another number than 0 is noticed."""
    sae = make(sigma=0.5)
    measurement = Measurement(sae, 3.0)
    for part in x.split(700):
        measurement.add(part)
    totals, (x_hat, f) = measurement.totals, sae(x, output_features=True)
    assert (totals.tokens, totals.batches, totals.norm_factor) == (3000, 5, 3.0)
    assert totals.squares == pytest.approx(x.double().square().sum().item(), rel=1e-12)
    assert totals.residual == pytest.approx((x - x_hat).double().square().sum().item(), rel=1e-6)
    assert t.allclose(totals.sum_D, x.double().sum(0), rtol=1e-12)
    assert t.equal(totals.selected_F, (f != 0).sum(0))
    centred = x.double() - x.double().mean(0)
    assert totals.total_variance == pytest.approx(centred.square().sum().item(), rel=1e-9)
    assert totals.kl == pytest.approx(sae.posterior(x).kl.sum().item(), rel=1e-5)
    batches = [part.square().sum(1).mean().item() for part in x.split(700)]
    assert totals.mean("l0") == K
    assert totals.mean("nothing of that name") is None
    by_mean = Totals.empty(D, F, K, x.device)
    for value in batches:
        by_mean.batches += 1
        by_mean.add_mean("energy", value)
    assert by_mean.mean("energy") == pytest.approx(sum(batches) / 5, rel=1e-12)


def test_description_length_is_that_of_a_set_and_a_gaussian_residual(x):
    metrics = metrics_of(make(rectify=True), x)
    whole, part = math.floor(metrics["l0"]), metrics["l0"] % 1
    nats = [math.log(math.comb(F, whole + i)) for i in (0, 1)]
    between = nats[0] + part * (nats[1] - nats[0])  # L0 is no whole number
    expected = between + D / 2 * math.log(1 - metrics["fve"])
    assert metrics["description_length"] == pytest.approx(expected, abs=0.1)


def test_a_constant_bias_costs_fve_and_not_upstreams_metric(x):
    """The reason for two: k = F with an orthonormal basis reconstructs exactly, bar the shift."""
    sae = VariationalTopKAutoEncoder(D, D, D)
    basis = t.linalg.qr(t.randn(D, D, generator=t.Generator().manual_seed(0))).Q
    sae.decoder.weight.data = basis.clone()
    sae.encoder.weight.data = basis.T.clone()
    exact = metrics_of(sae, x)
    assert exact["fve"] == pytest.approx(1, abs=1e-5)
    sae.encoder.bias.data += 1.0
    shifted = metrics_of(sae, x)
    assert shifted["frac_variance_explained"] == pytest.approx(1, abs=1e-5)
    assert shifted["fve"] < 0.95


def test_liveness_counts_selections_not_sums(x):
    sae = make()
    on = sae.encode(x) != 0
    frequency = on.double().mean(0)
    metrics = metrics_of(sae, x)
    assert metrics["l0"] == pytest.approx(on.sum(1).double().mean().item())
    assert metrics["alive"] == pytest.approx((frequency > 0).double().mean().item())
    for r in (0.1, 0.5):
        expected = (frequency < r * K / F).double().mean().item()
        assert 0 < expected < 1
        assert metrics[f"near_dead_{r}"] == pytest.approx(expected)


def test_near_dead_is_by_k_where_fewer_than_k_are_selected(x):
    k = 3 * F // 4
    t.manual_seed(1)
    sae = VariationalTopKAutoEncoder(D, F, k, rectify=True)  # half of mu is negative
    frequency = (sae.encode(x) != 0).double().mean(0)
    metrics = metrics_of(sae, x)
    assert metrics["l0"] < 0.8 * k
    for r in (0.1, 0.5):
        share = (frequency < r * k / F).double().mean().item()
        assert metrics[f"near_dead_{r}"] == pytest.approx(share)
        assert share > (frequency < r * metrics["l0"] / F).double().mean()


def test_near_dead_of_an_sae_without_k_is_by_its_mean_l0(x):
    t.manual_seed(0)
    sae = AutoEncoder(D, F)
    frequency = (sae.encode(x) != 0).double().mean(0)
    metrics = metrics_of(sae, x)
    assert metrics["l0"] == pytest.approx(frequency.sum().item())
    for r in (0.1, 0.5):
        expected = (frequency < r * frequency.mean()).double().mean().item()
        assert metrics[f"near_dead_{r}"] == pytest.approx(expected)
    assert 0 < metrics["near_dead_0.1"] < metrics["near_dead_0.5"] < 1


def test_a_signed_feature_that_cancels_is_alive():
    """Upstream's `frac_alive` sums activations: +1 and -1 would be dead."""
    sae = VariationalTopKAutoEncoder(1, 2, 2)
    sae.encoder.weight.data = t.tensor([[1.0], [1.0]])
    x = t.tensor([[1.0], [-1.0]] * 4)
    assert metrics_of(sae, x)["alive"] == 1.0
    assert upstream_evaluate(sae, iter([x]))["frac_alive"] == 0.0


@pytest.mark.parametrize("posterior", ["fixed", "learned"])
def test_kl_sigma_and_noise_are_the_posteriors(posterior, x):
    sae = make(posterior=posterior, sigma=0.5, prior_std=1.5, log_var_init=-1.0)
    metrics = metrics_of(sae, x, norm_factor=2.0)
    std = 0.5 if posterior == "fixed" else float(t.tensor(-0.5).exp())
    mu = sae.encode(x, return_topk=True)[3]
    kl = kl_divergence(Normal(mu, std), Normal(t.zeros_like(mu), 1.5)).sum(1).mean().item()
    assert metrics["kl_per_token"] == pytest.approx(kl, rel=1e-4)
    assert metrics["mean_sigma"] == pytest.approx(std / 2, rel=1e-4), "in training units"
    signal = x.pow(2).sum(1).mean().item()
    assert metrics["noise_to_signal"] == pytest.approx(K * std**2 / signal, rel=1e-4)
    assert metrics["fve_sampled"] < metrics["fve"]


def test_a_points_samples_are_its_mean(x):
    metrics = metrics_of(make(posterior="point"), x)
    assert metrics["fve_sampled"] == pytest.approx(metrics["fve"], rel=1e-6)
    assert metrics["mean_sigma"] == 0
    assert metrics["stability_sigma"] == 1


@pytest.mark.parametrize("select_by", ["value", "magnitude"])
def test_stability_is_the_jaccard_overlap_of_the_two_selections(x, select_by):
    sae = make(sigma=0.3, select_by=select_by)
    metrics = metrics_of(sae, x, batch=len(x))
    generator = t.Generator().manual_seed(5)
    _, values, indices, mu = sae.encode(x, return_topk=True)

    def overlap(scale):
        other = mu + scale * t.randn(mu.shape, generator=generator)
        other = (other if select_by == "value" else other.abs()).topk(K).indices
        pairs = zip(indices.tolist(), other.tolist(), strict=True)
        return sum(len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs) / len(x)

    assert metrics["stability_sigma"] == pytest.approx(overlap(0.3), abs=0.02)
    rms = values.pow(2).mean().sqrt().item()
    assert metrics["stability_rms"] == pytest.approx(overlap(rms / 10), abs=0.02)


def test_the_zeros_that_upstream_pads_with_are_not_selected(x):
    """They don't count in the size of the activations, which the noise is relative to."""
    t.manual_seed(0)
    sae = AutoEncoderTopK(D, F, 3 * F // 4)
    _, values, indices, mu = sae.encode(x, return_topk=True)
    assert (values == 0).float().mean() > 0.2, "the case must have some"
    scale = 0.1 * values[values != 0].square().mean().sqrt()
    noise = scale * t.randn(mu.shape, generator=t.Generator().manual_seed(5))
    other = (mu + noise).topk(sae.k).indices
    pairs = zip(indices.tolist(), other.tolist(), strict=True)
    expected = sum(len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs) / len(x)
    assert metrics_of(sae, x)["stability_rms"] == pytest.approx(expected, abs=0.005)


def test_a_plain_top_k_has_stability_and_no_posterior(x):
    t.manual_seed(0)
    metrics = metrics_of(AutoEncoderTopK(D, F, K), x)
    assert 0 < metrics["stability_rms"] < 1
    for name in ("kl_per_token", "mean_sigma", "noise_to_signal", "fve_sampled"):
        assert metrics[name] is None


def ending_buffer(lm, documents):
    """Batches of 64 tokens, until the documents end."""
    hook = find_hook(lm, "blocks.1.hook_resid_post")
    return ResidualBuffer(
        iter(documents), lm, hook.submodule, n_ctxs=8, ctx_len=16, out_batch_size=64
    )


def test_a_text_that_ends_is_measured_as_far_as_it_goes(tiny_lm, caplog):
    documents = ["It was the best of times, it was the worst of times."] * 20
    batches = len(list(whole_batches(ending_buffer(tiny_lm, documents))))
    assert batches > 1
    sae = VariationalTopKAutoEncoder(16, 32, 4)
    buffer = ending_buffer(tiny_lm, documents)
    metrics = measure({"x": (sae, 1.0)}, HeldOut.of_text(buffer, documents[:2]), 10**6)["x"]
    assert metrics["tokens"] == 64 * batches
    assert f"measured on {64 * batches} tokens, not 1000000" in caplog.text


def whole_batches(buffer):
    while True:
        try:
            yield next(buffer)
        except TextError:
            return


def test_a_text_without_one_batch_is_refused(tiny_lm):
    documents = ["It was the best of times."]
    sae = VariationalTopKAutoEncoder(16, 32, 4)
    inputs = HeldOut.of_text(ending_buffer(tiny_lm, documents), documents)
    with pytest.raises(TextError, match="too short to measure on"):
        measure({"x": (sae, 1.0)}, inputs, 100)


@pytest.mark.parametrize("io", ["in", "out"])
def test_losses_are_upstreams_and_bracket_the_reconstruction(io, tiny_lm):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_" + {"in": "pre", "out": "post"}[io])
    documents = ["It was the best of times, it was the worst of times."] * 8

    def buffer():
        return ResidualBuffer(
            iter(documents * 40),
            tiny_lm,
            hook.submodule,
            io=hook.io,
            n_ctxs=16,
            ctx_len=16,
            out_batch_size=64,
        )

    exact = VariationalTopKAutoEncoder(16, 16, 16)
    exact.decoder.weight.data = t.eye(16)
    exact.encoder.weight.data = t.eye(16)
    t.manual_seed(0)
    poor = VariationalTopKAutoEncoder(16, 16, 1)
    results = measure(
        {"exact": (exact, 1.0), "poor": (poor, 1.0)}, HeldOut.of_text(buffer(), documents), 100
    )
    for metrics in results.values():
        assert set(METRICS) == set(metrics)
        assert metrics["tokens"] == 128, "whole batches"
    assert results["exact"]["frac_recovered"] == pytest.approx(1, abs=1e-3)
    assert results["poor"]["loss_original"] == results["exact"]["loss_original"]
    theirs = upstream_evaluate(poor, buffer(), max_len=16, batch_size=8, io=hook.io)
    for name in ("loss_original", "loss_reconstructed", "loss_zero"):
        assert results["poor"][name] == pytest.approx(theirs[name], rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_activations_without_variance_have_no_fve_and_the_file_says_why(value):
    metrics = metrics_of(make(rectify=True), t.full((4, D), value), batch=2)
    for name in ("fve", "fve_sampled", "description_length"):
        assert metrics[name] is None
        expected = "the activations of the 4 tokens measured have no variance"
        assert metrics["not_measured"][name] == expected
    assert metrics["tokens"] == 4
    assert metrics["l0"] is not None
    json.dumps(metrics, allow_nan=False)


def test_one_token_is_measured_as_far_as_it_goes(x):
    metrics = metrics_of(make(), x[:1])
    assert metrics["fve"] is None
    assert metrics["l0"] == K
    assert set(metrics["not_measured"]) >= {"fve", "frac_variance_explained"}
    json.dumps(metrics, allow_nan=False)


def test_where_everything_is_measured_no_reason_is_given(x):
    assert "not_measured" not in metrics_of(make(), x)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ((math.nan, math.nan, math.nan, 0, 3, 0), "no held-out document has a second token"),
        ((2.0, 2.0, 2.0, 8, 9, 9), "zeros in place of the activations do not change the loss"),
    ],
)
def test_losses_that_are_not_defined_are_null_with_the_reason(x, losses, reason):
    measurement = Measurement(make())
    measurement.add(x)
    measurement.totals.losses = LanguageModelLosses(*losses)
    metrics = computed(measurement.totals)
    assert metrics["frac_recovered"] is None
    assert reason in metrics["not_measured"]["frac_recovered"]
    assert (metrics["loss_tokens"], metrics["positions_left_alone"]) == (losses[3], losses[5])
    json.dumps(metrics, allow_nan=False)
