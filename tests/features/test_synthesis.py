"""Synthesised tokens: the real model scores them, and a planted feature is found in every way."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from language_model_reads import half_on_disk

from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.language_models import load_language_model, unwrapped
from dictionary_learning_ext.codes.codes import encode
from dictionary_learning_ext.codes.table import FeatureTable
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.evaluation.measure import measure
from dictionary_learning_ext.features.directions import LogitLens, decoder_directions
from dictionary_learning_ext.features.synthesis import synthesise

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre")


@pytest.fixture(scope="module")
def sae():
    t.manual_seed(0)
    return AutoEncoderTopK(16, 24, 6).requires_grad_(False)


def hooks_of(model):
    """Of each module, before and after its forward."""
    modules = model._module.modules()
    return [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in modules]


@pytest.mark.parametrize("hook_name", HOOKS)
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "gemma", "qwen"])
def test_the_activation_is_the_real_models_on_hard_tokens(family, hook_name, lm_of, sae):
    model = lm_of(family)
    before = hooks_of(model)
    found = synthesise(
        sae, model._module, find_hook(model, hook_name), [5, 2], length=4, restarts=2, steps=6
    )
    assert hooks_of(model) == before, "nothing is left on the model"
    layer = 2 if hook_name.endswith("post") else 1  # hidden_states[0] is the embedding's
    for one, feature in zip(found, (5, 2), strict=True):
        assert one.feature == feature
        assert len(one.input_ids) == 4
        with t.no_grad():
            states = model._module(
                input_ids=t.tensor([one.input_ids]), output_hidden_states=True
            ).hidden_states[layer]
        expected = float(sae.encode(states[0, -1])[feature])
        assert one.activation == pytest.approx(expected, abs=1e-4)
        assert one.random >= 0


def test_it_climbs_above_random_tokens(tiny_lm, sae):
    hook = find_hook(tiny_lm, HOOKS[0])
    found = synthesise(sae, tiny_lm._module, hook, range(12), length=4, restarts=3, steps=30)
    reachable = [one for one in found if one.activation > 0]
    assert len(reachable) >= 10
    assert sum(one.activation > one.random for one in reachable) >= 0.8 * len(reachable)


def test_an_sae_in_bf16_takes_activations_in_fp32(tiny_lm, sae):
    hook, halved = find_hook(tiny_lm, HOOKS[0]), deepcopy(sae).bfloat16()
    options = {"length": 3, "restarts": 2, "steps": 2}
    (whole,) = synthesise(sae, tiny_lm._module, hook, [4], **options)
    (half,) = synthesise(halved, tiny_lm._module, hook, [4], **options)
    assert half.random == pytest.approx(whole.random, rel=0.05)


def test_it_repeats_for_one_seed_whatever_is_made_beside_it(tiny_lm, sae):
    hook = find_hook(tiny_lm, HOOKS[0])
    options = {"length": 3, "restarts": 2, "steps": 10}
    one = synthesise(sae, tiny_lm._module, hook, [4, 9], **options)
    assert one == synthesise(sae, tiny_lm._module, hook, [4, 9], **options)
    alone = synthesise(sae, tiny_lm._module, hook, [9], **options)[0]
    assert alone.input_ids == one[1].input_ids
    other = synthesise(sae, tiny_lm._module, hook, [4, 9], seed=1, **options)
    assert [x.input_ids for x in other] != [x.input_ids for x in one]


def test_a_planted_feature_is_found_by_contexts_logits_and_synthesis(tiny_lm_dir, text):
    """One feature reads and writes the embedding of " cat", which is also its unembedding."""
    model = load_language_model(str(tiny_lm_dir))
    hf_model, tokenizer = model._module, model.tokenizer
    token = tokenizer(" cat")["input_ids"][0]
    embedding = t.randn(304, 16, generator=t.Generator().manual_seed(0))
    embedding[token] *= 2
    hf_model.get_input_embeddings().weight.data = embedding
    hf_model.get_output_embeddings().weight.data = embedding.clone()
    planted = embedding[token] / embedding[token].norm()
    t.manual_seed(0)
    sae = AutoEncoderTopK(16, 24, 3).requires_grad_(False)
    sae.decoder.weight[:, 7] = planted
    sae.encoder.weight[7] = planted

    hook = find_hook(model, "blocks.0.hook_resid_pre")
    run = RunConfig(data=text, ctx_len=32)
    inputs = open_inputs(run, [hook.name], language_model=unwrapped(model))
    (codes,) = encode([sae], inputs.contexts(hook.name, "train", 2000))
    statistics = FeatureTable(codes)
    assert statistics.top.tokens(7) == [token]
    assert float(statistics.max_F[7]) == pytest.approx(float(embedding[token].norm()), rel=1e-4)

    promoted, _ = LogitLens(model._module).ranked(decoder_directions(sae))
    assert promoted.indices_Fn[7, 0] == token

    found = synthesise(sae, model._module, hook, [7], length=4)[0]
    assert found.input_ids[-1] == token
    assert found.activation == pytest.approx(float(statistics.max_F[7]), rel=1e-4)


def test_of_a_model_that_is_half_on_the_disk_tokens_logits_and_losses_are_those_of_the_whole_one():
    t.manual_seed(0)
    sae = AutoEncoderTopK(128, 24, 6).requires_grad_(False)
    run = RunConfig(hook="blocks.2.hook_resid_post", eval_documents=4)
    found = []
    for device_map in (None, half_on_disk(), {"": "disk"}):
        inputs = open_inputs(replace(run, device_map=device_map), [run.hook])
        model = inputs.require_language_model("", "").module
        synthesised = synthesise(sae, model, inputs.hooks[run.hook], [5, 2], length=3, steps=4)
        logits_NV = LogitLens(model).logits(decoder_directions(sae))
        measured = measure({"sae": (sae, 1.0)}, inputs.held_out(run.hook, 200))["sae"]
        found.append((synthesised, logits_NV.tolist(), measured))
    assert found[0] == found[1] == found[2]
