"""The buffer against direct computation: every token's activation once, shuffled, resumable."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from buffers import DOCUMENTS, direct_rows, endless, make_buffer
from nnsight import LanguageModel
from texts import error_of, write_jsonl
from torch import Tensor

from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.errors import ConfigError, LanguageModelError, NonFiniteError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)


def batches_until_the_end(buffer: Any) -> list[Tensor]:
    batches = []

    def read_all() -> None:
        while True:
            batches.append(next(buffer))

    error_of(read_all)
    return batches


def counts(rows: Tensor, expected: Tensor) -> list[int]:
    """How often each of the expected rows was handed out, as the first of those equal to it."""
    equal = torch.cdist(rows.double(), expected.double()) < 1e-5
    assert bool(equal.any(dim=1).all())
    return torch.bincount(equal.int().argmax(dim=1), minlength=len(expected)).tolist()


def assert_same_rows(rows: Tensor, expected: Tensor, *, missing: int = 0) -> None:
    """The same rows in some order, all but `missing` of the expected ones."""
    got, wanted = counts(rows, expected), counts(expected, expected)
    assert all(n <= m for n, m in zip(got, wanted, strict=True))
    assert len(expected) - len(rows) == missing


# What is handed out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ctx_len": 13, "out_batch_size": 7, "n_ctxs": 5},
        {"refresh_batch_size": 1},
        {"refresh_batch_size": 99},
        {"packing": "truncate"},
        {"packing": "truncate", "ctx_len": 64, "n_ctxs": 2, "out_batch_size": 11},
    ],
)
def test_every_token_of_the_text_is_handed_out_exactly_once(
    tiny_lm: LanguageModel, options: dict[str, Any]
):
    buffer = make_buffer(tiny_lm, iter(DOCUMENTS), **options)
    rows = torch.cat(batches_until_the_end(buffer))
    context = {key: options[key] for key in ("ctx_len", "packing") if key in options}
    expected = direct_rows(tiny_lm, **context)
    assert buffer.fills > 2
    size = buffer.activation_buffer_size
    for start in range(0, len(rows) - size + 1, size):
        assert_same_rows(rows[start : start + size], expected[start : start + size])
    # Only what is less than a batch at the text's very end is left over.
    assert_same_rows(rows, expected, missing=len(expected) % buffer.out_batch_size)


def test_a_module_of_another_width_says_which(tiny_lm: LanguageModel):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_post")
    inner = hook.submodule.mlp.dense_h_to_4h
    width = inner._module.out_features
    given = {"submodule": inner, "io": "out", "n_ctxs": 8, "ctx_len": 16, "out_batch_size": 10}
    message = error_of(lambda: next(ResidualBuffer(endless(), tiny_lm, **given)), ConfigError)
    assert "d_submodule=16" in message
    assert str(width) in message
    given["d_submodule"] = width
    assert next(ResidualBuffer(endless(), tiny_lm, **given)).shape == (10, width)


def test_how_many_contexts_are_read_in_a_pass_changes_no_row(tiny_lm: LanguageModel):
    """Outliers are found in groups of 32 contexts, and fills end inside a context."""
    given = {"n_ctxs": 45, "out_batch_size": 64, "max_norm_multiple": 1.1}
    whole = [
        torch.cat([next(buffer) for _ in range(60)])
        for buffer in (
            make_buffer(tiny_lm, endless(), refresh_batch_size=size, **given)
            for size in (32, 1, 7, 100)
        )
    ]
    for other in whole[1:]:
        torch.testing.assert_close(other, whole[0], rtol=0, atol=1e-5)


def test_rows_come_in_a_random_order_of_the_seed(tiny_lm: LanguageModel):
    first, again, other = (
        torch.cat([next(buffer) for _ in range(9)])
        for buffer in (make_buffer(tiny_lm, iter(DOCUMENTS), seed=seed) for seed in (0, 0, 1))
    )
    in_place = (first - direct_rows(tiny_lm)[:90]).abs().amax(dim=1) < 1e-5
    assert int(in_place.sum()) < 15
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    size = 16 * len(DOCUMENTS)  # every document has more than 16 tokens
    options = {"packing": "truncate", "n_ctxs": len(DOCUMENTS), "out_batch_size": size}
    buffer = make_buffer(tiny_lm, endless(), **options)
    first, second = next(buffer), next(buffer)
    assert_same_rows(first, second)
    assert not torch.allclose(first, second, atol=1e-5)


def test_the_order_does_not_touch_the_global_generator(tiny_lm: LanguageModel):
    before = torch.get_rng_state()
    next(make_buffer(tiny_lm, iter(DOCUMENTS)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_is_fresh_memory(tiny_lm: LanguageModel):
    spoilt, whole = (make_buffer(tiny_lm, iter(DOCUMENTS)) for _ in range(2))
    for _ in range(30):
        batch = next(spoilt)
        assert torch.equal(batch, next(whole))
        batch.fill_(math.nan)


def test_fills_use_the_same_memory(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, endless())
    place, shape = buffer.activations.data_ptr(), buffer.activations.shape
    assert shape == (90, 16), "whole batches, of 96 tokens"
    assert (buffer.tokens_seen, buffer.fills) == (0, 0)
    for _ in range(40):
        next(buffer)
    assert (buffer.tokens_seen, buffer.fills) == (400, 5)
    assert (buffer.activations.data_ptr(), buffer.activations.shape) == (place, shape)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_rows_have_the_asked_dtype_or_the_models(tiny_lm_dir: Path, dtype: torch.dtype | None):
    lm = load_language_model(str(tiny_lm_dir), dtype=dtype or torch.float32)
    for given in (dtype, None):  # a float64 model's norms are in float64
        batch = next(make_buffer(lm, endless(), dtype=given, max_norm_multiple=9.0))
        assert batch.dtype == (dtype or torch.float32)


# What can go wrong


@pytest.mark.parametrize("size", [64, 7])  # of 7, rows are left of the last whole fill, too
def test_a_text_that_ends_names_the_tokens_handed_out(tiny_lm: LanguageModel, size: int):
    count, left = divmod(len(direct_rows(tiny_lm)), size)
    assert left
    message = error_of(lambda: list(make_buffer(tiny_lm, iter(DOCUMENTS), out_batch_size=size)))
    assert re.findall(r"\d+", message) == [str(size * count), str(size), str(left)]
    assert "text_passes" in message


def test_a_text_without_documents_is_named(tiny_lm: LanguageModel, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [])
    assert str(path) in error_of(lambda: next(make_buffer(tiny_lm, open_text(str(path)))))


@pytest.mark.parametrize("options", [{}, {"max_norm_multiple": 10.0}])
def test_activations_that_are_not_finite_stop_the_fill(tiny_lm_dir: Path, options: dict[str, Any]):
    lm: Any = load_language_model(str(tiny_lm_dir))
    buffer = make_buffer(lm, endless(), **options)
    for _ in range(9):
        next(buffer)
    with torch.no_grad():
        lm._module.gpt_neox.embed_in.weight[lm.tokenizer.encode(" the")[0]] = math.inf
    assert "fill 2" in error_of(lambda: next(buffer), NonFiniteError)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"out_batch_size": 0}, "out_batch_size=0"),
        ({"out_batch_size": 97}, "n_ctxs"),  # larger than the buffer
        ({"ctx_len": 4096}, "ctx_len=4096"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
    ],
)
def test_settings_out_of_range_are_refused(given, said, tiny_lm: LanguageModel):
    assert said in error_of(lambda: make_buffer(tiny_lm, endless(), **given), ConfigError)


@pytest.mark.parametrize("io", ["pre", "post"])
def test_a_hook_point_its_name_and_a_module_with_its_side_are_the_same(io: str, tiny_lm: Any):
    expected = next(make_buffer(tiny_lm, endless(), io=io))
    module = tiny_lm.gpt_neox.layers[1]
    side = {"pre": "in", "post": "out"}[io]
    sizes: dict[str, Any] = {"n_ctxs": 6, "ctx_len": 16, "out_batch_size": 10}
    for given in (
        {"hook": f"blocks.1.hook_resid_{io}"},
        {"submodule": module, "io": side},
        {"submodule": module._module, "io": side},
    ):
        buffer: Any = ResidualBuffer(endless(), tiny_lm, **given, **sizes)
        torch.testing.assert_close(next(buffer), expected)


def test_what_is_no_place_of_the_model_is_refused(tiny_lm: Any, lm_of: Any):
    hook, module = find_hook(tiny_lm, "blocks.1.hook_resid_pre"), tiny_lm.gpt_neox.layers[1]
    other = lm_of("gpt2")
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({}, ConfigError),
        ({"hook": module}, ConfigError),  # upstream's third argument
        ({"submodule": module}, ConfigError),
        ({"submodule": module, "io": "middle"}, ConfigError),
        ({"hook": hook, "io": "out"}, ConfigError),
        ({"hook": find_hook(other, "blocks.0.hook_resid_pre")}, LanguageModelError),
        ({"submodule": other.transformer.h[0], "io": "out"}, LanguageModelError),
        ({"submodule": "layers.1", "io": "out"}, LanguageModelError),
    ]
    for given, error in refused:
        message = error_of(lambda given=given: ResidualBuffer(endless(), tiny_lm, **given), error)
        assert "'blocks.0.hook_resid_post'" in message


# Resuming


RESUMED: list[dict[str, Any]] = [
    {},
    {"packing": "truncate", "remove_bos": True},
    {"ctx_len": 13, "out_batch_size": 7, "max_norm_multiple": 1.3},
]


@pytest.mark.parametrize("options", RESUMED)
def test_a_resumed_buffer_goes_on_bit_for_bit(
    tiny_lm: LanguageModel, path: Path, options: dict[str, Any]
):
    def make() -> ResidualBuffer:
        return make_buffer(tiny_lm, open_text(str(path), passes=5), **options)

    buffer = make()
    states = []
    batches = []
    for _ in range(45):
        states.append(json.dumps(buffer.state_dict()))
        batches.append(next(buffer))
    assert buffer.fills >= 4
    for place in (0, 1, 8, 9, 10, 18, 26, 27):
        other = make()
        other.load_state_dict(json.loads(states[place]))
        assert other.state_dict() == json.loads(states[place]), "before it fills again"
        for batch in batches[place:]:
            assert torch.equal(next(other), batch)
        assert (other.tokens_seen, other.fills) == (buffer.tokens_seen, buffer.fills)
    buffer.load_state_dict(json.loads(states[0]))
    assert torch.equal(next(buffer), batches[0]), "a used buffer can be taken back"


def test_a_buffer_on_a_generator_says_that_it_cannot_be_resumed(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, endless())
    next(buffer)
    assert "open_text" in error_of(buffer.state_dict)
