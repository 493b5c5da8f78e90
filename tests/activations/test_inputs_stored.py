"""What a run reads of stored activations: its result, its resumption, and when a model is loaded."""

import contextlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as t
from caches import HOOK, OTHER, write_small
from datasets import load_from_disk
from interrupted_runs import assert_equal, interrupt, results, resumed, sae_of
from planted_sinks import saved_with_sinks
from small_commands import refused
from texts import error_of

from dictionary_learning_ext import train
from dictionary_learning_ext.activations import inputs, language_models
from dictionary_learning_ext.activations.inputs import find_inputs, open_inputs
from dictionary_learning_ext.activations.language_models import unwrapped
from dictionary_learning_ext.activations.rows import ContextBatch
from dictionary_learning_ext.activations.stored import UNKNOWN, open_stored
from dictionary_learning_ext.activations.stored_rows import StoredRows
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import (
    ActivationsError,
    Interrupted,
    LanguageModelError,
    TextError,
)


@pytest.fixture
def run(run, small_cache):
    """A run on one hook point of the cache."""
    settings = open_stored(small_cache).settings
    return replace(run, **settings, hook=HOOK, text_passes=2, eval_documents=3)


@pytest.fixture
def no_model(monkeypatch):
    """No language model can be loaded."""

    def load(*_, **__):
        raise AssertionError("is loaded")

    monkeypatch.setattr(language_models.Pretrained, "load", load)


@pytest.fixture
def own(tmp_path):
    """2,000 rows."""
    folder = tmp_path / "own"
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((2000, 16)).astype("f4"))
    return folder


def metrics_of(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def batches_of(run, hooks, before_batch):
    inputs = find_inputs(run, hooks, before_batch)
    inputs.load(hooks)
    return inputs.training_batches()


def test_several_hook_points_resume_at_one_place_wherever_a_read_is_interrupted(run):
    hooks, steps = (HOOK, OTHER), 20  # three fills, of one read each
    reads = []
    sources = batches_of(run, hooks, lambda: reads.append(len(reads)))
    whole = [sources.next() for _ in range(steps)]
    assert len(reads) == 3 * len(hooks)
    for stop in reads:
        count = iter(reads)

        def check(stop=stop, count=count):
            if next(count) == stop:
                raise Interrupted(signal.SIGTERM)

        found = []
        sources = batches_of(run, hooks, check)
        with contextlib.suppress(Interrupted):
            while len(found) < steps:
                found.append(sources.next())
        assert len(found) < steps
        assert sources.tokens_seen() == {len(found) * run.batch_size}
        states = json.loads(json.dumps(sources.state_dict()))
        sources = open_inputs(run, hooks).training_batches()
        sources.load_state_dict(states)
        found += [sources.next() for _ in range(steps - len(found))]
        for step in range(steps):
            assert_equal(found[step], whole[step], f"{stop}.{step}")


def test_a_run_of_several_hook_points_resumes_to_the_bit_after_a_signal_in_a_read(
    run, tmp_path, monkeypatch
):
    """The signal comes in the read of the first hook point's third fill, before the other's."""
    saes, hooks = {"a": sae_of(), "b": sae_of()}, {"a": HOOK, "b": OTHER}
    train(replace(run, save_dir=str(tmp_path / "whole")), saes, hooks)
    fill, reads = StoredRows.fill, []

    def signalled(self, *given):
        for filled in fill(self, *given):
            reads.append(self.hook)
            if reads.count(HOOK) == 3 and reads[-1] == HOOK:
                os.kill(os.getpid(), signal.SIGTERM)
            yield filled

    monkeypatch.setattr(StoredRows, "fill", signalled)
    with pytest.raises(Interrupted, match="16"):
        train(run, saes, hooks)
    monkeypatch.setattr(StoredRows, "fill", fill)
    resumed(run.save_dir)
    for name in saes:
        assert_equal(results(Path(run.save_dir) / name), results(tmp_path / "whole" / name))


@pytest.mark.parametrize("kind", ["cache", "own"])
def test_a_run_resumes_where_its_activations_have_moved(
    kind, run, small_cache, own, tmp_path, monkeypatch, capsys
):
    there = shutil.copytree(small_cache if kind == "cache" else own, tmp_path / "before")
    run = replace(run, activations=str(there))
    if kind == "own":
        settings = open_stored(there).settings | {"activations": str(there), "hook": "h"}
        run = replace(run, **settings, eval_tokens=0, text_passes=3)
    train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()})
    interrupt(run, monkeypatch)
    there.rename(tmp_path / "after")
    command = ["train", "--resume", run.save_dir]
    assert "no such folder" in refused(command, capsys)
    refused([*command, "--activations=none"], capsys)
    assert main([*command, f"--activations={tmp_path / 'after'}"]) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["run"]["settings"]
    assert settings["activations"] == str(tmp_path / "after"), "so that it is found later"
    assert main(["eval", run.save_dir, "--tokens=100"]) == 0
    found, whole = (
        t.load(tmp_path / name / "ae.pt", weights_only=True) for name in ("run", "whole")
    )
    assert_equal(found, whole)


def test_sinks_of_a_cache_are_named(run, cached_run, lm_dir_of, tmp_path, caplog):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "lm")
    write_small(tmp_path / "sinks", replace(cached_run, model=model))
    run = replace(run, **open_stored(tmp_path / "sinks").settings, max_norm_multiple=None)
    train(run, {"x": sae_of()})
    assert "position 0" in caplog.text


def all_rows(run):
    """The rows that a run trains on, in their order."""
    batches, found = open_inputs(run, [HOOK]).training_batches(), []
    with contextlib.suppress(TextError):
        while True:
            found.append(batches.next()[HOOK])
    return t.cat(found)


def test_training_follows_the_runs_seed_and_leaves_out_what_the_run_leaves_out(run, small_cache):
    run = replace(run, text_passes=1, batch_size=8, eval_tokens=0)
    rows = load_from_disk(str(small_cache)).with_format("torch")[:]
    x, ids = rows[HOOK].reshape(-1, 16), rows["token_ids"].reshape(-1)
    norms, medians = x.norm(dim=1), []
    for file in norms.split(1024):  # 4,096 rows are judged together: all of a file here
        medians.append(file.median().expand(len(file)))
    for rule, is_kept in (
        ({}, ids >= 0),
        ({"remove_bos": True}, ids != 0),
        ({"max_norm_multiple": 1.05}, norms <= 1.05 * t.cat(medians)),
    ):
        found = all_rows(replace(run, **rule))
        assert len(found) == is_kept.sum() // 8 * 8, rule
        assert set(map(tuple, found.tolist())) <= set(map(tuple, x[is_kept].tolist())), rule
    assert len(ids) > (ids != 0).sum() > 0
    one, again, other = (all_rows(replace(run, data_seed=seed)) for seed in (0, 0, 1))
    assert t.equal(one, again)
    assert not t.equal(one, other)


def test_its_evaluation_is_in_the_dtype_in_which_the_language_model_was_cached(
    run, cached_run, tmp_path
):
    write_small(tmp_path / "cache", replace(cached_run, dtype="bfloat16"), 1000)
    run = replace(run, activations=str(tmp_path / "cache"))
    assert run.dtype == "float32"
    model = open_inputs(run, [HOOK]).language_model
    assert model is not None
    assert model.module.dtype == t.bfloat16


@pytest.mark.slow
def test_its_evaluation_is_that_of_the_language_model(run, cached_run, tmp_path):
    """Where both measure on the same tokens: here on a whole fill of the evaluation's buffer."""
    folder = tmp_path / "run"
    write_small(tmp_path / "cache", replace(cached_run, eval_tokens=2048))
    run = replace(run, activations=str(tmp_path / "cache"), eval_tokens=2048)
    train(run, {"x": sae_of()})
    cached = metrics_of(folder)
    assert main(["eval", str(folder), "--activations", "none"]) == 0
    assert metrics_of(folder) == cached, "the other is written beside it"
    live = json.loads((folder / "evaluations" / "activations_none.json").read_text())
    assert cached["tokens"] == live["tokens"] == 2048
    assert cached["loss_tokens"] == live["loss_tokens"]
    for name in ("fve", "frac_recovered", "loss_original", "l0"):
        assert cached[name] == pytest.approx(live[name], rel=1e-4), name
    assert main(["eval", str(folder)]) == 0
    assert metrics_of(folder) == cached


def test_a_process_that_does_not_evaluate_needs_no_language_model(run, no_model):
    inputs = find_inputs(run, [HOOK])
    inputs.load([])
    assert inputs.language_model is None
    assert inputs.training_batches().next() == {}, "nor a file"
    with pytest.raises(AssertionError):
        inputs.load([HOOK])


@pytest.mark.slow
def test_saes_of_several_hook_points_are_each_as_on_its_own(run, tmp_path, no_model):
    run = replace(run, eval_tokens=0)
    saes = {"a": sae_of(), "b": sae_of(), "c": sae_of(seed=1)}
    both = replace(run, save_dir=str(tmp_path / "both"), hook="blocks.2.hook_resid_post")
    train(both, saes, hooks={"a": HOOK, "b": OTHER, "c": HOOK})
    for name, hook in (("a", HOOK), ("b", OTHER)):
        alone = replace(run, hook=hook, save_dir=str(tmp_path / name))
        train(alone, {"x": sae_of()})
        assert_equal(t.load(tmp_path / name / "ae.pt"), t.load(tmp_path / "both" / name / "ae.pt"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["run"]["settings"]["activations"] == run.activations
    assert (config["trainer"]["submodule_name"], config["trainer"]["layer"]) == (HOOK, 1)
    assert config["buffer"]["cache"] == open_stored(run.activations).digest


def test_another_model_of_the_same_name_is_refused_before_the_first_step(
    run, small_cache, lm_dir_of, tmp_path, tiny_lm_dir
):
    other = shutil.copytree(lm_dir_of("llama"), tmp_path / tiny_lm_dir.name)
    changed = replace(run, model=str(other))
    said = error_of(lambda: train(changed, {"x": sae_of()}), LanguageModelError)
    assert str(small_cache) in said
    assert repr(str(other)) in said
    assert not (tmp_path / "run").exists()


def test_they_are_read_again_until_the_steps_are_done(run, caplog):
    """4,000 tokens a pass."""
    caplog.set_level("INFO", "dictionary_learning_ext")
    run = replace(run, text_passes=None, eval_tokens=0, batch_size=48)
    batches = open_inputs(run, [HOOK]).training_batches()
    for _ in range(3 * 4000 // 48):
        batches.next()
    passes = [record.args for record in caplog.records if "pass" in record.message]
    assert passes == [(2,), (3,)]


def test_their_end_is_an_error_that_names_the_cap(run):
    said = error_of(lambda: train(replace(run, steps=500), {"x": sae_of()}))
    assert "8000" in said
    assert "text_passes" in said


@pytest.mark.parametrize("normalize", ["sqrt_d", "none"])
@pytest.mark.parametrize(("width", "said"), [(8, "zero"), (0, "(4000, 0)")])
def test_own_activations_that_hold_nothing_are_refused(width, said, normalize, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.zeros((4000, width), dtype=np.float32))
    flags = f"--steps=2 --batch-size=64 --n-ctxs=50 --eval-tokens=0 --architecture=top_k --normalize={normalize}"
    where = [f"--activations={tmp_path}", f"--save-dir={tmp_path / 'run'}"]
    assert said in refused(["train", "--k=4", "--dict-size=32", *flags.split(), *where], capsys)


@pytest.mark.slow
def test_own_activations_are_measured_but_the_language_models_loss_is_not(
    own, tmp_path, capsys, no_model
):
    folder = tmp_path / "run"
    flags = ["--steps=20", "--batch-size=64", "--dict-size=32", "--k=4", f"--save-dir={folder}"]
    flags += ["--eval-tokens=100", "--ctx-len=8", "--n-ctxs=50"]
    assert main(["train", f"--activations={own}", *flags]) == 0
    metrics = metrics_of(folder)
    assert 0 < metrics["fve"] < 1
    assert metrics["tokens"] == 100
    assert metrics["frac_recovered"] is None
    reason = f"{own} doesn't record its language model or text"
    assert metrics["not_measured"]["frac_recovered"] == reason
    assert metrics["measured_on"]["model"] == UNKNOWN
    assert metrics["measured_on"]["data"] == str(own)
    out = capsys.readouterr().out
    assert reason in out
    assert f"compare {folder}" in out
    assert f"report {folder}" not in out, "which would be refused"
    assert main(["eval", str(folder)]) == 0
    assert metrics_of(folder) == metrics
    line = refused(["report", str(folder)], capsys)
    assert "use `vsae eval` and `vsae compare`" in line


def test_held_out_documents_that_are_missing_are_said(run, caplog):
    for asked in (3, 4):
        caplog.clear()
        open_inputs(replace(run, eval_documents=asked), [HOOK])
        assert ("eval_documents=4" in caplog.text) == (asked == 4)


def test_held_out_tokens_that_are_missing_are_said_before_training(
    own, cached_run, tmp_path, capsys
):
    train_ = ["train", "--steps=2", "--batch-size=64", f"--save-dir={tmp_path / 'run'}"]
    write_small(tmp_path / "cache", replace(cached_run, eval_tokens=0), 1000)
    for folder, held_out in ((own, 100), (tmp_path / "cache", 0)):
        line = refused([*train_, "--n-ctxs=50", f"--activations={folder}"], capsys)
        assert all(part in line for part in (f" {held_out} ", "2,048", "eval_tokens=0"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_report_takes_its_contexts_from_the_cache(run, small_cache, tmp_path, monkeypatch):
    train(replace(run, eval_tokens=0), {"x": sae_of()})
    read = "the language model is read"
    monkeypatch.setattr(inputs, "with_activations", lambda *_: pytest.fail(read))
    flags = ["--tokens=300"]
    assert main(["report", str(tmp_path / "run"), *flags]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert str(small_cache) in page


def test_a_cache_without_held_out_tokens_says_how_to_look_at_features(
    cached_run, tmp_path, tiny_lm
):
    write_small(tmp_path, replace(cached_run, eval_tokens=0), 1000)
    run = replace(cached_run, hook=HOOK, activations=str(tmp_path))
    opened = open_inputs(run, [HOOK], language_model=unwrapped(tiny_lm))
    said = error_of(lambda: next(opened.contexts(HOOK, "heldout", 250)), ActivationsError)
    assert str(tmp_path) in said
    assert "activations='none'" in said
    assert next(opened.contexts(HOOK, "train", 250))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_contexts_of_a_cache_are_those_of_the_text(split, cached_run, small_cache, tiny_lm):
    run = replace(cached_run, hook=HOOK, remove_bos=True)
    cached, live = (
        list(open_inputs(of, [HOOK], language_model=unwrapped(tiny_lm)).contexts(HOOK, split, 250))
        for of in (replace(run, activations=str(small_cache)), run)
    )
    ours, theirs = (
        ContextBatch(*map(t.cat, zip(*batches, strict=True))) for batches in (cached, live)
    )
    n = min(len(ours.wanted_BL), len(theirs.wanted_BL))
    assert t.equal(ours.input_ids_BL[:n], theirs.input_ids_BL[:n])
    assert t.equal(ours.wanted_BL[:n], theirs.wanted_BL[:n])
    assert int(ours.wanted_BL.sum()) == 250
    t.testing.assert_close(ours.x_BLD[:n], theirs.x_BLD[:n])
