"""What a run's data seed changes in its batches, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch

from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.language_model_run import LanguageModelSources
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.run import RunConfig

HOOK = "blocks.1.hook_resid_post"
SIZES = {"n_ctxs": 8, "ctx_len": 16}
BATCHES = 6  # of 32 tokens: into the second fill


@pytest.fixture
def run(tiny_lm_dir, text):
    return RunConfig(model=str(tiny_lm_dir), data=text, batch_size=32, **SIZES)


def batches_of(run):
    sources = LanguageModelSources(run, [HOOK])
    return torch.stack([sources.next()[HOOK] for _ in range(BATCHES)])


def test_0_gives_the_batches_of_a_buffer_without_a_seed(run, tiny_lm):
    hook = find_hook(tiny_lm, HOOK)
    buffer = ResidualBuffer(
        open_text(run.data), tiny_lm, hook.submodule, io=hook.io, out_batch_size=32, **SIZES
    )
    assert torch.equal(batches_of(run), torch.stack([next(buffer) for _ in range(BATCHES)]))


def in_one_order(rows):
    return rows.flatten(0, 1).unique(dim=0)


def test_another_seed_gives_the_same_tokens_in_another_order(run):
    one, other, again = (batches_of(replace(run, data_seed=seed)) for seed in (0, 1, 1))
    assert not torch.equal(one, other)
    assert torch.equal(other, again)
    fill = SIZES["n_ctxs"] * SIZES["ctx_len"] // run.batch_size
    assert torch.equal(in_one_order(one[:fill]), in_one_order(other[:fill]))


def test_it_seeds_the_order_of_the_embedded_text_too(run, tiny_lm):
    run = replace(run, data="embedded", data_seed=5)
    text, hook = open_text("embedded", seed=5), find_hook(tiny_lm, HOOK)
    buffer = ResidualBuffer(
        text, tiny_lm, hook.submodule, io=hook.io, out_batch_size=32, seed=5, **SIZES
    )
    assert torch.equal(batches_of(run), torch.stack([next(buffer) for _ in range(BATCHES)]))


def test_held_out_text_is_the_same_for_every_seed(run):
    first = []
    for seed in (0, 1):
        held_out = LanguageModelSources(replace(run, data_seed=seed), [HOOK]).held_out(HOOK)
        first.append((next(held_out.rows), held_out.documents.next_batch(100)[0]))
    (one, documents), (other, others) = first
    assert torch.equal(one, other)
    assert torch.equal(documents, others)
