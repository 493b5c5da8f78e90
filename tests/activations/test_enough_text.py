"""A text that is too short is refused before the run starts, with the number that is enough."""

import contextlib
import re
from pathlib import Path

import pytest
from texts import error_of, write_jsonl, write_txt

from dictionary_learning_ext.activations import enough_text
from dictionary_learning_ext.activations.enough_text import require_enough_text
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig
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
    batches = open_inputs(run, [run.hook], language_model=tiny_lm).train()
    with contextlib.suppress(TextError):
        while True:
            batches.next()
    (tokens,) = batches.tokens_seen()
    return tokens


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


def test_too_few_held_out_documents_are_refused(settings, require):
    few = {"steps": 2, "eval_tokens": 100}
    message = error_of(lambda: require(settings(19, **few)))
    assert "eval_tokens=0" in message
    assert "(every 20th document) has 0 tokens" in message
    require(settings(400, **few))
    require(settings(19, steps=2))


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
    calls, real = [], enough_text._count

    def count(run, tokenizer, split, at_most):
        calls.append(at_most)
        return real(run, tokenizer, split, at_most)

    monkeypatch.setattr(enough_text, "_count", count)
    return calls


def test_files_far_larger_than_the_need_are_not_counted(settings, require, counted):
    run = settings(2000)
    steps = Path(run.data).stat().st_size // (16 * 32)
    require(settings(2000, steps=steps))
    require(settings(2000, steps=steps * 3, text_passes=3))
    assert counted == []
    require(settings(2000, steps=steps + 1))
    require(settings(2000, steps=steps, text_packing="truncate"))
    assert len(counted) == 2


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
