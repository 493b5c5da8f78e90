"""Passes of a language model that several places ask for. tests/training/test_processes.py deals them to processes."""

import logging

import pytest
import torch
from language_model_reads import counted_passes, some_tokens

from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.language_models import unwrapped
from dictionary_learning_ext.activations.passes import SharedPasses

SHARED = ["blocks.2.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]


@pytest.fixture
def hooks(tiny_lm):
    return [find_hook(tiny_lm, name) for name in SHARED]


@pytest.fixture
def shared(tiny_lm, hooks):
    return SharedPasses(unwrapped(tiny_lm), [hook.place for hook in hooks])


def test_all_are_read_in_one_pass_and_are_what_each_would_read_alone(tiny_lm, hooks, shared):
    for seed in (0, 1):
        tokens = some_tokens(seed)
        two = [tokens, some_tokens(2)]
        with counted_passes() as passes:
            read = [shared.read(hook.place, two) for hook in hooks]
        assert passes == [3, 3]
        for hook, all_x in zip(hooks, read, strict=True):
            for x, contexts in zip(all_x, two, strict=True):
                assert torch.equal(x, read_residual(tiny_lm, hook, *contexts))


def test_those_that_ask_for_other_contexts_stop_sharing_which_is_logged_once(
    tiny_lm, hooks, shared, caplog
):
    first, second = hooks[:2]
    one, two = some_tokens(0), some_tokens(1)
    with caplog.at_level(logging.INFO), counted_passes() as passes:
        read = shared.read(first.place, [one]) + shared.read(second.place, [two])
        again = shared.read(first.place, [two]) + shared.read(second.place, [one])
    assert passes == [3] * 4
    (record,) = caplog.records
    assert "max_norm_multiple" in record.message
    for hook, tokens, x in zip(hooks[:2] * 2, [one, two, two, one], read + again, strict=True):
        assert torch.equal(x, read_residual(tiny_lm, hook, *tokens))


def test_the_same_tokens_with_another_mask_are_other_contexts(tiny_lm, hooks, shared):
    ids, mask = some_tokens()
    shared.read(hooks[0].place, [(ids, mask)])
    masked = mask.clone()
    masked[:, :4] = 0
    expected = read_residual(tiny_lm, hooks[1], ids, masked)
    assert torch.equal(shared.read(hooks[1].place, [(ids, masked)])[0], expected)
