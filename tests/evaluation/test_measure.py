"""Each metric against a direct computation on all tokens at once; the losses against upstream's.

test_measure_against_float64.py recomputes all of them with other tools.
"""

import json
import math
from typing import Any

import pytest
import torch as t
from buffers import DOCUMENTS
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.evaluation import evaluate as upstream_evaluate
from dictionary_learning.evaluation import loss_recovered
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from held_out import held_out_of
from measurement import Measurement
from planted_sinks import with_sinks
from torch.distributions import Normal, kl_divergence
from upstreams_tracing import upstreams_tracing

from dictionary_learning_ext import VariationalTopKAutoEncoder, find_hook
from dictionary_learning_ext.activations.language_models import load_language_model, unwrapped
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.errors import NonFiniteError
from dictionary_learning_ext.evaluation.measure import (
    DocumentLosses,
    Sample,
    measure,
)
from dictionary_learning_ext.evaluation.metrics import (
    METRICS,
    LanguageModelLosses,
    computed,
    is_near_dead,
)

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
    assert (totals.tokens, totals.norm_factor) == (3000, 3.0)
    assert totals.squares == pytest.approx(x.double().square().sum().item(), rel=1e-12)
    assert totals.residual == pytest.approx((x - x_hat).double().square().sum().item(), rel=1e-6)
    assert t.allclose(totals.sum_D, x.double().sum(0), rtol=1e-12)
    assert t.equal(totals.selected_F, (f != 0).sum(0))
    centred = x.double() - x.double().mean(0)
    assert totals.total_variance == pytest.approx(centred.square().sum().item(), rel=1e-9)
    assert totals.kl == pytest.approx(sae.posterior(x).kl.sum().item(), rel=1e-5)
    assert (totals.mean("l0"), totals.mean("nothing of that name")) == (K, None)


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


def without_k():
    t.manual_seed(0)
    return AutoEncoder(D, F)


@pytest.mark.parametrize(
    ("sae", "k"),
    [
        (lambda: make(), K),
        (lambda: VariationalTopKAutoEncoder(D, F, 3 * F // 4, rectify=True), 3 * F // 4),
        (without_k, None),
    ],
    ids=["k are selected", "fewer than k are selected", "no k"],
)
def test_near_dead_is_relative_to_k_or_without_one_to_the_mean_l0(sae, k, x):
    t.manual_seed(1)
    sae = sae()
    on = sae.encode(x) != 0
    frequency, l0 = on.double().mean(0), on.sum(1).double().mean().item()
    metrics = metrics_of(sae, x)
    assert metrics["l0"] == pytest.approx(l0)
    assert metrics["alive"] == pytest.approx((frequency > 0).double().mean().item())
    for r in (0.1, 0.5):
        expected = (frequency < r * (k or l0) / F).double().mean().item()
        assert metrics[f"near_dead_{r}"] == pytest.approx(expected)
    assert metrics["near_dead_0.5"] > 0


@pytest.mark.parametrize("k", [4, None])
def test_a_feature_that_is_never_selected_is_near_dead(k):
    assert is_near_dead(t.zeros(3), k, 0.1).tolist() == [True] * 3
    for r in (0.0, 0.1):
        assert is_near_dead(t.tensor([0.0, 1.0, 1.0]), k, r).tolist() == [True, False, False]


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


@pytest.mark.parametrize("rectify", [False, True])
def test_a_points_samples_are_its_mean(x, rectify):
    """Rectified, with few positive means for its k, so that zeros tie."""
    sae = make(posterior="point", rectify=rectify)
    if rectify:
        sae.k.fill_(3 * F // 4)
    metrics = metrics_of(sae, x)
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
        other = (other.abs() if select_by == "magnitude" else other).topk(K).indices
        return jaccard(indices, other)

    rms = values.square().mean().sqrt().item()
    assert metrics["stability_rms"] == pytest.approx(overlap(rms / 10), abs=0.02)
    assert metrics["stability_sigma"] == pytest.approx(overlap(0.3), abs=0.02)


def jaccard(indices, others):
    """The mean Jaccard index of the sets of two selections."""
    pairs = zip(indices.tolist(), others.tolist(), strict=True)
    return sum(len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs) / len(indices)


@pytest.mark.parametrize("ours", [True, False])
def test_zeros_among_the_selected_do_not_lower_the_noise_of_stability(x, ours):
    """A rectified SAE that has fewer than k positive means, under the noise that is drawn with the seed."""
    t.manual_seed(0)
    sae = (
        VariationalTopKAutoEncoder(D, F, F // 2, rectify=True, posterior="point")
        if ours
        else AutoEncoderTopK(D, F, F // 2)
    )
    sae.encoder.bias.data -= 3
    _, values, indices, mu = sae.encode(x, return_topk=True)
    assert 0.2 < (values == 0).double().mean() < 0.9
    noise = t.empty_like(mu).normal_(generator=t.Generator().manual_seed(0))
    noisy = mu + values[values > 0].square().mean().sqrt() / 10 * noise
    overlap = jaccard(indices, noisy.topk(F // 2).indices)
    metrics = metrics_of(sae, x, batch=len(x))
    assert metrics["stability_rms"] == pytest.approx(overlap, abs=1e-6)
    sae.encoder.bias.data -= 1e6
    assert metrics_of(sae, x)["stability_rms"] is None, "nothing is selected"


def test_every_metric_of_several_saes_and_an_exact_one_recovers_all(tiny_lm):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_post")
    documents = ["It was the best of times, it was the worst of times."] * 8
    exact, poor = VariationalTopKAutoEncoder(16, 16, 16), VariationalTopKAutoEncoder(16, 16, 1)
    exact.decoder.weight.data = t.eye(16)
    exact.encoder.weight.data = t.eye(16)
    saes = {"exact": (exact, 1.0), "poor": (poor, 1.0)}
    held_out = held_out_of(tiny_lm, hook, documents * 40, 100, for_loss=documents, ctx_len=16)
    results = measure(saes, held_out)
    for metrics in results.values():
        assert set(METRICS) == set(metrics)
        assert metrics["tokens"] == 100
    assert results["exact"]["frac_recovered"] == pytest.approx(1, abs=1e-3)
    assert abs(results["exact"]["loss_added"]) < 1e-4 < abs(results["poor"]["loss_added"])
    assert results["poor"]["loss_original"] == results["exact"]["loss_original"]


def test_a_sample_measures_the_loss_on_the_first_documents_that_have_as_many_tokens(tiny_lm):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_post")
    documents = [f"It was the {word} of times." * 4 for word in ("best", "worst", "age", "epoch")]
    sae = VariationalTopKAutoEncoder(16, 32, 4)

    def held_out(n):
        whole = held_out_of(tiny_lm, hook, documents * 9, 24, for_loss=[], ctx_len=8)
        tokenizer = unwrapped(tiny_lm).tokenizer
        cut = ContextStream(iter(documents[:n]), tokenizer, 8, packing="truncate")
        return whole._replace(documents=cut.batches(1))

    found = Sample(held_out(4)).metrics(sae)["loss_added"]
    of_first = {n: measure({"one": (sae, 1.0)}, held_out(n))["one"] for n in (2, 3, 4)}
    assert found == pytest.approx(of_first[3]["loss_added"])
    assert of_first[3]["loss_positions"] == 24
    assert len({round(metrics["loss_added"], 6) for metrics in of_first.values()}) == 3


def test_a_text_that_ends_is_measured_as_far_as_it_goes(tiny_lm, caplog):
    documents = ["It was the best of times, it was the worst of times."] * 20
    sae, hook = (
        VariationalTopKAutoEncoder(16, 32, 4),
        find_hook(tiny_lm, "blocks.1.hook_resid_post"),
    )
    tokens = 20 * (1 + len(tiny_lm.tokenizer.encode(documents[0])))  # with an end of text each
    whole = tokens // 16 * 16
    held_out = held_out_of(tiny_lm, hook, documents, 10**6, for_loss=documents[:2], ctx_len=16)
    assert measure({"x": (sae, 1.0)}, held_out)["x"]["tokens"] == whole
    assert f"measured on {whole} tokens, not 1000000" in caplog.text


@pytest.mark.parametrize(
    "rows", [t.zeros(4, D), t.ones(4, D), t.ones(1, D)], ids=["zeros", "ones", "one token"]
)
def test_activations_without_variance_have_no_fve_and_the_file_says_why(rows):
    metrics = metrics_of(make(rectify=True), rows, batch=2)
    for name in ("fve", "fve_sampled", "description_length"):
        assert metrics[name] is None
        assert f"the {len(rows)} tokens" in metrics["not_measured"][name]
    assert metrics["tokens"] == len(rows)
    assert metrics["l0"] is not None
    if len(rows) == 1:
        assert "frac_variance_explained" in metrics["not_measured"], "upstream's is NaN"
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ((math.nan, math.nan, math.nan, 0, 3, 0), "a second token"),
        ((2.0, 2.0, 2.0, 8, 9, 9), "the loss"),
    ],
)
def test_losses_that_are_not_defined_are_null_with_the_reason(x, losses, reason):
    measurement = Measurement(make())
    measurement.add(x)
    measurement.totals.losses = LanguageModelLosses(*losses)
    metrics = computed(measurement.totals)
    assert metrics["frac_recovered"] is None
    assert (metrics["loss_added"] is None) == (losses[3] == 0)
    assert reason in metrics["not_measured"]["frac_recovered"]
    assert (metrics["loss_tokens"], metrics["positions_left_alone"]) == (losses[3], losses[5])
    json.dumps(metrics, allow_nan=False)


# --- the language model's losses


def losses_of(
    lm, saes, documents=DOCUMENTS, hook="blocks.1.hook_resid_post", tokens=math.inf, **rules
):
    point = find_hook(lm, hook)
    reader = ActivationReader(unwrapped(lm), point.place, PositionRule(lm.tokenizer, **rules))
    contexts = ContextStream(iter(documents), lm.tokenizer, 16, packing="truncate")
    losses = DocumentLosses(reader, contexts.batches(16), tokens)
    return [losses.of(sae) for sae in saes]


def sae_of(seed=0):
    t.manual_seed(seed)
    return VariationalTopKAutoEncoder(16, 32, 4)


class Exact(t.nn.Linear):
    """Reconstructs whatever it is given."""

    def forward(self, x):
        return x


@upstreams_tracing
@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
def test_where_nothing_is_left_out_they_are_upstreams(lm_of, family, kind):
    lm, sae = lm_of(family), sae_of()
    hook = find_hook(lm, f"blocks.1.hook_resid_{kind}")
    documents = [
        *DOCUMENTS[:20],
        "the cat",
    ]  # more than a batch; of several lengths, so some are padded
    (losses,) = losses_of(lm, [sae], documents, hook.name)
    theirs = loss_recovered(documents, lm, hook.submodule, sae, max_len=16, io=hook.io)
    expected = [loss.item() for loss in theirs]
    assert [losses.original, losses.reconstructed, losses.zero] == pytest.approx(expected, rel=1e-5)
    assert losses.reconstructed != pytest.approx(losses.original, rel=1e-5)
    assert losses.left_alone == 0
    lengths = [min(16, len(lm.tokenizer.encode(text))) for text in documents]
    assert losses.positions == sum(lengths)
    assert losses.tokens == sum(lengths) - len(documents)


def test_each_sae_gets_the_losses_that_it_has_alone(tiny_lm):
    saes = [sae_of(0), sae_of(1)]
    both = losses_of(tiny_lm, saes)
    assert both == [losses_of(tiny_lm, [sae])[0] for sae in saes]
    assert both[0].reconstructed != both[1].reconstructed


@pytest.mark.parametrize(
    ("tokens", "read"), [(1, 16), (10**6, len(DOCUMENTS)), (math.inf, len(DOCUMENTS))]
)
def test_enough_documents_are_read_for_a_number_of_tokens(tiny_lm, tokens, read):
    """16 at a time."""
    found = losses_of(tiny_lm, [sae_of()], tokens=tokens)
    assert found == losses_of(tiny_lm, [sae_of()], DOCUMENTS[:read])
    assert len(DOCUMENTS) > 16


def test_padding_is_not_counted_among_the_tokens_that_are_read(tiny_lm):
    documents = ["the cat", DOCUMENTS[0]] * 16
    (of_half,) = losses_of(tiny_lm, [sae_of()], documents[:16])
    assert of_half.positions < 16 * 16
    (found,) = losses_of(tiny_lm, [sae_of()], documents, tokens=of_half.positions + 1)
    assert found.positions == 2 * of_half.positions


def test_with_remove_bos_the_token_keeps_its_activation(tiny_lm):
    documents = [tiny_lm.tokenizer.bos_token + each for each in DOCUMENTS]
    (replaced,) = losses_of(tiny_lm, [sae_of()], documents)
    (kept,) = losses_of(tiny_lm, [sae_of()], documents, remove_bos=True)
    assert (replaced.left_alone, kept.left_alone) == (0, len(documents))
    assert kept.original == replaced.original
    assert kept.reconstructed != replaced.reconstructed


def test_outliers_keep_their_activations(lm_dir_of):
    """Without the rule, a reconstruction of the sinks that misses costs the model its loss."""
    lm, poor = with_sinks(lm_dir_of("gpt2"), "left"), sae_of()
    (replaced,) = losses_of(lm, [poor])
    exact, kept = losses_of(lm, [Exact(16, 16), poor], max_norm_multiple=10)
    assert (replaced.left_alone, kept.left_alone) == (0, len(DOCUMENTS)), "position 0 of each"
    assert kept.original == replaced.original
    assert kept.reconstructed != pytest.approx(replaced.reconstructed, rel=1e-3)
    assert exact.reconstructed == exact.original


def test_outliers_are_those_of_the_hook_point_whatever_a_later_module_changes_in_place(lm_dir_of):
    lm = with_sinks(lm_dir_of("gpt2"), "left")

    def change(_: t.nn.Module, args: tuple[t.Tensor]) -> None:
        args[0].fill_(1)  # then no norm is larger than another

    hook = lm._module.transformer.h[2].ln_1.register_forward_pre_hook(change)
    try:
        (losses,) = losses_of(lm, [sae_of()], max_norm_multiple=10)
    finally:
        hook.remove()
    assert losses.left_alone == len(DOCUMENTS)


def test_documents_without_a_second_token_have_no_loss(tiny_lm):
    (losses,) = losses_of(tiny_lm, [sae_of()], ["a", "", "b"])
    assert (losses.tokens, losses.positions) == (0, 2)
    assert math.isnan(losses.original)


def test_an_activation_that_is_not_finite_is_an_error(tiny_lm_dir):
    lm: Any = load_language_model(str(tiny_lm_dir))
    with t.no_grad():
        lm._module.gpt_neox.embed_in.weight[lm.tokenizer.encode(" cat")[0]] = math.inf
    with pytest.raises(NonFiniteError):
        losses_of(lm, [sae_of()], ["the cat"])
