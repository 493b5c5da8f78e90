"""Contexts with activations: how many tokens, which are wanted, and texts that are too short."""

import pytest

from dictionary_learning_ext.activations.contexts import read_contexts
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.config.run_config import RunConfig
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
