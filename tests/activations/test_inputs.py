"""What a run reads of a language model: batches, held-out activations and contexts.

Each hook point has the batches that it has alone, in one pass of the model.
"""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from buffers import DOCUMENTS
from language_model_reads import counted_passes
from texts import write_jsonl

from dictionary_learning_ext.activations.batches import Batches, in_step
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.inputs import cached_documents, open_inputs, open_model
from dictionary_learning_ext.activations.language_models import settings_hash, unwrapped
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ConfigError, TextError

HOOK = "blocks.1.hook_resid_post"
HOOKS = ["blocks.0.hook_resid_post", "blocks.2.hook_attn_out", "blocks.1.hook_mlp_out"]
BATCHES = 50  # in three fills


@pytest.fixture
def run(tiny_lm_dir, text):
    sizes = {"steps": 60, "batch_size": 56, "n_ctxs": 40, "ctx_len": 32}
    return RunConfig(model=str(tiny_lm_dir), data=text, hook=HOOK, **sizes)


def batches_of(batches, n=BATCHES):
    given = [batches.next() for _ in range(n)]
    return {name: torch.stack([each[name] for each in given]) for name in given[0]}


# Several hook points


def test_iterators_take_turns_to_their_ends():
    order = []

    def steps(name, n):
        for i in range(n):
            order.append((name, i))
            yield

    in_step([steps("a", 3), steps("b", 1)])
    assert order == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]


def test_each_hook_point_has_its_own_batches_and_all_share_the_passes(run):
    shared = open_inputs(run, HOOKS).training_batches()
    with counted_passes() as together:
        scales, given = shared.scales(), batches_of(shared)
    for hook in HOOKS:
        alone = open_inputs(run, [hook]).training_batches()
        with counted_passes() as passes:
            assert alone.scales() == {hook: scales[hook]}
            assert torch.equal(batches_of(alone)[hook], given[hook])
        assert together == passes, "as many contexts, as often"
    assert passes == [32, 7] * 3, "a fill is of 22 batches: 38.5 contexts"
    assert len({round(scale.norm_factor, 6) for scale in scales.values()}) == len(HOOKS)


class Counting:
    """A tokenizer that notes how many texts it is asked for at a time."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def __call__(self, texts, **options):
        self.asked.append(len(texts))
        return self.tokenizer(texts, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_a_text_is_tokenised_once_for_all_hook_points(packing, run):
    """However many documents a pass needs."""
    asked = {}
    for hooks in (HOOKS, HOOKS[:1]):
        inputs = open_inputs(replace(run, text_packing=packing, n_ctxs=100), hooks)
        shared = inputs._trained_on.tokenizer
        shared._tokenizer = counting = Counting(shared._tokenizer)
        batches_of(inputs.training_batches(), 70)
        asked[len(hooks)] = counting.asked
    assert asked[len(HOOKS)] == asked[1] != []


@pytest.mark.parametrize(("taken", "passes"), [(25, [32, 7]), (22, [32, 7] * 2)])
def test_a_resume_shares_the_passes_too(taken, passes, run):
    """22 batches are a fill. It is read again to know where the next one starts."""
    first = open_inputs(run, HOOKS).training_batches()
    batches_of(first, taken)
    states = first.state_dict()
    expected = batches_of(first, 15)
    second = open_inputs(run, HOOKS).training_batches()
    with counted_passes() as counted:
        second.load_state_dict(states)
        assert second.state_dict() == states
        given = second.next()
    assert counted == passes
    assert second.tokens_seen() == {56 * (taken + 1)}
    assert all(torch.equal(given[hook], expected[hook][0]) for hook in HOOKS)
    given = batches_of(second, 14)
    assert all(torch.equal(given[hook], expected[hook][1:]) for hook in HOOKS)


def test_hook_points_that_leave_out_different_tokens_still_have_their_own_batches(run, caplog):
    run = replace(run, max_norm_multiple=1.2, text_passes=9)
    with caplog.at_level(logging.INFO):
        given = batches_of(open_inputs(run, HOOKS).training_batches())
    assert caplog.text.count("max_norm_multiple") == 1
    for hook in HOOKS:
        assert torch.equal(
            batches_of(open_inputs(run, [hook]).training_batches())[hook], given[hook]
        )


# What the run's settings do

SIZES = {"ctx_len": 16, "n_ctxs": 8}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"remove_bos": True},
    {"max_norm_multiple": 1.1},
    {"text_packing": "truncate"},
    {"ctx_len": 8},
    {"n_ctxs": 4},
    {"hook": "blocks.2.hook_resid_pre"},
    {"data_seed": 1},
    {"data": "embedded", "data_seed": 5},
]


@pytest.fixture
def settings(tiny_lm_dir, tmp_path):
    """Short documents, so that every few contexts hold an end of one."""
    data = str(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS * 4))
    return {"model": str(tiny_lm_dir), "data": data, "hook": HOOKS[0], "batch_size": 24} | SIZES


def test_each_setting_reaches_the_buffer_and_gives_other_batches(tiny_lm, settings):
    """A setting that both buffers ignored would give the batches of another."""
    found: list[torch.Tensor] = []
    for options in OPTIONS:
        run = RunConfig(**settings | options)
        direct = ResidualBuffer(
            open_text(run.data, seed=run.data_seed),
            tiny_lm,
            run.hook,
            out_batch_size=24,
            n_ctxs=run.n_ctxs,
            ctx_len=run.ctx_len,
            packing=run.text_packing,
            remove_bos=run.remove_bos,
            max_norm_multiple=run.max_norm_multiple,
            seed=run.data_seed,
        )
        given = batches_of(open_inputs(run, [run.hook]).training_batches(), 8)[
            run.hook
        ]  # two fills
        assert torch.equal(given, torch.stack([next(direct) for _ in range(8)])), options
        assert not any(torch.equal(given, other) for other in found), options
        found.append(given)


def test_another_data_seed_gives_the_same_tokens_in_another_order(settings):
    run = RunConfig(**settings)
    fill = run.n_ctxs * run.ctx_len // run.batch_size
    one, other = (
        batches_of(open_inputs(replace(run, data_seed=seed), HOOKS[:1]).training_batches(), fill)[
            HOOKS[0]
        ]
        for seed in (0, 1)
    )
    assert not torch.equal(one, other)
    assert torch.equal(*(rows.flatten(0, 1).unique(dim=0) for rows in (one, other)))


def test_held_out_text_is_no_training_text_and_the_same_for_every_seed(run, text):
    found = []
    for seed in (0, 1):
        inputs = open_inputs(replace(run, data_seed=seed, eval_documents=3), [HOOK])
        found.append(inputs.held_out(HOOK, 100))
    (one, documents), (other, others) = (
        (next(held_out.batches), next(held_out.documents)[0]) for held_out in found
    )
    assert one.shape == (100, 16)
    assert torch.equal(one, other)
    assert torch.equal(documents, others)
    held = list(open_text(text, split="heldout"))
    assert not set(held) & set(open_text(text, split="train"))
    tokenizer = inputs.language_model.tokenizer
    firsts = [tokenizer.encode(document)[: run.ctx_len] for document in held[:3]]
    assert [row[: len(ids)].tolist() for row, ids in zip(documents, firsts, strict=True)] == firsts


def test_the_hashes_do_not_depend_on_what_was_read(run):
    """A fast tokenizer keeps the truncation that it was last asked for, in what is hashed."""
    run = replace(run, text_packing="truncate", eval_tokens=0, steps=20)
    inputs = open_inputs(run, [HOOK])
    before = inputs.hashes()
    assert settings_hash(inputs.language_model) == before["tokenizer"]
    inputs.training_batches().next()
    assert settings_hash(inputs.language_model) != before["tokenizer"]
    assert inputs.hashes() == before == open_inputs(run, [HOOK]).hashes()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_contexts_beyond_the_models_positions_are_refused_wherever_it_is_opened(
    family, lm_dir_of, lm_of
):
    """gpt2 would end in an IndexError; rotary positions would give other activations in silence."""
    run = RunConfig(model=str(lm_dir_of(family)), hook=HOOK, ctx_len=128)
    open_model(run)
    beyond = replace(run, ctx_len=129)
    for opened in (
        lambda: open_model(beyond),
        lambda: open_inputs(beyond, [run.hook], language_model=unwrapped(lm_of(family))),
    ):
        with pytest.raises(ConfigError, match=r"ctx_len=129.*128"):
            opened()


# Contexts


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_contexts_hold_as_many_wanted_tokens_as_asked_for(run, packing):
    run = replace(run, ctx_len=16, text_packing=packing, remove_bos=True)
    batches = list(open_inputs(run, [HOOK]).contexts(HOOK, "train", 700))
    assert sum(int(batch.wanted_BL.sum()) for batch in batches) == 700
    for batch in batches:
        assert not (batch.input_ids_BL[batch.wanted_BL] == 0).any()
        assert batch.x_BLD.shape == (*batch.input_ids_BL.shape, 16)


def test_padding_is_marked_and_token_0_is_a_token(run, tmp_path):
    """-1 and nothing else. Token 0 is the end-of-text token, and a document may hold it."""
    documents = ["<|endoftext|>a cat", "the mat", "a <|endoftext|> b"]
    path = write_jsonl(tmp_path / "short.jsonl", documents)
    run = replace(run, data=str(path), text_packing="truncate", ctx_len=16)
    inputs = open_inputs(run, [HOOK])
    (batch,) = inputs.contexts(HOOK, "train", 1000)
    tokenizer: Any = inputs.language_model.tokenizer
    for row, wanted, document in zip(batch.input_ids_BL, batch.wanted_BL, documents, strict=True):
        ids = tokenizer.encode(document)
        assert row.tolist() == ids + [-1] * (16 - len(ids))
        assert wanted.tolist() == [i < len(ids) for i in range(16)]


def test_cached_documents_keep_token_0(tmp_path):
    ids = np.array([[0, 5, 0, -1], [7, -1, -1, -1]], dtype=np.int32)
    (tmp_path / "heldout").mkdir()
    np.save(tmp_path / "heldout" / "documents.npy", ids)
    stored: Any = SimpleNamespace(place=tmp_path)
    ((found, mask),) = cached_documents(stored, 2)
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert found[mask.bool()].tolist() == [0, 5, 0, 7]


def test_held_out_contexts_are_the_same_for_every_data_seed(run):
    """The text has an order of its own. Its training contexts differ."""
    ids = {}
    for seed in (0, 1):
        inputs = open_inputs(replace(run, data="embedded", data_seed=seed), [HOOK])
        for split in ("train", "heldout"):
            (batch, *_) = inputs.contexts(HOOK, split, 200)
            ids[split, seed] = batch.input_ids_BL
    assert torch.equal(ids["heldout", 0], ids["heldout", 1])
    assert not torch.equal(ids["train", 0], ids["train", 1])


def test_the_text_is_read_as_often_as_asked_for(run, tmp_path):
    path = write_jsonl(tmp_path / "short.jsonl", DOCUMENTS)
    run = replace(run, data=str(path), batch_size=32, n_ctxs=4)
    numbers = []
    for passes in (1, 3):
        batches = open_inputs(replace(run, text_passes=passes), [HOOK]).training_batches()
        with pytest.raises(TextError, match="text_passes"):
            batches_of(batches, 10_000)
        numbers.append(batches.tokens_seen().pop())
    once, thrice = numbers
    assert 0 < 3 * once <= thrice < 3 * once + 3 * 32


@pytest.mark.parametrize(("steps", "times"), [(500, 500), (90, None)])
def test_data_that_is_read_over_a_hundred_times_is_warned_of_once(steps, times, caplog):
    """The first fill, of 30 rows, has read it three times."""
    source = Mock(passes=0, tokens_seen=0, is_used_up=True, **{"first_rows.return_value": [0] * 30})

    def fill():
        source.is_used_up, source.passes = False, source.passes + 3
        return iter(())

    source.refreshing.side_effect = fill
    batches = Batches(RunConfig(steps=steps, batch_size=10), {"hook": source})
    for _ in range(2):
        batches._refill()
        source.is_used_up, source.tokens_seen = True, source.tokens_seen + 30
    said = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert len(said) == (times is not None)
    assert all("about 10 tokens" in line and "500 times" in line for line in said)
