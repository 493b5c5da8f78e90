"""Core against our own evaluation, and absorption by SAE Bench's own function."""

from itertools import cycle, islice
from types import SimpleNamespace

import pytest
import torch as t
from bench_saes import PLACE
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
from dictionary_learning_ext.sae_bench.data import BenchData
from dictionary_learning_ext.sae_bench.settings import BenchSettings, configure

pytestmark = pytest.mark.extra


@pytest.mark.parametrize("hook", ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre"])
def test_absorption_is_refused_where_sae_bench_would_read_other_activations(hook):
    sae = SimpleNamespace(cfg=SimpleNamespace(hook_name=hook))
    with pytest.raises(BenchError, match=rf"trained on {hook}; "):
        configure("absorption", None, sae)  # pyright: ignore[reportArgumentType]


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


def test_absorption_is_sae_benchs_and_of_the_model_that_is_loaded(letters, tmp_path, monkeypatch):
    """Nothing is kept in SAE Bench's package, where another model of this name would take it."""
    model = load_language_model("embedded")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "embedded")
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(128, 256, 32).eval()
    sae = adapter.BenchSAE(dictionary, **PLACE | {"hook_name": hook.name, "hook_layer": 1})
    data = BenchData("embedded", tmp_path, None)
    settings = BenchSettings(hooked, PositionRule(), data, tmp_path)
    config = configure("absorption", settings, sae)
    config.min_GT_probe_f1, config.k_sparse_probe_num_epochs, config.max_k_value = -1, 2, 2
    output = evaluations.evaluate("absorption", sae, "sae", config, settings)
    assert len(output["eval_result_details"]) > 10, "letters"
    assert output["eval_result_metrics"]["mean"]["mean_absorption_fraction_score"] > 0
    assert not absorption_common.RESULTS_DIR.exists()
    config.min_GT_probe_f1 = 2  # which no letter reaches
    with pytest.raises(
        BenchError, match=r"embedded at blocks\.1.* not encode enough first letters"
    ):
        evaluations.evaluate("absorption", sae, "sae", config, settings)


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
