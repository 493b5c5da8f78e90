"""The cache holds the language model's activations, and can be stopped and continued at any moment."""

import errno
import os
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from caches import CTX_LEN, HOOK, OTHER, TOKENS, D, write_small
from datasets import load_from_disk
from safetensors.torch import load_file, save_file
from texts import error_of, write_jsonl

from dictionary_learning_ext.activations import cache_writer, inputs
from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.language_models import load_model
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import (
    ActivationsError,
    CheckpointError,
    ConfigError,
    DiskError,
    LanguageModelError,
    NonFiniteError,
    UserError,
)
from dictionary_learning_ext.run_folder.cache_manifest import (
    DOCUMENTS,
    HELD_OUT,
    read_manifest,
)
from dictionary_learning_ext.run_folder.files import LOCK, locked


def rows_of(folder):
    """Every row of a data set, as numpy arrays by column."""
    return load_from_disk(str(folder)).with_format("numpy")[:]


def files_in(folder):
    """Every file's content, by name. The lock's names a process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


@pytest.mark.parametrize(("split", "part"), [("train", "."), ("heldout", HELD_OUT)])
def test_each_row_is_a_context_of_the_text_with_its_activations(
    split, part, small_cache, cached_run, tiny_lm
):
    rows = rows_of(small_cache / part)
    stream = ContextStream(open_text(cached_run.data, split=split), tiny_lm.tokenizer, CTX_LEN)
    ids, mask = stream.next_batch(len(rows["token_ids"]))
    assert (rows["token_ids"] == ids.numpy()).all()
    for hook in (HOOK, OTHER):
        expected = read_residual(tiny_lm, find_hook(tiny_lm, hook), ids, mask)
        assert rows[hook].shape == expected.shape
        np.testing.assert_allclose(rows[hook], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_there_are_as_many_tokens_as_asked_for(small_cache):
    manifest = read_manifest(small_cache)
    assert [file.contexts for file in manifest.files] == [32, 32, 32, 29]
    assert manifest.tokens == 4000
    assert sum(file.tokens for file in manifest.heldout) >= 300
    assert manifest.finished == 4


@pytest.mark.parametrize(
    ("fit", "contexts"), [(0, [1, 1, 1]), (2.5, [2, 1]), (40, [3]), (64, [64, 1])]
)
def test_a_file_has_no_more_contexts_than_fit(fit, contexts, cached_run, tmp_path):
    run = replace(cached_run, eval_tokens=0)
    file_bytes = int(fit * CTX_LEN * D * 4)
    manifest = write_small(tmp_path, run, sum(contexts) * CTX_LEN, file_bytes=file_bytes)
    assert [file.contexts for file in manifest.files] == contexts


def test_the_held_out_documents_are_cached_as_tokens(small_cache, cached_run, tiny_lm):
    ids = np.load(small_cache / HELD_OUT / DOCUMENTS)
    documents = islice(open_text(cached_run.data, split="heldout"), 3)
    stream = ContextStream(documents, tiny_lm.tokenizer, CTX_LEN, packing="truncate")
    expected, mask = stream.next_batch(3)
    assert (ids == np.where(mask, expected, -1)).all()


def test_padding_has_the_token_minus_1_and_zeros(cached_run, tmp_path):
    text = write_jsonl(tmp_path / "short.jsonl", [f"the cat {n}" for n in range(900)])
    run = replace(cached_run, data=str(text), text_packing="truncate", eval_tokens=100)
    manifest = write_small(tmp_path / "cache", run, 3000)
    rows = rows_of(tmp_path / "cache")
    is_padding = rows["token_ids"] == -1
    assert (~is_padding).sum() == manifest.tokens >= 3000
    assert {file.contexts for file in manifest.files[:-1]} == {32}
    assert (rows[HOOK][is_padding] == 0).all()
    assert (rows[HOOK][~is_padding] != 0).all(1).all()


def test_float16_takes_half_the_space_and_rounds(small_cache, cached_run, tmp_path):
    write_small(tmp_path / "half", cached_run, dtype="float16", hooks=(HOOK, OTHER))
    half, full = rows_of(tmp_path / "half"), rows_of(small_cache)
    assert load_from_disk(str(tmp_path / "half")).features[HOOK].dtype == "float16"
    assert (half[HOOK] == full[HOOK].astype(np.float16)).all()
    of_half, of_full = (
        (folder / "data-00000.arrow").stat().st_size for folder in (tmp_path / "half", small_cache)
    )
    assert of_half < 0.6 * of_full


@pytest.mark.parametrize("stop", range(5))
def test_a_stopped_cache_is_continued_to_the_same_bytes(stop, small_cache, cached_run, tmp_path):
    """At every batch of the language model: one for the held-out part, 4 for the rest."""

    class Killed(BaseException):
        pass

    calls = iter(range(100))

    def before_batch():
        if next(calls) == stop:
            raise Killed

    folder = tmp_path / "cache"
    options = {"hooks": (HOOK, OTHER)}
    with pytest.raises(Killed):
        write_small(folder, cached_run, before_batch=before_batch, **options)
    error_of(lambda: open_stored(folder), ActivationsError)
    # What a kill leaves in the middle of a file, and between a file and the manifest.
    part = folder if read_manifest(folder) else folder / HELD_OUT
    part.mkdir(parents=True, exist_ok=True)
    next_file = f"data-{len(list(part.glob('data-*'))):05d}.arrow"
    for left in (part / f".{next_file}.0123abcd", folder / ".manifest.json.0123abcd"):
        left.mkdir()
        (left / "new").write_bytes(b"half")
    (part / next_file).write_bytes(b"whole")
    write_small(folder, cached_run, **options)
    assert files_in(folder) == files_in(small_cache)


def test_a_folder_that_is_deleted_while_it_is_written_is_no_finished_cache(cached_run, tmp_path):
    folder, calls = tmp_path / "cache", iter(range(100))

    def before_batch():
        if next(calls) == 3:
            shutil.rmtree(folder)

    error_of(lambda: write_small(folder, cached_run, before_batch=before_batch), UserError)
    error_of(lambda: open_stored(folder), ActivationsError)


def test_a_finished_cache_grows(small_cache, cached_run, tmp_path):
    folder, options = tmp_path / "cache", {"hooks": (HOOK, OTHER)}
    write_small(folder, cached_run, 2048, **options)
    before = files_in(folder)["data-00000.arrow"]
    assert write_small(folder, cached_run, 1, **options).tokens == 2048, "nothing to do"
    write_small(folder, cached_run, **options)
    assert files_in(folder)["data-00000.arrow"] == before
    assert files_in(folder) == files_in(small_cache)


def test_on_a_full_disk_what_was_written_stays_and_is_continued(
    small_cache, cached_run, tmp_path, monkeypatch
):
    folder, options = tmp_path / "cache", {"hooks": (HOOK, OTHER)}
    write = cache_writer.write_contexts

    def full(path, *content):
        path.write_bytes(b"a part")
        if len(list(folder.glob("data-*"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *content)

    monkeypatch.setattr(cache_writer, "write_contexts", full)
    said = error_of(lambda: write_small(folder, cached_run, **options), CheckpointError)
    assert str(folder / "data-00002.arrow") in said
    written = sorted(path.name for path in folder.glob("*data*"))
    assert written == ["data-00000.arrow", "data-00001.arrow"]
    assert read_manifest(folder).tokens == 2048
    monkeypatch.setattr(cache_writer, "write_contexts", write)
    write_small(folder, cached_run, **options)
    assert files_in(folder) == files_in(small_cache)


def test_it_may_be_ended_where_it_was_stopped_and_a_file_without_an_entry_is_deleted(
    cached_run, tmp_path
):
    def at_2048():
        manifest = read_manifest(tmp_path / "cache")
        if manifest is not None and manifest.tokens == 2048:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_small(tmp_path / "cache", cached_run, before_batch=at_2048)
    (tmp_path / "cache" / "data-00002.arrow").write_bytes(b"whole")
    assert write_small(tmp_path / "cache", cached_run, 2048).tokens == 2048
    assert len(rows_of(tmp_path / "cache")["token_ids"]) == 64
    assert not (tmp_path / "cache" / "data-00002.arrow").exists()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, {"hooks": (OTHER,)}, f"has hooks={HOOK}, but this command has hooks={OTHER}; "),
        ({"text_packing": "truncate"}, {"dtype": "float16"}, "has text_packing='pack' and dtype='float32', but"),
    ],
)  # fmt: skip
def test_a_cache_of_other_settings_is_left_alone(changes, options, said, cached_run, tmp_path):
    write_small(tmp_path, cached_run, 1000)
    before = files_in(tmp_path)
    run = replace(cached_run, **changes)
    assert said in error_of(lambda: write_small(tmp_path, run, 1000, **options), ActivationsError)
    assert files_in(tmp_path) == before


def test_another_model_is_told_by_its_weights_and_another_text_by_its_content(
    cached_run, lm_dir_of, tmp_path
):
    text = shutil.copy(cached_run.data, tmp_path / "text.txt")
    run = replace(cached_run, data=str(text))
    write_small(tmp_path / "cache", run, 1000)
    with pytest.raises(ActivationsError, match="language_model="):
        write_small(tmp_path / "cache", replace(run, model=str(lm_dir_of("llama"))), 1000)
    with (tmp_path / "text.txt").open("a") as file:
        file.write("more")
    with pytest.raises(ActivationsError, match="text="):
        write_small(tmp_path / "cache", run, 1000)


def test_a_cache_of_a_hub_model_is_of_its_commit(cached_run, tmp_path, monkeypatch):
    def committed(commit):
        def load(run):
            model = load_model(run)
            model.module.config._commit_hash = commit
            return model

        for module in (cache_writer, inputs):
            monkeypatch.setattr(module, "load_model", load)

    committed("c" * 40)
    assert write_small(tmp_path, cached_run, 1000).settings.language_model == "c" * 40
    stored = open_stored(tmp_path)
    run = replace(RunConfig(), eval_tokens=256, **stored.settings | {"hook": HOOK})
    assert open_inputs(run, [HOOK]).language_model is not None
    committed("d" * 40)
    with pytest.raises(ActivationsError, match=r"language_model='c{12}'.*d{12}"):
        write_small(tmp_path, cached_run, 2000)
    with pytest.raises(LanguageModelError, match=r"c{12}.*d{12}"):
        open_inputs(run, [HOOK])


@pytest.mark.parametrize("name", ["thesis.tex", "data-00000.arrow", "mine/x.npy"])
def test_a_folder_of_other_files_is_left_alone(name, cached_run, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / HELD_OUT).mkdir()
    (tmp_path / HELD_OUT / ".data-00003.arrow.0123abcd").write_bytes(b"left")
    before = files_in(tmp_path)
    message = error_of(lambda: write_small(tmp_path, cached_run), ActivationsError)
    assert name.split("/")[0] in message
    assert files_in(tmp_path) == before


def test_beside_a_manifest_only_what_a_kill_leaves_is_deleted(cached_run, tmp_path):
    write_small(tmp_path, cached_run, 1000)
    whole = files_in(tmp_path)
    mine = {name: b"mine" for name in ("data-0.npy", ".data-mine", "heldout/mine.npy", "data-1/x")}
    (tmp_path / "data-1").mkdir()
    for name in (".data-00009.arrow.0123abcd", "heldout/.data-00009.arrow.0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "new").write_bytes(b"half")
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    write_small(tmp_path, cached_run, 1000)
    assert files_in(tmp_path) == whole | mine


def test_held_out_files_from_before_the_manifest_are_deleted(cached_run, tmp_path):
    left = tmp_path / "heldout" / "data-00009.arrow"
    left.parent.mkdir()
    left.touch()
    write_small(tmp_path, cached_run, 500)
    assert not left.exists()


def test_a_cache_of_other_settings_is_replaced_if_asked(cached_run, tmp_path):
    write_small(tmp_path, cached_run, 500)
    write_small(tmp_path, replace(cached_run, data_seed=3), 500, overwrite=True)
    assert read_manifest(tmp_path).settings.data_seed == 3


def test_a_second_writer_is_refused(cached_run, tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match=str(os.getpid())):
        write_small(tmp_path, cached_run)


def test_the_space_is_said_and_checked_before_anything_is_written(
    cached_run, tmp_path, monkeypatch
):
    said = []
    manifest = write_small(tmp_path / "a", cached_run, on_plan=said.append)
    # 72 bytes a token: 4 of its id, 4 of the row's place and 4 * 16 of the activations.
    assert all(number in said[0] for number in ("4,000", "311kB"))
    assert sum(file.bytes for file in manifest.all_files) == pytest.approx(311_000, rel=0.1)
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r"311kB.*300kB.*tokens.*dtype='float16'"):
        write_small(tmp_path / "b", cached_run)
    assert not (tmp_path / "b").exists()
    write_small(tmp_path / "a", cached_run, 5000)  # what is there counts


@pytest.fixture
def damaged_lm(tiny_lm_dir, tmp_path):
    """A copy of the language model with large numbers in its activations."""

    def make(factor):
        folder = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
        weights = load_file(folder / "model.safetensors")
        for name in weights:
            if "dense_4h_to_h.bias" in name:
                weights[name].add_(1).mul_(factor)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return make


def test_an_activation_beyond_float16_is_an_error(cached_run, damaged_lm, tmp_path):
    run = replace(cached_run, model=damaged_lm(1e6))
    with pytest.raises(ConfigError, match=r"65,504.*dtype='float32'"):
        write_small(tmp_path / "a", run, dtype="float16")
    write_small(tmp_path / "b", run, 100)


def test_activations_that_are_not_finite_are_an_error(cached_run, damaged_lm, tmp_path):
    with pytest.raises(NonFiniteError):
        write_small(tmp_path / "a", replace(cached_run, model=damaged_lm(float("nan"))), 1024)


def test_a_text_that_ends_makes_a_smaller_cache(cached_run, tmp_path, caplog):
    run = replace(cached_run, eval_tokens=0)
    manifest = write_small(tmp_path, run, 10**7)
    assert TOKENS < manifest.tokens < 10**7
    (record,) = caplog.records
    assert record.args == (run.data, f"{manifest.tokens:,}", "10,000,000")
    assert write_small(tmp_path, run, 10**7) == manifest
