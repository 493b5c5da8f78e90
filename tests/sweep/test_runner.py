"""Sweeps run here: the weights of single runs, interrupted ones, failures, memory, and sweep.json."""

import csv
import errno
import fcntl
import json
import signal
import sys
from dataclasses import replace

import psutil
import pytest
import torch as t
from caches import HOOK, OTHER
from forks import forked, wait_for
from interrupted_runs import Killed, assert_equal, one_thread
from language_model_reads import counted_passes
from small_commands import refused

from dictionary_learning_ext import train
from dictionary_learning_ext.activations import language_models
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.commands.sweep import train_config
from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LanguageModelError,
    TextError,
    TrainingError,
)
from dictionary_learning_ext.run_folder import resume_points
from dictionary_learning_ext.run_folder.files import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    require_free,
    write_json,
)
from dictionary_learning_ext.sweep import devices, runner
from dictionary_learning_ext.sweep.cached import SweepCache
from dictionary_learning_ext.sweep.runner import chunks_of, progress, run_sweep
from dictionary_learning_ext.sweep.sweep_file import configurations, read_sweep

TRAIN = "dictionary_learning_ext.training.loop.train"


@pytest.fixture
def configs(sweep_file):
    """A sweep of four runs."""
    return configurations(read_sweep(sweep_file()), train_config)


def results(folder):
    """What a run of a sweep leaves."""
    logs = {name: (folder / name).read_text() for name in ("metrics.jsonl", "metrics.json")}
    return logs | {"weights": t.load(folder / "ae.pt", weights_only=True)}


@pytest.mark.slow
def test_a_shared_sweep_gives_the_weights_of_single_runs_and_the_same_again(
    sweep_file, tmp_path, capsys
):
    values = {"k": {"values": [2, 4]}, "beta": {"values": [0.0, 0.5]}, "eval_every": {"value": 9}}
    path = sweep_file(parameters=values)
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s"), "--at-once", "3"]) == 0
    out = capsys.readouterr().out
    assert "4 runs into" in out
    for name, config in configurations(read_sweep(path), train_config).items():
        (alone,) = train(
            train_config(
                [
                    *read_sweep(path).flags,
                    f"--k={config.sae.k}",
                    f"--beta={config.sae.beta}",
                    "--eval-every=9",
                    f"--save-dir={tmp_path / 'alone' / name}",
                ]
            ).run,
            {"x": config.sae},
        ).values()
        assert_equal(results(tmp_path / "s" / name), results(alone))
    rows = list(csv.DictReader((tmp_path / "s" / "results.csv").open()))
    assert len(rows) == 4
    assert "eval_every" not in rows[0], "it changes no result"
    for row in rows:
        metrics = json.loads((tmp_path / "s" / row["run"] / "metrics.json").read_text())
        assert float(row["fve"]) == metrics["fve"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/ae.pt")}
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s")]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/ae.pt")} == before


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_ends_bit_identical(configs, tmp_path, monkeypatch):
    """Two runs are trained together, and the kill leaves one of them with a later resume point."""
    whole = run_sweep(configs, tmp_path / "whole", at_once=2)
    written, save_point = [], resume_points.save_point

    def killed_at_the_third(*given):
        save_point(*given)
        written.append(given)
        if len(written) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resume_points, "save_point", killed_at_the_third)
        with pytest.raises(Killed):
            run_sweep(configs, tmp_path / "killed", at_once=2)
    folders = run_sweep(configs, tmp_path / "killed")
    assert folders.keys() == whole.keys() == configs.keys()
    for name in whole:
        assert_equal(results(whole[name]), results(folders[name]))


STOPPING = """
import os, runpy, signal, sys
from dictionary_learning_ext.run_folder import resume_points

save = resume_points.save_point

def stopping(*given):
    resume_points.save_point = save
    save(*given)
    os.kill(os.getpid(), signal.SIGSTOP)

resume_points.save_point = stopping
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""The process of a device, which stops behind its first resume point until it is told to continue."""


def over_stopping(command):
    devices.WORKER = (sys.executable, "-c", STOPPING, devices.WORKER[-1])
    return main(command)


def stopped_children(process):
    children = psutil.Process(process.pid).children()
    return [child for child in children if child.status() == psutil.STATUS_STOPPED]


@pytest.mark.ci
@pytest.mark.slow
def test_the_processes_of_a_killed_sweep_end_what_they_have_begun(sweep_file, tmp_path, capsys):
    path, folder = sweep_file(parameters={"k": {"values": [2, 4, 8]}}), tmp_path / "s"
    command = ["sweep", str(path), "--save-dir", str(folder), "--at-once=1", "--devices", "cpu,cpu"]
    process = forked(over_stopping, command, printed=tmp_path / "printed")
    wait_for(lambda: len(stopped_children(process)) == 2, process)
    trainers = stopped_children(process)
    process.kill()
    process.join()
    try:
        said = refused(command, capsys)
    finally:
        for trainer in trainers:
            trainer.resume()
    assert any(f"process {trainer.pid} on" in said for trainer in trainers)
    begun = [point.parent for point in folder.glob("*/resume")]
    assert len(begun) == 2
    for one in begun:  # until its process has ended
        with (one / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
    for file in ("config.json", "metrics.json"):
        assert {path.parent for path in folder.glob(f"*/{file}")} == {*begun}
    configs = configurations(read_sweep(path), train_config)
    with one_thread():  # as each of the two processes has
        ours, whole = (run_sweep(configs, where) for where in (folder, tmp_path / "whole"))
    for name in configs:
        assert_equal(results(ours[name]), results(whole[name]))


def test_runs_of_two_data_seeds_share_no_buffer(sweep_file, tmp_path):
    path = sweep_file(parameters={"k": {"values": [2, 4]}, "data_seed": {"values": [0, 1]}})
    configs = configurations(read_sweep(path), train_config)
    chunks = list(chunks_of(configs, tmp_path, None, at_once=4))
    assert [len(chunk.configs) for chunk in chunks] == [2, 2]
    for chunk, seed in zip(chunks, (0, 1), strict=True):
        assert {config.run.data_seed for config in chunk.configs.values()} == {seed}


@pytest.fixture
def calls(monkeypatch):
    """The calls of `train`, which does nothing but raise the errors in `calls.raised`, one a call."""
    calls = Calls()
    monkeypatch.setattr(TRAIN, calls)
    return calls


class Calls(list):
    def __init__(self):
        super().__init__()
        self.raised = []

    def __call__(self, run, saes, hooks, *, resume, group, on_start):
        self.append((list(saes), resume, group))
        if self.raised:
            raise self.raised.pop()


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (Interrupted(signal.SIGTERM, "at step 6"), signal.SIGTERM),
        (KeyboardInterrupt, signal.SIGINT),
    ],
)
def test_a_signal_says_how_to_continue_the_sweep(raised, number, configs, calls, tmp_path):
    finished(tmp_path / next(iter(configs)), next(iter(configs.values())))
    calls.raised = [raised]
    with pytest.raises(Interrupted) as stop:
        run_sweep(configs, tmp_path, at_once=1, command="vsae sweep x.yaml")
    said = f"stopped by {number.name}; 1 of 4 runs are finished; run `vsae sweep x.yaml` again to"
    assert str(stop.value).startswith(said)
    assert stop.value.exit_code == 128 + number
    assert len(calls) == 1


def test_what_no_run_can_be_trained_with_is_said_before_the_sweep_begins(configs, calls, tmp_path):
    def without_hook(config):
        return replace(config, run=replace(config.run, hook="blocks.7"))

    wrong = {name: without_hook(config) for name, config in configs.items()}
    begun = []
    with pytest.raises(LanguageModelError, match="'blocks"):
        run_sweep(wrong, tmp_path / "s", on_begin=begun.append)
    assert begun == calls == []
    assert not (tmp_path / "s").exists()


def test_a_name_that_is_too_long_for_a_folder_is_said_before_the_sweep_begins(
    configs, calls, tmp_path
):
    with pytest.raises(CheckpointError, match=r"/s+ can't be written \(File name too long\)"):
        run_sweep(configs, tmp_path / ("s" * 300))
    assert calls == []


def test_a_failed_run_is_reported_after_the_others_and_wandb_groups_them(configs, calls, tmp_path):
    first, *others = configs
    (tmp_path / first).mkdir()
    (tmp_path / first / "failed.json").write_text("{}")
    with pytest.raises(TrainingError, match=rf"{first} failed earlier .*delete"):
        run_sweep(configs, tmp_path, at_once=1, name="tiny")
    assert calls == [([name], False, "tiny") for name in others]


def test_a_run_whose_folder_was_deleted_is_trained_again_alone(configs, calls, tmp_path):
    first, *others = configs
    for name in others:
        finished(tmp_path / name, configs[name])
    assert run_sweep(configs, tmp_path, at_once=4).keys() == configs.keys()
    assert calls == [([first], False, None)]


@pytest.mark.parametrize("n", [2, 4])
def test_what_one_run_is_refused_for_does_not_stop_the_others(n, configs, calls, tmp_path):
    some = dict(list(configs.items())[:n])
    calls.raised = [TextError("the text is too short")]
    with pytest.raises(TrainingError, match=f"^{next(iter(some))}: .*short$"):
        run_sweep(some, tmp_path / "s", at_once=1)
    assert len(calls) == n


@pytest.mark.parametrize("cause", [OSError(errno.ENOSPC, "full"), BlockingIOError()])
def test_what_would_hit_every_run_stops_the_sweep(cause, configs, calls, tmp_path):
    calls.raised = [TextError("the text is too short")]
    calls.raised[0].__cause__ = cause
    with pytest.raises(TextError):
        run_sweep(configs, tmp_path / "s", at_once=1)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("available", "devices", "expected"),
    [
        (100, [], 4),
        (6, [], 3),
        (1, [], 1),
        (100, ["cpu"] * 3, 2),
        (100, ["cpu"] * 9, 1),
        (6, ["cpu", "cpu"], 1),
    ],
)
def test_as_many_are_trained_together_as_half_of_the_free_memory_holds(
    available, devices, expected, configs, calls, tmp_path, monkeypatch
):
    """At most each device's share, and devices of one machine share its memory."""
    each = 4 * 4 * 2 * 32 * 16  # weights, gradients and two averages of encoder and decoder
    memory = psutil.virtual_memory()._replace(available=available * each)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(runner, "train_on", lambda *_: [])
    found = []
    run_sweep(configs, tmp_path / "s", devices=devices, on_begin=found.append)
    assert found == [expected]


def test_runs_of_other_batches_are_not_said_to_be_trained_together(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "train_on", lambda *_: [])
    name, last = list(configs.items())[-1]
    other = configs | {name: replace(last, run=replace(last.run, data_seed=7))}
    found = []
    run_sweep(other, tmp_path / "s", devices=["cpu"], on_begin=found.append)
    assert found == [3]


@pytest.mark.skipif(t.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(configs, tmp_path):
    with pytest.raises(ConfigError, match=r"^devices='cuda:1': .*use devices='cpu'$"):
        run_sweep(configs, tmp_path / "s", devices=["cuda:1"])
    on_it = {name: replace(c, run=replace(c.run, device="cuda")) for name, c in configs.items()}
    with pytest.raises(ConfigError, match=r"^device='cuda': .*use device='cpu'$"):
        run_sweep(on_it, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# --- chunks

CONFIGS = dict.fromkeys("abcd", TrainConfig())


def started(folder, *steps):
    for step in steps:
        point = folder / "resume" / f"step_{step:08d}.pt"
        point.parent.mkdir(parents=True, exist_ok=True)
        point.touch()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").touch()


def together(folder, **options):
    return ["".join(chunk.configs) for chunk in chunks_of(CONFIGS, folder, None, 3, **options)]


def test_runs_are_divided_as_if_none_had_ended(tmp_path):
    assert together(tmp_path) == ["abc", "d"]
    assert together(tmp_path, without="b") == ["ac", "d"]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({"a": (20, 30), "c": (10, 20)}, ["ac", "b", "d"]),
        ({"a": (10,), "b": (30,), "c": ()}, ["b", "a", "c", "d"]),
    ],
)
def test_runs_without_a_common_resume_point_are_trained_apart(points, expected, tmp_path):
    for name, steps in points.items():
        started(tmp_path / name, *steps)
    assert together(tmp_path) == expected


# --- sweep.json


def finished(folder, config=CONFIGS["a"]):
    folder.mkdir(parents=True)
    content = {"trainer": {"dict_class": "X"}, "run": {"settings": config.to_dict()}}
    (folder / "config.json").write_text(json.dumps(content))
    for name in ("ae.pt", "metrics.json")[: 2 if config.run.eval_tokens else 1]:
        (folder / name).touch()


def start(folder):
    """A sweep of three runs, of which none is begun."""
    settings = {name: CONFIGS["a"].to_dict() for name in "abc"}
    advice = dict.fromkeys("abc", "run `vsae x` again")
    write_json(folder / "sweep.json", {"settings": settings, "name": "tiny", "advice": advice})


def test_more_runs_join_those_that_are_there(configs, calls, tmp_path):
    (name, config), *_ = configs.items()
    run_sweep(configs, tmp_path, command="vsae x")
    finished(tmp_path / name, config)
    more = {"x": replace(config, sae=replace(config.sae, seed=1))}
    run_sweep(more, tmp_path, command="vsae y")
    assert [saes for saes, *_ in calls] == [[*configs], ["x"]]
    both = "run `vsae x` again to continue; run `vsae y` again to continue"
    assert progress(tmp_path) == f"1 of 5 runs are finished; {both}"
    finished(tmp_path / "x", more["x"])
    assert progress(tmp_path) == "2 of 5 runs are finished; run `vsae x` again to continue"


def test_a_run_on_other_activations_of_the_same_name_is_not_taken_for_finished(calls, tmp_path):
    was, now = (
        {"a": TrainConfig(run=RunConfig(activations=f"{tmp_path}/{place}/acts"))} for place in "ab"
    )
    finished(tmp_path / "s" / "a", was["a"])
    with pytest.raises(ConfigError, match=r"a/acts'?, not .*b/acts"):
        run_sweep(now, tmp_path / "s")


def test_runs_that_are_overwritten_are_all_deleted_before_the_first_one_starts(
    configs, calls, tmp_path
):
    for name, config in configs.items():
        finished(tmp_path / name, replace(config, run=replace(config.run, batch_size=16)))
    fresh = {n: replace(c, run=replace(c.run, overwrite=True)) for n, c in configs.items()}
    calls.raised = [KeyboardInterrupt]
    with pytest.raises(Interrupted):
        run_sweep(fresh, tmp_path)
    assert not [*tmp_path.glob("*/config.json")]


def test_a_folder_holds_the_runs_of_one_setting(sweep_file, calls, tmp_path, capsys):
    """The names of the runs don't say what is the same in all of them."""
    command = ["sweep", str(sweep_file()), f"--save-dir={tmp_path / 's'}"]
    for name, config in configurations(read_sweep(sweep_file()), train_config).items():
        finished(tmp_path / "s" / name, config)
    for flag, change in (("steps", "24, not 12"), ("batch-size", "32, not 12")):
        line = refused([*command, f"--{flag}=12"], capsys)
        assert f"the run has {flag.replace('-', '_')}={change};" in line
        assert "save_dir" in line
    assert calls == []


def test_progress_counts_what_is_missing_and_what_failed(tmp_path):
    assert progress(tmp_path) is None, "no sweep"
    start(tmp_path)
    assert progress(tmp_path) == "0 of 3 runs are finished; run `vsae x` again"
    finished(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "failed.json").touch()
    assert progress(tmp_path) == (
        "1 of 3 runs are finished; 1 failed, see failed.json in b; run `vsae x` again"
    )
    finished(tmp_path / "c", TrainConfig(run=RunConfig(eval_tokens=0)))
    assert progress(tmp_path) == "2 of 3 runs are finished; 1 failed, see failed.json in b"
    (tmp_path / "b" / "failed.json").unlink()
    (tmp_path / "b").rmdir()
    finished(tmp_path / "b")
    assert progress(tmp_path) is None
    (tmp_path / "b" / "config.json").write_text("{")
    assert progress(tmp_path).startswith("2 of 3 runs are finished"), "damaged"
    with pytest.raises(ConfigError, match=r"b.config\.json: "):
        run_sweep(dict.fromkeys("abc", CONFIGS["a"]), tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    start(tmp_path)
    whole = json.loads((tmp_path / "sweep.json").read_text())
    outside = json.dumps(whole | {"settings": {"../a": {}}})
    parts = [{"settings": []}, {"settings": {"a": None}}, {"advice": None}]
    for content in ("{", "[]", outside, *(json.dumps(whole | part) for part in parts)):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(ConfigError, match=r"sweep\.json"):
            progress(tmp_path)


# --- caches and several hook points


@pytest.mark.slow
def test_runs_of_two_hook_points_read_one_cache_and_need_no_language_model(
    sweep_file, small_cache, tmp_path, monkeypatch
):
    path = sweep_file(parameters={"hook": {"values": [HOOK, OTHER]}, "k": {"values": [2, 4]}})
    monkeypatch.setattr(
        language_models.Pretrained, "load", lambda *_, **__: pytest.fail("a model is loaded")
    )
    flags = [f"--activations={small_cache}", "--eval-tokens=0"]
    assert main(["sweep", str(path), *flags, f"--save-dir={tmp_path / 's'}"]) == 0
    folders = sorted(path.parent for path in (tmp_path / "s").glob("*/ae.pt"))
    assert len(folders) == 4
    one = folders[0]
    again = ["train", f"--config={one}", f"--save-dir={tmp_path / 'alone'}"]
    assert main(again) == 0
    ours, single = (t.load(folder / "ae.pt") for folder in (one, tmp_path / "alone"))
    assert_equal(ours, single)


def test_a_hook_point_that_the_cache_lacks_is_refused_before_anything_is_written(
    sweep_file, small_cache, tmp_path, capsys
):
    flags = [f"--activations={small_cache}", "--hook=blocks.9.hook_mlp_out"]
    line = refused(["sweep", sweep_file(), *flags, f"--save-dir={tmp_path / 's'}"], capsys)
    assert f"hook='blocks.9.hook_mlp_out': the cache {small_cache} has {HOOK}, {OTHER};" in line
    assert not (tmp_path / "s").exists()


def test_a_sweep_whose_language_model_lacks_the_hook_point_leaves_no_folder(
    sweep_file, tmp_path, capsys
):
    folder = tmp_path / "s"
    command = ["sweep", sweep_file(), "--hook=blocks.9.hook_mlp_out", f"--save-dir={folder}"]
    assert "blocks.9.hook_mlp_out" in refused(command, capsys)
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()
    refused(command, capsys)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_the_hook_points_share_the_passes_of_the_language_model(sweep_file, tmp_path, monkeypatch):
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]
    path = sweep_file(parameters={"hook": {"values": hooks}, "k": {"values": [2, 4]}})
    configs = configurations(read_sweep(path), train_config)
    assert len(configs) == 4
    for further_passes in ("Run._evaluate", "warn_of_sinks"):
        monkeypatch.setattr(
            f"dictionary_learning_ext.training.loop.{further_passes}", lambda *_: None
        )
    with counted_passes() as together:
        run_sweep(configs, tmp_path / "s", at_once=4)
    with counted_passes() as alone:
        for name, config in configs.items():
            run = train_config([*read_sweep(path).flags, f"--hook={config.run.hook}"]).run
            values = vars(run) | {"save_dir": str(tmp_path / "alone" / name)}
            (folder,) = train(type(run)(**values), {"x": config.sae}).values()
            weights = [t.load(f / "ae.pt") for f in (folder, tmp_path / "s" / name)]
            assert_equal(*weights)
    checks = 1  # that an MLP's output is what its block adds: one context, once a run
    assert alone.count(1) == 2 * checks
    assert together.count(1) == checks
    assert len(together) - checks == (len(alone) - 2 * checks) / len(configs)


def test_an_overwrite_that_is_stopped_can_be_repeated(tmp_path, monkeypatch):
    write_json(tmp_path / CONFIG, {"trainer": {"dict_class": "AutoEncoderTopK"}})
    (tmp_path / CHECKPOINTS).mkdir()
    original = runner.remove

    def stopping(path):
        if path.name == CHECKPOINTS:
            raise Killed
        original(path)

    monkeypatch.setattr(runner, "remove", stopping)
    with pytest.raises(Killed):
        runner._clear([tmp_path])
    require_free(tmp_path, overwrite=True)


@pytest.mark.parametrize("measured", [0, 10 * RunConfig.eval_tokens])
def test_a_cache_holds_enough_held_out_tokens_for_reports_and_for_the_runs(
    measured, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "dictionary_learning_ext.activations.cache_writer.write_cache",
        lambda folder, settings, *_, **__: asked.append(settings.eval_tokens),
    )
    run = TrainConfig(run=RunConfig(eval_tokens=measured))
    SweepCache(tmp_path, 100).write({"x": run}, is_read=False)
    assert asked == [max(measured, RunConfig.eval_tokens)]


def test_an_overwriting_sweep_leaves_folders_that_hold_something_else(configs, tmp_path):
    name, config = next(iter(configs.items()))
    other = tmp_path / "s" / name / "config.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"model_type": "gpt2"}')
    overwriting = {name: replace(config, run=replace(config.run, overwrite=True))}
    with pytest.raises(ConfigError, match=name):
        run_sweep(overwriting, tmp_path / "s")
    assert other.is_file()
