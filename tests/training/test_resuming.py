"""Runs that are stopped, killed or changed, and resumed: bit-identical to runs that were not."""

import json
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch as t
from interrupted_runs import (
    STEPS,
    Killed,
    assert_equal,
    results,
    resumed,
    sae_of,
    stopped_at,
    written,
)

from dictionary_learning_ext import train
from dictionary_learning_ext.activations import inputs as language_model_run
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import CONFIGS
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LanguageModelError,
    TextError,
)
from dictionary_learning_ext.run_folder.reading import read_run
from dictionary_learning_ext.run_folder.resume_points import steps_of
from dictionary_learning_ext.training import resuming


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(architecture, run, tmp_path, monkeypatch):
    options = {"noise_anneal_steps": 40} if architecture == "vsae_top_k" else {}
    if "k_anneal_steps" in CONFIGS[architecture]().options:
        options["k_anneal_steps"] = 45
    saes = {"one": sae_of(architecture, **options)}
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), saes).values()
    for step in (23, 41):
        stopped_at(step, monkeypatch)
        with pytest.raises(Interrupted, match=rf"SIGINT at step {step}; .*--resume {run.save_dir}"):
            resumed(run.save_dir) if step == 41 else train(run, saes)
        assert steps_of(Path(run.save_dir))[-1] == step
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))
    assert steps_of(Path(run.save_dir)) == [50, STEPS]


@pytest.mark.parametrize(
    "options",
    [{"posterior": "learned"}, {"posterior": "point"}, {"select_by": "magnitude"}],
    ids=str,
)
def test_every_posterior_and_selection_resumes(options, run, tmp_path, monkeypatch):
    saes = {"one": sae_of(**options)}
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), saes).values()
    stopped_at(30, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, saes)
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_a_run_with_a_data_seed_resumes_and_no_other_data_seed_does(run, tmp_path, monkeypatch):
    """In the second fill, which the generator of the first decides."""
    run = replace(run, data_seed=3)
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    with pytest.raises(ConfigError, match="data_seed=3, not 0; leave out data_seed"):
        train(replace(run, data_seed=0), {"x": sae_of()}, resume=True)
    (folder,) = resumed(run.save_dir).values()
    assert_equal(results(whole), results(folder))


def test_a_shared_run_resumes_as_a_whole_or_one_of_it_alone(run, tmp_path, monkeypatch):
    saes = {"a": sae_of(), "b": sae_of("top_k")}
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), saes)
    stopped_at(33, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, saes)
    base = Path(run.save_dir)
    resumed(base / "b")
    assert_equal(results(whole["b"]), results(base / "b"))
    assert steps_of(base / "a")[-1] == 33
    resumed(base / "a")
    assert_equal(results(whole["a"]), results(base / "a"))


def test_a_finished_run_is_left_alone(run, caplog):
    caplog.set_level("INFO", "dictionary_learning_ext")
    (folder,) = train(run, {"x": sae_of()}).values()
    before = (folder / "ae.pt").stat().st_mtime_ns
    assert resumed(folder) == {"run": folder}
    assert "already finished" in caplog.text
    assert (folder / "ae.pt").stat().st_mtime_ns == before


def test_other_settings_are_named(stopped):
    config = json.loads((stopped / "config.json").read_text())
    config["run"]["settings"] |= {"beta": 0.5, "log_steps": 3}
    (stopped / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"beta=1\.0, not 0\.5; leave out beta"):
        resumed(stopped)


def test_another_language_model_is_noticed(stopped, lm_dir_of, tmp_path):
    import shutil

    import transformers

    settings = json.loads((stopped / "config.json").read_text())["run"]["settings"]
    folder = Path(settings["model"])
    keep = shutil.copytree(folder, tmp_path / "keep")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with t.no_grad():
            next(model.parameters())[0, 0] += 1e-3
        model.save_pretrained(folder)
        with pytest.raises(LanguageModelError, match="has changed since the run was interrupted"):
            resumed(stopped)
    finally:
        shutil.copytree(keep, folder, dirs_exist_ok=True)
    resumed(stopped)


def test_a_changed_text_is_noticed(stopped):
    settings = json.loads((stopped / "config.json").read_text())["run"]["settings"]
    path = Path(settings["data"])
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-999] + before[-999:].replace(b"cat", b"cow"))
        with pytest.raises(TextError, match="has changed since the run was interrupted"):
            resumed(stopped)
    finally:
        path.write_bytes(before)


def test_a_damaged_point_is_named_and_the_one_before_is_used(stopped, caplog):
    caplog.set_level("INFO", "dictionary_learning_ext")
    *_, before, newest = steps_of(stopped)
    (stopped / "resume" / f"step_{newest:08d}" / "state.json").write_text("{}")
    resumed(stopped)
    assert "state.json: changed since it was written: skipped" in caplog.text
    assert f"resuming from step {before} of" in caplog.text


def test_a_shortened_log_is_noticed(stopped):
    (stopped / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: shorter than"):
        resumed(stopped)


def test_lines_logged_after_the_point_are_cut_off(stopped):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "fve": 9}\n{"step": 2')
    resumed(stopped)
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(0, STEPS, 7), STEPS]
    assert all(row.get("fve") != 9 for row in rows)


def test_a_text_that_ended_goes_on_with_another_pass(run, tmp_path, text, monkeypatch):
    """As where outliers are left out, whose number isn't known before."""
    monkeypatch.setattr(language_model_run, "require_enough_text", lambda *args: None)
    short = tmp_path / "short.txt"
    short.write_text(Path(text).read_text()[:6_000])
    one = replace(run, data=str(short), save_every="none", eval_tokens=0)
    with pytest.raises(TextError, match=r"ended.*text_passes"):
        train(one, {"x": sae_of()})
    (step,) = steps_of(Path(run.save_dir))
    former, saes, hooks = read_run(Path(run.save_dir))
    train(replace(former, text_passes=9), saes, hooks, resume=True)
    rows = [
        json.loads(line) for line in (Path(run.save_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    assert 0 < step < STEPS
    assert [row["step"] for row in rows] == [*range(0, STEPS, 7), STEPS]


def test_the_text_is_not_counted_again(stopped, monkeypatch):
    monkeypatch.setattr(
        language_model_run, "require_enough_text", lambda *args: pytest.fail("counted again")
    )
    resumed(stopped)


def test_an_error_in_the_middle_of_a_step_leaves_no_point_of_it(run, tmp_path, monkeypatch):
    """Its batch was handed out and not trained on: a resume there would leave it out."""
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    original = ResidualBuffer.__next__

    class NoRoom:
        def to(self, *_):
            raise RuntimeError("out of memory")

    def handed_out(self):
        x_BD = original(self)
        return NoRoom() if self.tokens_seen == 25 * self.out_batch_size else x_BD

    monkeypatch.setattr(ResidualBuffer, "__next__", handed_out)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    assert steps_of(Path(run.save_dir))[-1] == 20
    resumed(run.save_dir)
    one, other = results(whole), results(Path(run.save_dir))
    assert "ae_24.pt" in other.pop("checkpoints")
    one.pop("checkpoints")
    assert_equal(one, other)


def test_a_run_that_ended_before_its_first_point_starts_from_scratch(
    run, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "dictionary_learning_ext")
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()

    def dies(*_):
        raise Killed

    monkeypatch.setattr("dictionary_learning_ext.run_folder.resume_points.save_point", dies)
    with pytest.raises(Killed):
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    resumed(run.save_dir)
    assert "no resume point yet; starting from scratch" in caplog.text
    assert_equal(results(whole), results(Path(run.save_dir)))


def child(settings, saes):
    """A run in a process of its own, as `train` in a script."""
    t.set_num_threads(2)
    run = RunConfig(**settings)
    train(run, saes, resume=Path(run.save_dir, "config.json").exists())


def test_five_kills_change_nothing(run, tmp_path):
    """kill -9 after some lines of its log; a complete point is there from the first on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dictionary_learning_ext.training.loop"])
    saes = {"x": sae_of()}
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), saes).values()
    folder = Path(run.save_dir)
    killed, points = [], []
    for lines in (1, 2, 3, 4, 6):
        process = context.Process(target=child, args=(vars(run), saes))
        process.start()
        while process.is_alive() and written(folder) < lines:
            process.join(0.01)
        process.kill()
        process.join()
        killed.append(process.exitcode == -signal.SIGKILL)
        points = [bool(steps_of(folder)), *points]
        assert points == sorted(points, reverse=True), (
            "once there is a complete point, there is one"
        )
    assert all(killed), "each was in time"
    assert any(points)
    process = context.Process(target=child, args=(vars(run), saes))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_equal(results(whole), results(folder))


def test_a_run_of_several_machines_says_how_many(stopped, monkeypatch):
    newest = resuming.newest_points

    def of_two_machines(folders):
        points, problems = newest(folders)
        processes = {"ranks": [None] * 8, "machines": 2}
        return {f: p._replace(run=p.run | processes) for f, p in points.items()}, problems

    monkeypatch.setattr(resuming, "newest_points", of_two_machines)
    command = "torchrun --nnodes 2 --nproc-per-node 4 -m dictionary_learning_ext train --resume"
    with pytest.raises(ConfigError, match=f"with 8 processes, not 1; continue with `{command}"):
        resumed(stopped)
