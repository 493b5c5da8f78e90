"""A text that is too short is refused before the run starts, with the number that is enough."""

import contextlib
import math
import re
from pathlib import Path
from typing import get_args

import pytest
from texts import error_of, write_jsonl, write_txt

from dictionary_learning_ext.activations import enough_text
from dictionary_learning_ext.activations.enough_text import require_enough_text
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.run_inputs import make_buffer
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.options import Split
from dictionary_learning_ext.config.run_config import RunConfig
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.errors import TextError
from dictionary_learning_ext.training.loop import train

WORDS = "the cat sat on the mat and the dog lay by the door "


def documents(n):
    return [WORDS[: 7 + 5 * i % 40] + f"{i}." for i in range(n)]


@pytest.fixture
def settings(tmp_path):
    def make(n=45, **changes):
        path = write_jsonl(tmp_path / "a.jsonl", documents(n))
        defaults = {"data": str(path), "ctx_len": 16, "batch_size": 32, "n_ctxs": 8}
        return RunConfig(**(defaults | {"steps": 100, "eval_tokens": 0} | changes))

    return make


@pytest.fixture
def require(tiny_lm):
    return lambda run: require_enough_text(run, tiny_lm.tokenizer)


def advised(flag, message):
    (number,) = re.findall(rf"{flag}=([\d,]+)", message)
    return int(number.replace(",", ""))


def rows_of(run, tiny_lm):
    """How many tokens a run's buffer hands out before its text ends."""
    hook = find_hook(tiny_lm, run.hook)
    text = open_text(run.data, passes=run.text_passes)
    buffer = make_buffer(run, tiny_lm, hook, text, run.batch_size)
    with contextlib.suppress(TextError):
        while True:
            next(buffer)
    return buffer.tokens_seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ctx_len": 7},
        {"ctx_len": 128, "n": 3, "steps": 20},
        {"text_packing": "truncate"},
        {"remove_bos": True},
        {"remove_bos": True, "text_packing": "truncate"},
        {"steps": 40, "batch_size": 31},
        {"n": 1, "steps": 7},
        {"text_passes": 2},
    ],
    ids=str,
)
def test_the_passes_that_are_advised_are_enough_and_one_less_is_not(
    changes, settings, require, tiny_lm
):
    run = settings(**changes)
    message = error_of(lambda: require(run))
    passes = advised("text_passes", message)
    for given, is_enough in ((passes, True), (passes - 1, False)):
        if given < 1:
            continue
        other = settings(**changes | {"text_passes": given})
        assert (rows_of(other, tiny_lm) >= run.steps * run.batch_size) == is_enough
        if is_enough:
            require(other)
        else:
            assert advised("text_passes", error_of(lambda other=other: require(other))) == passes


def test_the_steps_that_are_advised_are_the_most_that_the_text_allows(settings, require, tiny_lm):
    steps = advised("steps", error_of(lambda: require(settings())))
    assert rows_of(settings(), tiny_lm) == steps * 32
    require(settings(steps=steps))
    error_of(lambda: require(settings(steps=steps + 1)))


def test_outliers_change_neither_the_check_nor_the_advice(settings, require):
    steps = advised("steps", error_of(lambda: require(settings())))
    require(settings(steps=steps, max_norm_multiple=10.0))
    plain = error_of(lambda: require(settings(steps=1000)))
    assert error_of(lambda: require(settings(steps=1000, max_norm_multiple=10.0))) == plain


def test_too_few_held_out_documents_are_refused_with_the_number_needed(settings, require):
    few = {"steps": 2, "eval_tokens": 100}
    message = error_of(lambda: require(settings(19, **few)))
    assert "eval_tokens=0" in message
    assert "has 0 tokens" in message
    needed = int(re.findall(r"at least ([\d,]+) documents", message)[0].replace(",", ""))
    assert needed % 20 == 0
    require(settings(needed, **few))
    error_of(lambda: require(settings(needed // 3, **few)))
    require(settings(19, steps=2))


@pytest.mark.parametrize("between", ["\n", "\n\n"], ids=["lines", "paragraphs"])
@pytest.mark.parametrize("n", [10, 240])
def test_a_txt_of_as_many_documents_as_advised_is_enough(n, between, require, tmp_path):
    """Its documents are not its lines or paragraphs, and the message says so."""
    path = tmp_path / "a.txt"
    run = RunConfig(data=str(path), ctx_len=16, batch_size=32, steps=4, eval_tokens=1000)
    line = f"The {WORDS * 2}.{between}"
    path.write_text(line * n)
    message = error_of(lambda: require(run))
    documents = sum(1 for _ in open_text(str(path), split="train"))
    assert f"the text has {documents} document" in message
    assert "a .txt is cut into documents of up to 2,000 characters" in message
    needed = int(re.findall(r"at least ([\d,]+) documents", message)[0].replace(",", ""))
    path.write_text(line * math.ceil(needed * 1950 / len(line)))
    in_all = sum(sum(1 for _ in open_text(str(path), split=split)) for split in get_args(Split))
    assert in_all == pytest.approx(needed, rel=0.05)
    require(run)


def test_too_little_held_out_text_is_said_before_too_few_passes(settings, require):
    assert "held-out" in error_of(lambda: require(settings(10, steps=1000, eval_tokens=100)))


def test_the_tokens_outside_of_whole_contexts_are_counted_in_the_message(settings, require):
    one = error_of(lambda: require(settings(1, ctx_len=4, batch_size=4, steps=10)))
    tokens, whole = (int(n) for n in re.findall(r"has (\d+) tokens, (\d+) of them", one)[0])
    assert whole == tokens // 4 * 4 < tokens
    two = error_of(lambda: require(settings(1, ctx_len=4, batch_size=4, steps=10, text_passes=2)))
    assert f"in 2 passes {2 * tokens} tokens" in two
    none = error_of(lambda: require(settings(1, ctx_len=4, steps=10)))
    assert re.search(r"use text_passes=\d+ \(a context may run on", none)
    far = error_of(lambda: require(settings(1, ctx_len=4, steps=1000)))
    assert far.endswith("use a longer text"), "no number of passes is proposed, so nothing runs on"
    cut = error_of(lambda: require(settings(20, steps=10, text_packing="truncate")))
    assert re.search(r"text_passes=\d+ or steps=\d+$", cut)


def test_a_held_out_file_that_is_too_short_is_refused(settings, require, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_txt(folder / "train.txt", documents(45))
    write_txt(folder / "validation.txt", ["a cat"])
    run = settings(data=str(folder), steps=2, eval_tokens=100)
    message = error_of(lambda: require(run))
    assert "every 20th" not in message
    assert "expected at least 100" in message
    write_txt(folder / "validation.txt", documents(45))
    require(run)


def test_an_evaluation_needs_no_more_than_one_batch(settings, require):
    message = error_of(lambda: require(settings(40, steps=2, eval_tokens=10_000_000)))
    assert "expected at least 2,048 to evaluate" in message


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_a_text_of_no_documents_is_refused(packing, settings, require, tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n\n \n")
    message = error_of(lambda: require(settings(data=str(path), text_packing=packing)))
    assert "no documents to train on" in message


def test_counting_ends_where_the_text_is_enough(settings, require, tmp_path):
    path = tmp_path / "long.jsonl"
    write_jsonl(path, documents(20_000))
    path.write_text(path.read_text() + "no JSON\n")
    require(settings(data=str(path), steps=10))
    assert "not valid JSON" in error_of(lambda: require(settings(data=str(path), steps=10**6)))


@pytest.fixture
def counted(monkeypatch):
    """How many tokens each count of a text was to find."""
    calls, real = [], enough_text._count_again

    def count(run, tokenizer, text, at_most):
        calls.append(at_most)
        return real(run, tokenizer, text, at_most)

    monkeypatch.setattr(enough_text, "_count_again", count)
    monkeypatch.setattr(enough_text, "_CONTEXTS_AT_ONCE", 1)
    return calls


def test_a_text_that_was_counted_is_not_counted_again(settings, require, counted):
    require(settings(45, steps=10))
    require(settings(45, steps=10))
    require(settings(45, steps=9))
    assert counted == [320]
    require(settings(45, steps=11))
    error_of(lambda: require(settings(45, steps=1000)))
    error_of(lambda: require(settings(45, steps=2000)))
    assert counted == [320, 352, 32_000]
    require(settings(45, steps=10, ctx_len=8))
    assert counted[3:] == [320], "other contexts"


def test_files_far_larger_than_the_need_are_not_counted(settings, require, counted):
    run = settings(2000)
    steps = Path(run.data).stat().st_size // (16 * 32)
    require(settings(2000, steps=steps))
    require(settings(2000, steps=steps * 3, text_passes=3))
    assert counted == []
    require(settings(2000, steps=steps + 1))
    require(settings(2000, steps=steps, text_packing="truncate"))
    assert len(counted) == 2


def test_a_long_count_is_announced(settings, require, monkeypatch, caplog):
    caplog.set_level("INFO", logger=enough_text.__name__)
    monkeypatch.setattr(enough_text, "_MANY", 320)
    require(settings(45, steps=10))
    assert not caplog.messages
    error_of(lambda: require(settings(45, steps=1000)))
    assert "the run needs 32,000" in caplog.messages[0]


def test_a_set_on_the_hub_is_not_counted(settings, require, monkeypatch):
    def remote(*args, **options):
        stream = open_text(*args, **options)
        stream.file_bytes = None
        return stream

    monkeypatch.setattr(enough_text, "open_text", remote)
    require(settings())


@pytest.mark.parametrize("changes", [{}, {"steps": 2, "eval_tokens": 100, "n": 16}], ids=str)
def test_a_run_that_is_refused_leaves_no_folder(changes, settings, tiny_lm_dir, tmp_path):
    folder = tmp_path / "runs" / "x"
    run = settings(**changes, model=str(tiny_lm_dir), save_dir=str(folder))
    with pytest.raises(TextError):
        train(run, {"x": SAEConfig(dict_size=32, k=4)})
    assert not folder.exists()
    assert Path(run.data).is_file()


def test_a_text_far_too_short_is_refused_once_and_no_hundreds_of_passes_are_offered(
    tmp_path, require
):
    path = tmp_path / "short.txt"
    path.write_text("one two three four five six seven eight nine ten")
    run = RunConfig(data=str(path), steps=1000, batch_size=1024, ctx_len=4, eval_tokens=5000)
    with pytest.raises(TextError) as caught:
        require(run)
    message = str(caught.value)
    assert "expected 1,024,000 for 1,000 steps of 1,024; use a longer text" in message
    assert "--text-passes" not in message
    assert ". And the held-out part of" in message
