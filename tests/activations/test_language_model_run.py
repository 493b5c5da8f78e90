"""The batches of several hook points: each as if it were read alone, in one pass of the model."""

import logging

import pytest
import torch
from language_model_reads import counted_passes

from dictionary_learning_ext.activations.language_model_run import LanguageModelSources
from dictionary_learning_ext.activations.tokens import Share
from dictionary_learning_ext.config.run import RunConfig

HOOKS = ["blocks.0.hook_resid_post", "blocks.2.hook_attn_out", "blocks.1.hook_mlp_out"]
BATCHES = 50  # in three fills


@pytest.fixture
def run(tiny_lm_dir, text):
    return RunConfig(
        model=str(tiny_lm_dir), data=text, steps=60, batch_size=56, n_ctxs=40, ctx_len=32
    )


def batches_of(sources, n=BATCHES):
    given = [sources.next() for _ in range(n)]
    return {name: torch.stack([each[name] for each in given]) for name in given[0]}


def test_each_hook_point_has_its_own_batches_and_all_share_the_passes(run):
    with counted_passes() as together:
        shared = LanguageModelSources(run, HOOKS)
        before = len(together)
        factors, given = shared.norm_factors(), batches_of(shared)
        together = together[before:]
    for hook in HOOKS:
        alone = LanguageModelSources(run, [hook])
        with counted_passes() as passes:
            assert alone.norm_factors() == {hook: factors[hook]}
            assert torch.equal(batches_of(alone)[hook], given[hook])
        assert together == passes, "as many contexts, as often"
    assert passes == [32, 7] * 3, "a fill is of 22 batches: 38.5 contexts"
    assert len({round(factor, 6) for factor in factors.values()}) == len(HOOKS)


def test_processes_read_contexts_of_their_own(run):
    first, second = (
        batches_of(LanguageModelSources(run, HOOKS[:1], share=Share(rank, 2)), 2)[HOOKS[0]]
        for rank in range(2)
    )
    assert first.shape == second.shape == (2, 28, 16)
    assert not torch.equal(first, second)


def test_a_resume_shares_the_passes_too(run):
    first = LanguageModelSources(run, HOOKS)
    batches_of(first, 25)
    states = {name: source.state_dict() for name, source in first.sources.items()}
    expected = batches_of(first, 25)
    second = LanguageModelSources(run, HOOKS)
    with counted_passes() as passes:
        second.load_state_dicts(states)
    assert passes == [32, 7], "of the second fill"
    given = batches_of(second, 25)
    assert all(torch.equal(given[hook], expected[hook]) for hook in HOOKS)


def test_hook_points_that_leave_out_different_tokens_still_have_their_own_batches(run, caplog):
    run = RunConfig(**vars(run) | {"max_norm_multiple": 1.2, "text_passes": 9})
    with caplog.at_level(logging.INFO):
        given = batches_of(LanguageModelSources(run, HOOKS))
    assert caplog.text.count("the hook points leave out different tokens") == 1
    for hook in HOOKS:
        assert torch.equal(batches_of(LanguageModelSources(run, [hook]))[hook], given[hook])
