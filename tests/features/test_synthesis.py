"""Synthesised tokens: the language model scores them, and a planted feature is found."""

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext import load_language_model, synthesise
from dictionary_learning_ext.errors import ConfigError

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre")
SHORT = {"length": 3, "restarts": 2, "steps": 10}


@pytest.fixture(scope="module")
def sae():
    t.manual_seed(0)
    return AutoEncoderTopK(16, 24, 6).requires_grad_(False)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("family", ["gpt_neox", "gemma"])
def test_the_activation_is_the_language_models_on_hard_tokens(family, hook, lm_of, sae):
    """Gemma scales its embeddings."""
    lm = lm_of(family)
    layer = 2 if hook.endswith("post") else 1  # hidden_states[0] is the embedding's
    for found, feature in zip(synthesise(sae, [5, 2], lm, hook=hook, **SHORT), (5, 2), strict=True):
        assert found.feature == feature
        assert found.text == lm.tokenizer.decode(found.input_ids)
        with t.no_grad():
            states = lm._module(input_ids=t.tensor([found.input_ids]), output_hidden_states=True)
        x_D = states.hidden_states[layer][0, -1]
        assert found.activation == pytest.approx(float(sae.encode(x_D)[feature]), abs=1e-4)
    assert all(weight.grad is None for weight in lm._module.parameters())


def test_it_climbs_above_random_tokens(tiny_lm, sae):
    found = synthesise(sae, range(8), tiny_lm, hook=HOOKS[0], length=4, restarts=3, steps=30)
    reached = [one for one in found if one.activation > 0]
    assert len(reached) >= 6
    assert sum(one.activation > one.random for one in reached) >= 0.8 * len(reached)


def test_it_repeats_for_one_seed_whatever_is_made_beside_it(tiny_lm, sae):
    where = {"lm": tiny_lm, "hook": HOOKS[0], **SHORT}
    both = synthesise(sae, [4, 9], **where)
    assert synthesise(sae, [9], **where) == both[1:]
    other = synthesise(sae, [4, 9], **where, seed=1)
    assert [one.input_ids for one in other] != [one.input_ids for one in both]


@pytest.mark.parametrize(
    ("features", "options", "named"),
    [([24], {}, "24.*23"), ([0], {"length": 0}, "length=0")],
)
def test_what_is_out_of_range_is_refused(features, options, named, tiny_lm, sae):
    with pytest.raises(ConfigError, match=named):
        synthesise(sae, features, tiny_lm, hook=HOOKS[0], **options)


def test_a_planted_feature_is_found(tiny_lm_dir):
    """It reads the embedding of " cat"."""
    lm = load_language_model(str(tiny_lm_dir))
    token = lm.tokenizer(" cat")["input_ids"][0]
    embedding = lm._module.get_input_embeddings().weight
    embedding.data = t.randn(embedding.shape, generator=t.Generator().manual_seed(0))
    embedding.data[token] *= 2
    planted = embedding[token].detach() / embedding[token].detach().norm()
    t.manual_seed(0)
    sae = AutoEncoderTopK(16, 24, 3).requires_grad_(False)
    sae.encoder.weight[7] = planted
    (found,) = synthesise(sae, [7], lm, hook="blocks.0.hook_resid_pre", length=4)
    assert found.input_ids[-1] == token
    assert found.activation == pytest.approx(float(embedding[token].norm()), rel=1e-4)
