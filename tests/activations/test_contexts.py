"""Contexts with activations: how many tokens, which are wanted, and texts that are too short."""

from dataclasses import replace

import pytest
import torch as t
from caches import HOOK

from dictionary_learning_ext.activations.contexts import read_contexts
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import TextError


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_contexts_hold_as_many_wanted_tokens_as_asked_for(tiny_lm, text, packing):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_post")
    run = RunConfig(data=text, ctx_len=16, text_packing=packing, remove_bos=True)
    batches = list(read_contexts(run, tiny_lm, hook, "train", 700))
    assert sum(int(batch.wanted_BL.sum()) for batch in batches) == 700
    for batch in batches:
        assert not (batch.input_ids_BL[batch.wanted_BL] == 0).any()
        assert batch.x_BLD.shape == (*batch.input_ids_BL.shape, 16)


def test_a_text_without_a_context_is_one_line(tiny_lm, tmp_path):
    (tmp_path / "short.txt").write_text("the cat")
    run = RunConfig(data=str(tmp_path / "short.txt"))
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_post")
    with pytest.raises(TextError, match="no whole context of 128 tokens"):
        list(read_contexts(run, tiny_lm, hook, "train", 100))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_contexts_of_a_cache_are_those_of_the_text(split, cached_run, small_cache, tiny_lm):
    run = replace(cached_run, hook=HOOK, remove_bos=True)
    hook = find_hook(tiny_lm, HOOK)
    live = list(read_contexts(run, tiny_lm, hook, split, 250))
    stored = replace(run, activations=str(small_cache))
    cached = list(read_contexts(stored, tiny_lm, hook, split, 250))
    ours, theirs = (
        [
            t.cat([getattr(batch, name) for batch in batches])
            for name in ("input_ids_BL", "wanted_BL")
        ]
        for batches in (cached, live)
    )
    n = min(len(ours[0]), len(theirs[0]))
    assert t.equal(ours[0][:n], theirs[0][:n])
    assert t.equal(ours[1][:n], theirs[1][:n])
    assert int(ours[1].sum()) == 250
    x, expected = (t.cat([batch.x_BLD for batch in batches])[:n] for batches in (cached, live))
    t.testing.assert_close(x, expected)
