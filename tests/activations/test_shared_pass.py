"""One forward pass for several hook points: what is read, how often the model runs, and where they part."""

import logging

import pytest
import torch
from language_model_reads import counted_passes, some_tokens

from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.shared_pass import SharedPass, in_step

HOOKS = ["blocks.2.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]


@pytest.fixture
def hooks(tiny_lm):
    return [find_hook(tiny_lm, name) for name in HOOKS]


@pytest.fixture
def shared(tiny_lm, hooks):
    return SharedPass(tiny_lm, [hook.place for hook in hooks])


def test_all_are_read_in_one_pass_and_are_what_each_would_read_alone(tiny_lm, hooks, shared):
    for seed in (0, 1):
        tokens = some_tokens(seed)
        with counted_passes() as passes:
            read = [shared.read(hook.place, *tokens) for hook in hooks]
        assert passes == [3]
        for hook, x in zip(hooks, read, strict=True):
            assert torch.equal(x, read_residual(tiny_lm, hook, *tokens))


def test_the_model_runs_to_the_deepest_and_no_further(tiny_lm):
    hooks = [find_hook(tiny_lm, f"blocks.{n}.hook_resid_post") for n in (1, 0)]
    ran = []
    blocks = [find_hook(tiny_lm, f"blocks.{n}.hook_resid_post").submodule for n in range(3)]
    handles = [
        block._module.register_forward_pre_hook(lambda *_, n=n: ran.append(n))
        for n, block in enumerate(blocks)
    ]
    SharedPass(tiny_lm, [hook.place for hook in hooks]).read(hooks[0].place, *some_tokens())
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_those_that_ask_for_other_contexts_stop_sharing_which_is_logged_once(
    tiny_lm, hooks, shared, caplog
):
    first, second = hooks[:2]
    one, two = some_tokens(0), some_tokens(1)
    with caplog.at_level(logging.INFO), counted_passes() as passes:
        read = [shared.read(first.place, *one), shared.read(second.place, *two)]
        again = [shared.read(first.place, *two), shared.read(second.place, *one)]
    assert passes == [3] * 4
    assert [record.message for record in caplog.records] == [
        "the hook points leave out different tokens (max_norm_multiple), so the language model runs"
        " for each of them from here on"
    ]
    for hook, tokens, x in zip(hooks[:2] * 2, [one, two, two, one], read + again, strict=True):
        assert torch.equal(x, read_residual(tiny_lm, hook, *tokens))


def test_the_same_tokens_with_another_mask_are_other_contexts(tiny_lm, hooks, shared):
    ids, mask = some_tokens()
    shared.read(hooks[0].place, ids, mask)
    masked = mask.clone()
    masked[:, :4] = 0
    expected = read_residual(tiny_lm, hooks[1], ids, masked)
    assert torch.equal(shared.read(hooks[1].place, ids, masked), expected)


def test_iterators_take_turns_to_their_ends():
    order = []

    def steps(name, n):
        for i in range(n):
            order.append((name, i))
            yield

    in_step([steps("a", 3), steps("b", 1)])
    assert order == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]
