"""TransformerLens's conversion against the model that the SAEs are trained on."""

from typing import Any

import pytest
import torch as t
from bench_saes import FOUR, SMALL, F, K

from dictionary_learning_ext import RunConfig, SAEConfig, train
from dictionary_learning_ext.activations.hook_points import HOOK_KINDS, find_hook, read_residual
from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

import jaxtyping  # pyright: ignore[reportMissingImports]
from transformer_lens.model_bridge import (  # pyright: ignore[reportMissingImports]
    TransformerBridge,
)

from dictionary_learning_ext.sae_bench import lens_model
from dictionary_learning_ext.sae_bench.runner import bench


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_transformer_lens_gives_the_training_activations(family, kind, lm_of):
    model = lm_of(family)
    hook = find_hook(model, f"blocks.1.{kind}")
    hooked = lens_model.hooked_transformer(model, hook, family)
    assert lens_model.check_activations(hooked, model, hook) < 1e-5


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
    assert lens_model.check_activations(hooked, model, hook) < 1e-5
    assert hooked.cfg.model_name == family
    original: Any = model._model
    with t.no_grad():
        logits = original(tokens).logits
        assert (hooked(tokens) - logits).abs().max() < 1e-4 * logits.abs().max()
    assert t.equal(read_residual(model, hook, tokens, t.ones_like(tokens)), before)


def test_what_can_be_neither_converted_nor_wrapped_is_one_line(lm_of, monkeypatch):
    def unknown(*_, **__):
        raise NotImplementedError("GemmaForCausalLM is not supported\nat all")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", unknown)
    model = lm_of("gemma1")
    hook = find_hook(model, "blocks.1.hook_resid_post")
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
    hook = find_hook(model, "blocks.1.hook_resid_post")
    assert isinstance(lens_model.hooked_transformer(model, hook, "x"), TransformerBridge)
    monkeypatch.setattr(lens_model, "_bridged", wrong)
    with pytest.raises(
        BenchError, match=r"differ .* expected at most 1e-04.*differ .* at most 1e-04"
    ):
        lens_model.hooked_transformer(model, hook, "x")


def test_type_checks_are_on_again_after_an_error(lm_of):
    wrapped = lens_model.hooked_transformer(
        lm_of("gemma1"), find_hook(lm_of("gemma1"), "blocks.1.hook_resid_post"), "x"
    )

    def failing():
        with lens_model.accepted(wrapped):
            assert jaxtyping.config.jaxtyping_disable
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert not jaxtyping.config.jaxtyping_disable


def test_every_evaluation_takes_a_wrapped_model(lm_dir_of, text, tmp_path):
    """A Gemma 2."""
    run = RunConfig(
        model=str(lm_dir_of("gemma")),
        hook="blocks.1.hook_resid_post",
        data=text,
        save_dir=str(tmp_path / "sae"),
        steps=10,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    folder = train(run, {"sae": SAEConfig(dict_size=F, k=K)})["sae"]
    evals = [*FOUR, "sae_probes"]
    with t.enable_grad():
        outcome = bench([folder], evals=evals, probing_sets="119_us_state_TX", **SMALL)
    assert outcome.failures == {}
    assert sorted(outcome.results["sae"]) == sorted(evals)


def test_a_model_that_was_processed_is_refused(lm_of):
    model = lm_of("gpt_neox")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "tiny")
    hooked.process_weights_(center_writing_weights=True)
    with pytest.raises(BenchError, match=r"TransformerLens's activations differ .* at most 1e-04"):
        lens_model.check_activations(hooked, model, hook)
