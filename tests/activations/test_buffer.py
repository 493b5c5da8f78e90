"""The buffer against direct computation: every token's activation once, shuffled, resumable."""

import json
import logging
import math
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
from dictionary_learning_ext.errors import ConfigError, NonFiniteError, TextError


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


def test_rows_come_in_random_order(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, iter(DOCUMENTS))
    rows = torch.cat([next(buffer) for _ in range(9)])
    same_place = (rows - direct_rows(tiny_lm)[:90]).abs().amax(dim=1) < 1e-5
    assert int(same_place.sum()) < 15


def test_fills_of_the_same_rows_have_different_orders(tiny_lm: LanguageModel):
    size = 16 * len(DOCUMENTS)  # every document has more than 16 tokens
    options = {"packing": "truncate", "n_ctxs": len(DOCUMENTS), "out_batch_size": size}
    buffer = make_buffer(tiny_lm, endless(), **options)
    first, second = next(buffer), next(buffer)
    assert_same_rows(first, second)
    assert not torch.allclose(first, second, atol=1e-5)


def test_the_order_is_the_seeds(tiny_lm: LanguageModel):
    first, again, other = (
        next(make_buffer(tiny_lm, iter(DOCUMENTS), seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


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


def test_a_batch_can_be_trained_on(tiny_lm: LanguageModel):
    batch = next(make_buffer(tiny_lm, iter(DOCUMENTS)))
    assert not batch.requires_grad
    weight = torch.ones(16, requires_grad=True)
    (batch * weight).sum().backward()
    torch.testing.assert_close(weight.grad, batch.sum(0))


def test_fills_use_the_same_memory(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, endless())
    place, shape = buffer.activations.data_ptr(), buffer.activations.shape
    for _ in range(40):
        next(buffer)
    assert buffer.fills == 5
    assert (buffer.activations.data_ptr(), buffer.activations.shape) == (place, shape)


def test_the_buffer_is_whole_batches(tiny_lm: LanguageModel):
    assert make_buffer(tiny_lm, endless()).activations.shape == (90, 16)  # of 96 tokens


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_rows_have_the_asked_dtype_or_the_models(tiny_lm: LanguageModel, dtype: torch.dtype | None):
    batch = next(make_buffer(tiny_lm, endless(), dtype=dtype))
    assert batch.dtype == (dtype or torch.float32)


def test_a_double_precision_model_fills(tiny_lm_dir: Path):
    lm = load_language_model(str(tiny_lm_dir), dtype=torch.float64)
    assert next(make_buffer(lm, endless(), max_norm_multiple=9.0)).dtype == torch.float64


def test_the_input_of_a_block_is_the_output_of_the_one_before(tiny_lm: LanguageModel):
    post = next(make_buffer(tiny_lm, iter(DOCUMENTS), layer=1))
    pre = next(make_buffer(tiny_lm, iter(DOCUMENTS), layer=2, io="pre"))
    assert torch.equal(pre, post)


def test_counters_count_rows_and_fills(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, endless())
    assert (buffer.tokens_seen, buffer.fills, buffer.dropped_tokens) == (0, 0, 0)
    for _ in range(10):
        next(buffer)
    assert (buffer.tokens_seen, buffer.fills, buffer.dropped_tokens) == (100, 2, 0)


# What is left out


def test_beginning_of_text_tokens_are_left_out_wherever_they_stand(tiny_lm: LanguageModel):
    def keep(ids: Tensor) -> Tensor:
        return ids.ne(0)  # <|endoftext|>

    expected = direct_rows(tiny_lm, keep=keep)
    rows = torch.cat(batches_until_the_end(make_buffer(tiny_lm, iter(DOCUMENTS), remove_bos=True)))
    assert len(expected) < len(direct_rows(tiny_lm))
    assert_same_rows(rows, expected, missing=len(expected) % 10)


def norms_of(rows: Tensor) -> Tensor:
    return rows.norm(dim=-1)


def test_rows_of_outlying_norm_are_left_out_and_counted(tiny_lm: LanguageModel):
    everything = direct_rows(tiny_lm)
    limit = 1.2
    # All the text in one batch of the language model's, so that there is one median.
    n_ctxs = len(everything) // 16
    buffer = make_buffer(
        tiny_lm,
        iter(DOCUMENTS),
        n_ctxs=n_ctxs,
        refresh_batch_size=n_ctxs,
        max_norm_multiple=limit,
        out_batch_size=1,
    )
    rows = torch.cat(batches_until_the_end(buffer))
    expected = everything[norms_of(everything) <= limit * norms_of(everything).median()]
    assert 0 < len(expected) < len(everything)
    assert_same_rows(rows, expected)
    assert buffer.dropped_tokens == len(everything) - len(expected)


# What can go wrong


def test_a_text_too_short_for_a_batch_names_both_counts(tiny_lm: LanguageModel):
    message = error_of(lambda: next(make_buffer(tiny_lm, iter(DOCUMENTS[:1]), out_batch_size=90)))
    assert "ended after 0 tokens: " in message
    found = len(tiny_lm.tokenizer.encode(DOCUMENTS[0])) // 16 * 16
    assert 0 < found < 90
    assert f"expected 90 for the next batch, found {found};" in message
    assert "text_passes" in message


def test_a_text_that_ends_names_the_tokens_handed_out(tiny_lm: LanguageModel, path: Path):
    buffer = make_buffer(tiny_lm, open_text(str(path)), out_batch_size=64)
    count = len(batches_until_the_end(buffer))
    message = error_of(lambda: next(buffer))
    assert f"ended after {64 * count} tokens: expected 64 for the next batch" in message
    assert str(path) in message


def test_the_end_of_the_text_does_not_end_a_loop_silently(tiny_lm: LanguageModel):
    with pytest.raises(TextError):
        for _ in make_buffer(tiny_lm, iter(DOCUMENTS)):
            pass


def test_an_empty_text_has_its_own_message(tiny_lm: LanguageModel):
    assert "has no documents" in error_of(lambda: next(make_buffer(tiny_lm, iter([]))))


def test_a_fill_that_the_text_ends_in_is_handed_out_with_a_warning(
    tiny_lm: LanguageModel, caplog: pytest.LogCaptureFixture
):
    buffer = make_buffer(tiny_lm, iter(DOCUMENTS[:2]), n_ctxs=500)
    with caplog.at_level(logging.WARNING):
        next(buffer)
    assert "ended" in caplog.text


@pytest.mark.parametrize("options", [{}, {"max_norm_multiple": 10.0}])
def test_activations_that_are_not_finite_stop_the_fill(tiny_lm_dir: Path, options: dict[str, Any]):
    lm: Any = load_language_model(str(tiny_lm_dir))
    buffer = make_buffer(lm, endless(), **options)
    for _ in range(9):
        next(buffer)
    with torch.no_grad():
        lm._model.gpt_neox.embed_in.weight[tiny_lm_token(lm)] = math.inf
    assert "fill 2" in error_of(lambda: next(buffer), NonFiniteError)


def tiny_lm_token(lm: Any) -> int:
    return lm.tokenizer.encode(" the")[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out_batch_size": 97}, "use n_ctxs=7"),
        ({"out_batch_size": 0}, "out_batch_size=0: expected at least 1"),
        ({"n_ctxs": 0}, "n_ctxs=0: expected at least 1"),
        ({"max_norm_multiple": 1.0}, "max_norm_multiple"),
        ({"packing": "squeeze"}, "'squeeze'"),
    ],
)
def test_impossible_settings_are_refused(
    tiny_lm: LanguageModel, options: dict[str, Any], says: str
):
    assert says in error_of(lambda: make_buffer(tiny_lm, endless(), **options), ConfigError)


def test_a_name_instead_of_a_text_is_refused(tiny_lm: LanguageModel):
    assert "open_text('embedded')" in error_of(
        lambda: make_buffer(tiny_lm, "embedded"), ConfigError
    )


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
        assert json.dumps(other.state_dict()) == states[place]
        for batch in batches[place:]:
            assert torch.equal(next(other), batch)
        assert (other.tokens_seen, other.fills) == (buffer.tokens_seen, buffer.fills)
        assert other.dropped_tokens == buffer.dropped_tokens


def test_a_used_buffer_can_be_taken_back(tiny_lm: LanguageModel, path: Path):
    buffer = make_buffer(tiny_lm, open_text(str(path), passes=5))
    start = buffer.state_dict()
    first = [next(buffer) for _ in range(12)]
    buffer.load_state_dict(start)
    assert all(torch.equal(next(buffer), batch) for batch in first)


def test_a_state_of_other_settings_is_refused(tiny_lm: LanguageModel, path: Path):
    state = make_buffer(tiny_lm, open_text(str(path))).state_dict()
    other = make_buffer(tiny_lm, open_text(str(path)), ctx_len=20, seed=4)
    message = error_of(lambda: other.load_state_dict(state), ConfigError)
    assert "can't resume with ctx_len=20, seed=4: expected ctx_len=16, seed=0," in message


def test_a_buffer_on_a_generator_says_that_it_cannot_be_resumed(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, endless())
    next(buffer)
    assert "open_text" in error_of(buffer.state_dict)


def test_the_embedded_model_reads_the_embedded_text():
    lm = load_language_model("embedded")
    hook = find_hook(lm, "blocks.0.hook_resid_post")
    buffer = ResidualBuffer(open_text("embedded"), lm, hook.submodule, n_ctxs=8, out_batch_size=512)
    assert next(buffer).shape == (512, hook.activation_dim)
