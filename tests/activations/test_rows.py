"""Rows against activations read one context at a time: in order, each once, whatever is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from buffers import DOCUMENTS, direct_rows
from nnsight import LanguageModel
from texts import write_jsonl
from torch import Tensor

from dictionary_learning_ext.activations.activation_reader import ActivationReader
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.rows import ActivationRows
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream


def rows_of(
    lm: LanguageModel,
    text: Any,
    ctx_len: int = 16,
    packing: Any = "pack",
    before_batch: Any = None,
    **rules: Any,
) -> ActivationRows:
    hook = find_hook(lm, "blocks.1.hook_resid_post")
    contexts = ContextStream(text, lm.tokenizer, ctx_len, packing=packing)
    reader = ActivationReader(lm, hook.submodule, hook.io, **rules)
    return ActivationRows(contexts, reader, batch_size=4, before_batch=before_batch)


def filled_until_the_end(rows: ActivationRows, n: int) -> Tensor:
    """All rows, from fills of n that end inside contexts."""
    parts = []
    while True:
        out = torch.empty(n, 16)
        filled = rows.fill(out)
        parts.append(out[:filled])
        if filled < n:
            return torch.cat(parts)


def assert_close(rows: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits, which depend on how many contexts are read at once."""
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 16, 50, 1000])
@pytest.mark.parametrize("options", [{}, {"packing": "truncate"}, {"ctx_len": 13}])
def test_rows_are_all_tokens_in_reading_order(
    tiny_lm: LanguageModel, n: int, options: dict[str, Any]
):
    rows = rows_of(tiny_lm, iter(DOCUMENTS), **options)
    assert_close(filled_until_the_end(rows, n), direct_rows(tiny_lm, **options))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out_on_either_side(
    tiny_lm: LanguageModel, side: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiny_lm.tokenizer, "padding_side", side)
    rows = rows_of(tiny_lm, iter(DOCUMENTS), packing="truncate", ctx_len=48)
    expected = direct_rows(tiny_lm, packing="truncate", ctx_len=48)
    assert len(expected) == sum(min(48, len(tiny_lm.tokenizer.encode(text))) for text in DOCUMENTS)
    assert_close(filled_until_the_end(rows, 10), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_first_token_that_is_not_beginning_of_text_stays(
    tiny_lm: LanguageModel, side: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiny_lm.tokenizer, "padding_side", side)
    texts = ["<|endoftext|>the cat", "on the mat"] * 50
    tokens = sum(len(tiny_lm.tokenizer.encode(text)) for text in texts)
    rows = rows_of(tiny_lm, iter(texts), packing="truncate", remove_bos=True)
    assert len(filled_until_the_end(rows, 10)) == tokens - 50


@pytest.mark.parametrize("n", [1, 9, 39])
def test_outliers_are_counted_once_when_fills_end_inside_contexts(tiny_lm: LanguageModel, n: int):
    rows = rows_of(tiny_lm, iter(DOCUMENTS), max_norm_multiple=1.3, ctx_len=13)
    filled = filled_until_the_end(rows, n)
    assert rows.dropped > 0
    everything = direct_rows(tiny_lm, ctx_len=13)
    assert len(filled) + rows.dropped == len(everything)
    assert_part_in_order(filled, everything)


def assert_part_in_order(part: Tensor, whole: Tensor) -> None:
    """Each row of `part` is one of `whole`, later than the row before it: none comes twice."""
    place = 0
    for row in part:
        (same,) = torch.where((whole[place:] - row).abs().amax(-1) < 1e-5)
        assert len(same), "a row that is not there, or there once and handed out twice"
        place += int(same[0]) + 1


@pytest.mark.parametrize("rules", [{}, {"remove_bos": True, "max_norm_multiple": 1.3}])
def test_rows_resume_inside_a_context_bit_for_bit(
    tiny_lm: LanguageModel, tmp_path: Path, rules: dict[str, Any]
):
    path = str(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS))
    rows = rows_of(tiny_lm, open_text(path), **rules)
    rows.fill(torch.empty(21, 16))
    state = json.loads(json.dumps(rows.state_dict()))
    assert state["partial"] is not None  # 21 rows end inside a context of 16 tokens
    rest = filled_until_the_end(rows, 30)
    other = rows_of(tiny_lm, open_text(path), **rules)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert torch.equal(filled_until_the_end(other, 30), rest)
    assert other.dropped == rows.dropped


def test_each_batch_of_the_language_model_is_announced(tiny_lm: LanguageModel):
    calls: list[int] = []
    rows = rows_of(tiny_lm, iter(DOCUMENTS), before_batch=lambda: calls.append(1))
    rows.fill(torch.empty(5 * 16, 16))
    assert len(calls) == 2  # 4 contexts at a time, 5 needed
