"""Pairs of hook points: both sides of the same tokens, from a language model and from a cache."""

from dataclasses import replace

import pytest
import torch
from caches import write_small
from language_model_reads import counted_passes
from planted_sinks import saved_with_sinks

from dictionary_learning_ext import find_hook
from dictionary_learning_ext.activations.hook_points import hooked, read_residual
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.config.hooks import pair_name
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ActivationsError, LanguageModelError

X, Y, SINKS = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre"
PAIR = pair_name(X, Y)
IDS = torch.tensor([[5, 9, 40, 7, 77], [8, 3, 3, 200, 11]])


@pytest.fixture
def run(tiny_lm_dir, text):
    sizes = {"steps": 60, "batch_size": 56, "n_ctxs": 40, "ctx_len": 32}
    return RunConfig(model=str(tiny_lm_dir), data=text, hook=X, target=Y, **sizes)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "gemma", "qwen3"])
def test_mlp_hook_in_is_what_the_mlp_reads(lm_of, family):
    lm = lm_of(family)
    seen = []
    module = next(m for n, m in lm._module.named_modules() if n.endswith("1.mlp"))
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    lm._module(input_ids=IDS)
    handle.remove()
    read = read_residual(lm, find_hook(lm, X), IDS, torch.ones_like(IDS))
    assert torch.equal(read, seen[0])


def test_a_batch_has_both_sides_of_the_same_tokens_in_the_passes_of_one(run):
    names = [PAIR, X, Y, "blocks.0.hook_resid_post"]
    with counted_passes() as passes:
        batches = open_inputs(run, names).training_batches()
        scales = batches.scales()
        given = [batches.next() for _ in range(30)]
    with counted_passes() as alone:
        of_pair = open_inputs(run, [PAIR]).training_batches()
        only = [of_pair.next()[PAIR] for _ in range(30)]
    assert [n for n in passes if n > 1] == [n for n in alone if n > 1]  # others find hook_mlp_out
    assert scales[PAIR].factors == [*scales[X].factors, *scales[Y].factors]
    for batch, own in zip(given, only, strict=True):
        assert torch.equal(batch[PAIR], torch.cat([batch[X], batch[Y]], 1))
        assert torch.equal(batch[PAIR], own)


def rows_of(batches):
    return {bytes(row.numpy().tobytes()) for row in torch.cat(batches)}


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("sides", [(SINKS, Y), (X, SINKS.replace("1.", "2."))])
def test_a_token_that_one_side_drops_is_dropped(sides, is_cached, lm_dir_of, text, tmp_path):
    """Position 0 is a sink in the residual stream, and not after a norm."""
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "lm")
    sizes = {"steps": 30, "batch_size": 50, "n_ctxs": 8, "ctx_len": 16, "eval_tokens": 300}
    run = RunConfig(model=model, data=text, hook=sides[0], target=sides[1], **sizes)
    if is_cached:
        write_small(tmp_path / "cache", run, hooks=sides)
        run = replace(run, activations=str(tmp_path / "cache"))
    pair = run.site
    inputs = open_inputs(run, [pair])
    found = [*inputs.contexts(pair, "train", 2000)]
    wanted = torch.cat([batch.wanted_BL for batch in found])
    assert not wanted[:, 0].any()
    assert wanted[:100, 1:].all()
    lm = load_language_model(model)
    for batch in found:
        ids, mask = batch.input_ids_BL, torch.ones_like(batch.input_ids_BL)
        both = [read_residual(lm, find_hook(lm, side), ids, mask) for side in sides]
        assert torch.allclose(batch.x_BLD, torch.cat(both, -1), atol=1e-5)
    batches = inputs.training_batches()
    assert len(batches.mean_squared_norms()[pair]) == 2
    trained = rows_of([batches.next()[pair].float() for _ in range(20)])
    assert len(trained) > 300
    if is_cached:  # in float32 as they are read
        everything = {row.numpy().tobytes() for batch in found for row in batch.wanted_ND}
        assert len(trained & everything) > 300


def test_a_pair_is_changed_at_its_second_place_by_both(tiny_lm):
    pair, seen = find_hook(tiny_lm, PAIR), []

    def change(rows):
        seen.append(rows)
        x, y = rows.chunk(2, -1)
        return x - 2 * y

    def change_alone(y):
        return seen[0].chunk(2, -1)[0] - 2 * y

    mask = torch.ones_like(IDS)
    with hooked(pair.place, change), torch.no_grad():
        changed = tiny_lm._module(input_ids=IDS).logits
    with hooked(find_hook(tiny_lm, Y).place, change_alone), torch.no_grad():
        expected = tiny_lm._module(input_ids=IDS).logits
    assert torch.equal(changed, expected)
    assert torch.equal(seen[0], read_residual(tiny_lm, pair, IDS, mask))


def test_what_is_computed_later_can_not_be_read(tiny_lm):
    with pytest.raises(LanguageModelError, match="exchange hook and target"):
        find_hook(tiny_lm, pair_name(Y, X))


def test_the_input_before_the_norm_is_told_from_that_after_it(tiny_lm):
    with pytest.raises(LanguageModelError, match=r"before its norm.*blocks\.1\.mlp\.hook_in"):
        find_hook(tiny_lm, "blocks.1.hook_mlp_in")


def test_rows_of_one_place_are_no_pair(run, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((40, 16), np.float32))
    own = replace(run, activations=str(tmp_path), model="unknown", data=str(tmp_path), ctx_len=1)
    with pytest.raises(ActivationsError, match="a cache with hook and target"):
        open_inputs(own, [PAIR])
