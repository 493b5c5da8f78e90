"""Rows against activations read one context at a time: in order, each once, whatever is left out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from buffers import DOCUMENTS, direct_rows
from language_model_reads import counted_passes
from nnsight import LanguageModel
from texts import error_of
from torch import Tensor

from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.hook_points import HookPoint, find_hook, read_residual
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.language_models import load_language_model, unwrapped
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import NonFiniteError

HOOK = "blocks.1.hook_resid_post"
IDS = torch.tensor([[0, 50, 51, 52], [53, 0, 54, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def reader_of(lm: LanguageModel, **options: Any) -> tuple[ActivationReader, HookPoint]:
    hook = find_hook(lm, HOOK)
    return ActivationReader(unwrapped(lm), hook.place, PositionRule(lm.tokenizer, **options)), hook


def rows_of(
    lm: LanguageModel, text: Any, ctx_len: int = 16, refresh_batch_size: int = 4, **options: Any
) -> ResidualBuffer:
    sizes = {"ctx_len": ctx_len, "refresh_batch_size": refresh_batch_size, "out_batch_size": 1}
    return ResidualBuffer(text, lm, HOOK, **sizes, **options)


def filled(rows: ResidualBuffer, n: int) -> Tensor:
    """The next n rows, or as many as there are."""
    out = torch.empty(n, 16)
    return out[: max(rows.fill(out), default=0)]


def filled_until_the_end(rows: ResidualBuffer, n: int) -> Tensor:
    """All rows, from fills of n that end inside contexts."""
    parts = [filled(rows, n)]
    while len(parts[-1]) == n:
        parts.append(filled(rows, n))
    return torch.cat(parts)


def assert_close(rows: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits, which depend on how many contexts are read at once."""
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


# The reader


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers_are_those_of_the_norms_in_float32(tiny_lm_dir: Path, dtype: torch.dtype):
    lm = load_language_model(str(tiny_lm_dir), dtype=dtype)
    reader, hook = reader_of(lm, max_norm_multiple=1.1)
    wanted_BL = reader.rule.by_token(IDS, MASK)
    kept_BL, _ = reader.without_outliers(reader.run(IDS, MASK), wanted_BL)
    norms_BL = read_residual(lm, hook, IDS, MASK).float().norm(dim=-1)
    expected_BL = wanted_BL & (norms_BL <= 1.1 * norms_BL[wanted_BL].median())
    assert 0 < expected_BL.sum() < wanted_BL.sum()
    assert kept_BL.equal(expected_BL)
    assert wanted_BL.equal(MASK.bool())  # what was given is not changed


@pytest.mark.parametrize("max_norm_multiple", [None, 10.0])
def test_only_a_wanted_token_must_be_finite(tiny_lm_dir: Path, max_norm_multiple: float | None):
    lm: Any = load_language_model(str(tiny_lm_dir))
    reader, _ = reader_of(lm, max_norm_multiple=max_norm_multiple)
    with torch.no_grad():
        lm._module.gpt_neox.embed_in.weight[54] = math.inf  # in the second context

    def non_finite(wanted_BL: Tensor) -> Tensor:
        return reader.without_outliers(reader.run(IDS, MASK), wanted_BL)[1]

    assert not non_finite(torch.tensor([[True], [False]]) & MASK.bool())

    def read_all() -> None:
        found = non_finite(MASK.bool())  # or else a median that is NaN would leave out all of them
        assert max_norm_multiple is None
        reader.require_finite(found)

    message = error_of(read_all, NonFiniteError)
    assert message.startswith("3 ")
    assert "gpt_neox.layers.1" in message


# Rows


@pytest.mark.parametrize("n", [7, 16, 1000])
@pytest.mark.parametrize("options", [{}, {"packing": "truncate"}, {"ctx_len": 13}])
def test_rows_are_all_tokens_in_reading_order(
    tiny_lm: LanguageModel, n: int, options: dict[str, Any]
):
    rows = rows_of(tiny_lm, iter(DOCUMENTS), **options)
    assert_close(filled_until_the_end(rows, n), direct_rows(tiny_lm, **options))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out_on_either_side(
    tiny_lm: LanguageModel, side: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiny_lm.tokenizer, "padding_side", side)
    rows = rows_of(tiny_lm, iter(DOCUMENTS), packing="truncate", ctx_len=48)
    expected = direct_rows(tiny_lm, packing="truncate", ctx_len=48)
    assert len(expected) == sum(min(48, len(tiny_lm.tokenizer.encode(text))) for text in DOCUMENTS)
    assert_close(filled_until_the_end(rows, 10), expected)
    texts = ["<|endoftext|>the cat", "on the mat"] * 50  # a first token that is not
    tokens = sum(len(tiny_lm.tokenizer.encode(text)) for text in texts)
    rows = rows_of(tiny_lm, iter(texts), packing="truncate", remove_bos=True)
    assert len(filled_until_the_end(rows, 10)) == tokens - 50


@pytest.mark.slow
@pytest.mark.parametrize("n", [9, 39])
def test_no_row_comes_twice_when_fills_end_inside_contexts(tiny_lm: LanguageModel, n: int):
    rows = rows_of(tiny_lm, iter(DOCUMENTS), max_norm_multiple=1.3, ctx_len=13)
    found = filled_until_the_end(rows, n)
    everything = direct_rows(tiny_lm, ctx_len=13)
    assert 0 < len(found) < len(everything)
    place = 0
    for row in found:  # each is one of all rows, later than the row before it: none comes twice
        (same,) = torch.where((everything[place:] - row).abs().amax(-1) < 1e-5)
        assert len(same), "a row that is not there, or there once and handed out twice"
        place += int(same[0]) + 1


@pytest.mark.parametrize("rules", [{}, {"max_norm_multiple": 1.02}, {"remove_bos": True}])
@pytest.mark.parametrize("n", [75, 10_000])
def test_passes_that_are_asked_for_together_are_the_same(tiny_lm: Any, rules: Any, n: int):
    """As they are of several processes: no fill reads a context that it doesn't use."""
    read, sizes = [], []
    for at_once in (1, 3):
        rows = rows_of(tiny_lm, iter(DOCUMENTS * 3), ctx_len=8, refresh_batch_size=3, **rules)
        rows.reader.forward_passes.at_once = at_once
        with counted_passes() as passes:
            read.append(filled_until_the_end(rows, n))
        sizes.append(passes)
    assert torch.equal(*read)
    assert sizes[0] == sizes[1]


def test_each_batch_of_the_language_model_is_announced(tiny_lm: LanguageModel):
    calls: list[int] = []
    rows = rows_of(tiny_lm, iter(DOCUMENTS), before_batch=lambda: calls.append(1))
    assert list(rows.fill(torch.empty(5 * 16, 16))) == [0, 0, 5 * 16], "they share a median"
    assert len(calls) == 2  # 4 contexts at a time, 5 needed


# A buffer and a report read by the same rules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_bos": True},
        {"text_packing": "truncate", "remove_bos": True},
        {"max_norm_multiple": 1.2},
        {"text_packing": "truncate", "max_norm_multiple": 1.2},
    ],
)
def test_a_buffer_and_a_report_read_the_same_tokens_to_the_bit(
    tiny_lm_dir: Path, tmp_path: Path, options: dict[str, Any], dtype: torch.dtype
):
    lm = load_language_model(str(tiny_lm_dir), dtype=dtype)
    documents = ["the cat sat on a mat " * (n % 4 + 1) for n in range(90)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    run = RunConfig(data=str(tmp_path / "a.txt"), hook=HOOK, ctx_len=16, **options)
    batch = next(
        open_inputs(run, [HOOK], language_model=unwrapped(lm)).contexts(HOOK, "train", 10_000)
    )
    n_wanted = int(batch.wanted_BL.sum())
    assert (n_wanted < batch.wanted_BL.numel()) == bool(options)
    rows = rows_of(
        lm,
        open_text(run.data),
        packing=run.text_packing,
        refresh_batch_size=len(batch.wanted_BL),
        remove_bos=run.remove_bos,
        max_norm_multiple=run.max_norm_multiple,
    )
    # Room for all tokens of 32 contexts, so that these are read at once, as `contexts` does.
    rows_ND = filled(rows, batch.wanted_BL.numel())
    assert rows_ND[:n_wanted].equal(batch.x_BLD[batch.wanted_BL])


@pytest.mark.parametrize("options", [{}, {"max_norm_multiple": 10.0}])
def test_a_report_stops_where_a_wanted_activation_is_not_finite(
    tiny_lm_dir: Path, text: str, options: dict[str, Any]
):
    lm: Any = load_language_model(str(tiny_lm_dir))
    with torch.no_grad():
        lm._module.gpt_neox.embed_in.weight[lm.tokenizer.encode(" the")[0]] = math.inf
    run = RunConfig(data=text, hook=HOOK, ctx_len=16, **options)
    with pytest.raises(NonFiniteError):
        next(open_inputs(run, [HOOK], language_model=unwrapped(lm)).contexts(HOOK, "train", 10_000))
