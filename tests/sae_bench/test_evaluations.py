"""Core against our own evaluation, ablations against SAE Bench's own, and absorption on a model that is
too small for it."""

from collections import Counter
from contextlib import nullcontext
from itertools import cycle, islice
from types import SimpleNamespace

import pytest
import torch as t
from bench_saes import PLACE, SMALL, D, F, K
from measurement import Measurement

from dictionary_learning_ext import VariationalTopKAutoEncoder
from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.language_models import (
    load_language_model,
    load_tokenizer,
    unwrapped,
)
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.errors import BenchError
from dictionary_learning_ext.evaluation.measure import DocumentLosses
from dictionary_learning_ext.evaluation.metrics import computed

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

import datasets
import sae_bench.evals.absorption.common as absorption_common  # pyright: ignore[reportMissingImports]
import sae_bench.evals.absorption.feature_absorption as feature_absorption  # pyright: ignore[reportMissingImports]
import sae_bench.evals.core.main as core  # pyright: ignore[reportMissingImports]
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp  # pyright: ignore[reportMissingImports]
from sae_bench.evals.absorption.vocab import (  # pyright: ignore[reportMissingImports]
    get_alpha_tokens,
)
from sae_bench.sae_bench_utils.general_utils import (  # pyright: ignore[reportMissingImports]
    load_and_format_sae,
)
from sae_lens.training.activations_store import (  # pyright: ignore[reportMissingImports]
    ActivationsStore,
)

from dictionary_learning_ext.sae_bench import adapter, evaluations, lens_model
from dictionary_learning_ext.sae_bench.data import open_bench_data
from dictionary_learning_ext.sae_bench.runner import bench
from dictionary_learning_ext.sae_bench.settings import (
    BenchSettings,
    configure,
    seed_everything,
)


def test_absorption_is_refused_for_a_model_that_does_not_encode_first_letters(one):
    outcome = bench([one], evals=["absorption"], **SMALL)
    with pytest.raises(BenchError, match=r" \d+ with F1"):
        outcome.check()


@pytest.mark.parametrize("hook", ["blocks.1.hook_mlp_out", "blocks.0.hook_resid_pre"])
def test_absorption_is_refused_where_sae_bench_would_read_other_activations(hook):
    sae = SimpleNamespace(cfg=SimpleNamespace(hook_name=hook))
    with pytest.raises(BenchError, match=rf"trained on {hook}; "):
        evaluations.run_absorption(sae, "x", None, None)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def letters(monkeypatch):
    """Twenty words of each first letter, always in the same order; examples have answers of one token."""
    words = {}
    for word in sorted(get_alpha_tokens(load_tokenizer("embedded"))):
        words.setdefault(word.strip()[0].lower(), []).append(word)
    of_letter = {letter: list(islice(cycle(some), 20)) for letter, some in words.items()}
    every = [word for some in of_letter.values() for word in some]
    examples = [word for word in every if word.strip()[0].lower() not in "qz"]
    monkeypatch.setattr(absorption_common, "get_alpha_tokens", lambda _: every)
    monkeypatch.setattr(feature_absorption, "get_alpha_tokens", lambda _: examples)


def test_absorption_runs_no_block_above_the_sae_and_scores_the_same(letters, tmp_path, monkeypatch):
    model = load_language_model("embedded")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "embedded")
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(128, 256, 32).eval()
    sae = adapter.BenchSAE(dictionary, **PLACE | {"hook_name": hook.name, "hook_layer": 1})
    passes = Counter()
    for n, block in enumerate(hooked.blocks):
        block.register_forward_hook(lambda *_, n=n: passes.update([n]))
    found = []
    for case in ("stopped", "to the end"):
        if case == "to the end":
            monkeypatch.setattr(evaluations, "stopped_after", lambda *_: nullcontext())
        cache = tmp_path / case
        settings = BenchSettings(hooked, open_bench_data("embedded", tmp_path), cache, ())
        config = configure("absorption", settings)
        config.min_GT_probe_f1, config.k_sparse_probe_num_epochs, config.max_k_value = -1, 2, 2
        seed_everything(42)
        output = evaluations.run_absorption(sae, "sae", config, settings)
        found.append((output["eval_result_metrics"]["mean"], output["eval_result_details"]))
        if case == "stopped":
            assert passes[0] == passes[1] > 0
            assert passes.keys() == {0, 1}
    assert passes.keys() == {0, 1, 2, 3}
    assert found[0] == found[1]
    assert len(found[0][1]) > 10, "letters"
    assert found[0][0]["mean_absorption_fraction_score"] > 0


def test_core_agrees_with_our_evaluation_on_the_same_tokens():
    """Two implementations of one model in float32: their logits differ by about 1e-6, their
    losses' gap, by which the score divides, is several nats."""
    model = load_language_model("embedded")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "embedded")
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(128, 256, 32).eval()
    sae = adapter.BenchSAE(dictionary, **PLACE | {"hook_name": hook.name, "hook_layer": 1})
    ctx_len, stream = 32, open_text("embedded", split="heldout")
    documents = [text for text, _ in zip(stream, range(16), strict=False) if len(text) > 400]
    documents = documents[: len(documents) // 4 * 4]
    rows = model.tokenizer(documents, truncation=True, max_length=ctx_len)["input_ids"]
    assert {len(row) for row in rows} == {ctx_len}
    config = core.CoreEvalConfig(
        batch_size_prompts=4,
        n_eval_reconstruction_batches=len(rows) // 4,
        n_eval_sparsity_variance_batches=len(rows) // 4,
        context_size=ctx_len,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    load_and_format_sae("sae", sae, "cpu")
    dataset = datasets.Dataset.from_dict({"tokens": rows}).to_iterable_dataset()
    store = ActivationsStore.from_sae(hooked, sae, dataset, context_size=ctx_len)
    theirs, _ = core.run_evals(sae, store, hooked, config)

    reader = ActivationReader(unwrapped(model), hook.place, PositionRule())
    contexts = ContextStream(iter(documents), model.tokenizer, ctx_len, packing="truncate")
    losses = DocumentLosses(reader, contexts.batches()).of(dictionary)
    recovered = (losses.zero - losses.reconstructed) / (losses.zero - losses.original)
    tokens = t.tensor(rows)
    measurement = Measurement(dictionary)
    measurement.add(read_residual(model, hook, tokens, t.ones_like(tokens)).flatten(0, 1))
    ours = computed(measurement.totals)
    preserved = theirs["model_performance_preservation"]
    for name, mine in {
        "ce_loss_score": recovered,
        "ce_loss_without_sae": losses.original,
        "ce_loss_with_sae": losses.reconstructed,
        "ce_loss_with_ablation": losses.zero,
    }.items():
        assert preserved[name] == pytest.approx(mine, rel=1e-4), name
    assert theirs["sparsity"]["l0"] == pytest.approx(ours["l0"], abs=1e-3)
    assert theirs["reconstruction_quality"]["cossim"] == pytest.approx(ours["cossim"], rel=1e-4)
    assert 0.05 < recovered < 0.95


def test_encoding_once_gives_sae_benchs_ablations():
    sae = adapter.BenchSAE(VariationalTopKAutoEncoder(D, F, K), **PLACE)
    sae.dictionary.b_dec.data.normal_()
    sets = [t.randn(7, 5, D), t.randn(4, 6, D)]
    for acts in sets:
        acts[1, 2:] = 0  # padded
    theirs = scr_and_tpp.ablated_precomputed_activations
    with evaluations.encoding_once():
        ours = scr_and_tpp.ablated_precomputed_activations
        assert ours is not theirs
        for n in (1, 9):
            mask = t.arange(F) % 7 < n
            for acts in sets:
                t.testing.assert_close(ours(acts, sae, mask, 3), theirs(acts, sae, mask, 3))
        for _ in range(3):  # each in the memory, and with the id, that the one before has left
            other = t.randn(7, 5, D)
            t.testing.assert_close(ours(other, sae, mask, 3), theirs(other, sae, mask, 3))
            del other
    assert scr_and_tpp.ablated_precomputed_activations is theirs
