"""What a run's settings do to the activations it is trained and measured on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from buffers import DOCUMENTS
from nnsight import LanguageModel
from texts import write_jsonl

from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.run_inputs import held_out, make_buffer, open_model
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ConfigError

OPTIONS: list[dict[str, Any]] = [
    {},
    {"remove_bos": True},
    {"max_norm_multiple": 1.1},
    {"text_packing": "truncate"},
    {"ctx_len": 8},
    {"n_ctxs": 4},
    {"hook": "blocks.2.hook_resid_pre"},
]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Short documents, so that every few contexts hold an end of one."""
    return str(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS * 4))


def name_in_buffer(option: str) -> str:
    return {"text_packing": "packing"}.get(option, option)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_setting_reaches_the_buffer(tiny_lm: LanguageModel, texts: str, options: dict):
    run = RunConfig(data=texts, **{"ctx_len": 16, "n_ctxs": 8} | options)
    hook = find_hook(tiny_lm, run.hook)
    made = make_buffer(run, tiny_lm, hook, open_text(texts), 24)
    own = {name_in_buffer(name): value for name, value in options.items() if name != "hook"}
    direct = ResidualBuffer(
        open_text(texts),
        tiny_lm,
        hook.submodule,
        io=hook.io,
        out_batch_size=24,
        **{"ctx_len": 16, "n_ctxs": 8} | own,
    )
    for _ in range(8):  # into the second fill
        assert torch.equal(next(made), next(direct))


def test_no_two_settings_give_the_same_activations(tiny_lm: LanguageModel, texts: str):
    """Without this, a setting that both buffers ignore would pass."""
    first = []
    for options in OPTIONS:
        run = RunConfig(data=texts, **{"ctx_len": 16, "n_ctxs": 8} | options)
        hook = find_hook(tiny_lm, run.hook)
        buffer = make_buffer(run, tiny_lm, hook, open_text(texts), 24)
        first.append(torch.cat([next(buffer) for _ in range(8)]))
    for i, one in enumerate(first):
        assert not any(torch.equal(one, other) for other in first[:i]), OPTIONS[i]


def test_held_out_text_is_no_training_text_and_comes_with_its_first_documents(
    tiny_lm: LanguageModel, text: str
):
    run = RunConfig(data=text, ctx_len=16, eval_documents=3)
    buffer, documents = held_out(run, tiny_lm, find_hook(tiny_lm, run.hook), 100)
    assert buffer.out_batch_size == 100
    held = list(open_text(text, split="heldout"))
    assert documents == held[:3]
    assert not set(held) & set(open_text(text, split="train"))
    assert next(buffer).shape == (100, 16)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_contexts_beyond_the_models_positions_are_refused_wherever_it_is_opened(family, lm_dir_of):
    """gpt2 would end in an IndexError; rotary positions would give other activations in silence."""
    model = str(lm_dir_of(family))
    open_model(RunConfig(model=model, ctx_len=128))
    with pytest.raises(
        ConfigError, match=r"ctx_len=129: expected at most 128.*; use a shorter ctx_len"
    ):
        open_model(RunConfig(model=model, ctx_len=129))
