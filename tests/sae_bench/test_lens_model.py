"""TransformerLens's conversion against the model that the SAEs are trained on, and the positions that
training leaves out in SAE Bench's core."""

from typing import Any

import pytest
import torch as t
from bench_saes import FOUR, PLACE, SMALL, D, F, K

from dictionary_learning_ext import RunConfig, VariationalTopKAutoEncoder, train
from dictionary_learning_ext.activations.hook_points import HOOK_KINDS, find_hook, read_residual
from dictionary_learning_ext.activations.language_models import load_language_model, unwrapped
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import BenchError
from dictionary_learning_ext.evaluation.measure import DocumentLosses

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

import sae_bench.evals.core.main as core  # pyright: ignore[reportMissingImports]
from transformer_lens.model_bridge import (  # pyright: ignore[reportMissingImports]
    TransformerBridge,
)

from dictionary_learning_ext.sae_bench import adapter, lens_model
from dictionary_learning_ext.sae_bench.runner import bench

pytestmark = pytest.mark.extra

HOOK = "blocks.1.hook_resid_post"
TEXT = "It was the best of times, it was the worst of times, by the door."


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_transformer_lens_gives_the_training_activations(family, kind, lm_of):
    model = lm_of(family)
    hook = find_hook(model, f"blocks.1.{kind}")
    hooked = lens_model.hooked_transformer(model, hook, family)
    assert lens_model.check_activations(hooked, unwrapped(model), hook) < 1e-5


@pytest.mark.parametrize("family", ["gemma1", "gemma", "gemma3", "olmo2", "glm4"])
@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_what_can_not_be_converted_is_wrapped(family, kind, lm_of):
    """Gemma 2 is "gemma". The original model is left as it is: nnsight reads it."""
    model = lm_of(family)
    hook = find_hook(model, f"blocks.1.{kind}")
    tokens = t.arange(40).reshape(2, 20)
    before = read_residual(model, hook, tokens, t.ones_like(tokens))
    hooked = lens_model.hooked_transformer(model, hook, family)
    assert isinstance(hooked, TransformerBridge)
    assert lens_model.check_activations(hooked, unwrapped(model), hook) < 1e-5
    assert hooked.cfg.model_name == family
    original: Any = model._module
    with t.no_grad():
        logits = original(tokens).logits
        assert (hooked(tokens) - logits).abs().max() < 1e-4 * logits.abs().max()
    assert t.equal(read_residual(model, hook, tokens, t.ones_like(tokens)), before)


def test_what_can_be_neither_converted_nor_wrapped_is_one_line(lm_of, monkeypatch):
    def unknown(*_, **__):
        raise NotImplementedError("GemmaForCausalLM is not supported\nat all")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", unknown)
    model = lm_of("gemma1")
    hook = find_hook(model, HOOK)
    message = (
        r"can't take a GemmaForCausalLM: it can't convert it \(\w+: .*\), and can't wrap it in a "
        r"TransformerBridge \(NotImplementedError: GemmaForCausalLM is not supported\)$"
    )
    with pytest.raises(BenchError, match=message):
        lens_model.hooked_transformer(model, hook, "x")


def test_a_conversion_to_another_model_is_wrapped_instead(lm_of, monkeypatch):
    def wrong(*arguments):
        hooked = converted(*arguments)
        hooked.blocks[0].mlp.b_out.data += 1
        return hooked

    converted = lens_model._converted
    monkeypatch.setattr(lens_model, "_converted", wrong)
    model = lm_of("llama")
    hook = find_hook(model, HOOK)
    assert isinstance(lens_model.hooked_transformer(model, hook, "x"), TransformerBridge)
    monkeypatch.setattr(lens_model, "_bridged", wrong)
    with pytest.raises(BenchError, match=r"differ .* 1e-04.*differ .* 1e-04"):
        lens_model.hooked_transformer(model, hook, "x")


def test_every_evaluation_takes_a_wrapped_model(lm_dir_of, text, tmp_path, books):
    """A Gemma 2."""
    run = RunConfig(
        model=str(lm_dir_of("gemma")),
        hook=HOOK,
        data=text,
        save_dir=str(tmp_path / "sae"),
        steps=10,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    folder = train(run, {"sae": VSAETopKConfig(dict_size=F, k=K)})["sae"]
    evals = [*FOUR, "sae_probes"]
    with t.enable_grad():
        outcome = bench(
            [folder], evals=evals, probing_sets="119_us_state_TX", **SMALL | {"data": books}
        )
    assert outcome.failures == {}
    assert sorted(outcome.results["sae"]) == sorted(evals)


def with_far_token(lm_dir):
    """A model whose " the" has a norm far above the others'; how often it is in TEXT."""
    lm: Any = load_language_model(str(lm_dir))
    (token,) = lm.tokenizer.encode(" the")
    with t.no_grad():
        lm._module.gpt_neox.embed_in.weight[token] *= 200
        lm._module.get_output_embeddings().weight *= 20  # or its losses are those of chance
    return lm, lm.tokenizer.encode(TEXT)[:12].count(token)


@pytest.mark.parametrize("multiple", [None, 10.0])
def test_core_replaces_the_positions_that_our_losses_replace(multiple, tiny_lm_dir):
    lm, far = with_far_token(tiny_lm_dir)
    hook = find_hook(lm, HOOK)
    hooked = lens_model.hooked_transformer(lm, hook, "sinks")
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(D, F, K)
    sae = adapter.BenchSAE(dictionary, **PLACE | {"hook_name": HOOK, "hook_layer": 1})
    documents = [TEXT] * 3
    contexts = ContextStream(iter(documents), lm.tokenizer, 12, packing="truncate")
    tokens_BL, _ = contexts.next_batch(3)
    assert tokens_BL.shape == (3, 12)
    reader = ActivationReader(unwrapped(lm), hook.place, PositionRule(max_norm_multiple=multiple))
    contexts = ContextStream(iter(documents), lm.tokenizer, 12, packing="truncate")
    ours = DocumentLosses(reader, contexts.batches()).of(dictionary)
    assert ours.left_alone == (3 * far if multiple else 0)
    run_with_hooks = hooked.run_with_hooks
    with lens_model.left_alone(hooked, reader.rule):
        theirs = core.get_recons_loss(
            sae, hooked, tokens_BL, None, compute_kl=False, compute_ce_loss=True
        )
    assert hooked.run_with_hooks == run_with_hooks
    for name, loss in {
        "ce_loss_without_sae": ours.original,
        "ce_loss_with_sae": ours.reconstructed,
        "ce_loss_with_ablation": ours.zero,
    }.items():
        assert theirs[name].mean().item() == pytest.approx(loss, rel=1e-4), name
