"""Runs that are stopped, killed, locked, changed and resumed; resume points on the disk."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch as t

from dictionary_learning_ext import train
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.config.run_config import RunConfig
from dictionary_learning_ext.config.sae_config import USES, SAEConfig
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LanguageModelError,
    TextError,
    TrainingError,
)
from dictionary_learning_ext.run_folder.reading import read_run
from dictionary_learning_ext.run_folder.resume_points import (
    load_point,
    note_logged,
    save_point,
    steps_of,
)
from dictionary_learning_ext.run_folder.writing import locked
from dictionary_learning_ext.trainers.state import load_trainer_state, trainer_state
from dictionary_learning_ext.training.sae_run import SAERun
from experiments.robustness.wandb_files import history

STEPS = 60


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def run(tiny_lm_dir, text, tmp_path):
    return RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        steps=STEPS,
        batch_size=64,
        n_ctxs=16,
        ctx_len=32,
        eval_tokens=200,
        eval_documents=4,
        log_steps=7,
        save_every="10",
        save_dir=str(tmp_path / "run"),
    )


def sae_of(architecture="vsae_top_k", **changes):
    k = {"k": 4} if "k" in USES[architecture] else {}
    return SAEConfig(**{"architecture": architecture, "dict_size": 32, "lr": 1e-3} | k | changes)


def stopped_at(step, monkeypatch):
    """As Ctrl-C in the middle of an update: the signal is real, and noticed after the step."""
    original = SAERun.update

    def update(self, now, x_BD):
        original(self, now, x_BD)
        if now == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(SAERun, "update", original)

    monkeypatch.setattr(SAERun, "update", update)


def results(folder):
    """All that a run leaves, but for the dates."""
    point = load_point(folder, STEPS)
    return {
        "weights": t.load(folder / "ae.pt", weights_only=True),
        "trainer": point.trainer,
        "buffer": point.run["buffer"],
        "log": (folder / "metrics.jsonl").read_text(),
        "figures": json.loads((folder / "metrics.json").read_text()),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoints/*")),
    }


def assert_equal(one, other, name=""):
    """To the bit."""
    if isinstance(one, t.Tensor):
        assert t.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f"{name}.{key}")
    else:
        assert one == other, name


def resumed(folder):
    return train(*read_run(Path(folder)), resume=True)


@pytest.mark.parametrize("architecture", USES)
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(architecture, run, tmp_path, monkeypatch):
    options = {"noise_anneal_steps": 40} if architecture == "vsae_top_k" else {}
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


@pytest.mark.parametrize("posterior", ["learned", "point"])
def test_every_posterior_resumes(posterior, run, tmp_path, monkeypatch):
    saes = {"one": sae_of(posterior=posterior)}
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), saes).values()
    stopped_at(30, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, saes)
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


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


def test_where_a_run_ended_between_two_folders_the_last_common_point_counts(
    run, tmp_path, monkeypatch
):
    saes = {"a": sae_of(), "b": sae_of("top_k")}
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), saes)
    original, calls = save_point, []

    def dies(folder, step, *rest):
        calls.append(step)
        if len(calls) == 6:  # b's at step 30
            raise Killed
        original(folder, step, *rest)

    monkeypatch.setattr("dictionary_learning_ext.run_folder.resume_points.save_point", dies)
    with pytest.raises(Killed):
        train(run, saes)
    monkeypatch.undo()
    base = Path(run.save_dir)
    assert (steps_of(base / "a"), steps_of(base / "b")) == ([20, 30], [10, 20])
    resumed(base)
    for name in saes:
        assert_equal(results(whole[name]), results(base / name))


def test_a_damaged_point_is_left_for_the_one_before(run, tmp_path, monkeypatch, caplog):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    stopped_at(33, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    folder = Path(run.save_dir)
    flip_a_bit(folder / "resume" / "step_00000033" / "tensors.safetensors")
    resumed(folder)
    assert "tensors.safetensors: changed since it was written" in caplog.text
    assert "resuming from step 30" in caplog.text
    assert_equal(results(whole), results(folder))
    for point in folder.glob("resume/step_*"):
        (point / "state.json").unlink()
    with pytest.raises(CheckpointError, match="incomplete resume point"):
        load_point(folder, STEPS)
    (folder / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match="no step to resume from"):
        resumed(folder)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_run_is_left_alone(run, caplog):
    (folder,) = train(run, {"x": sae_of()}).values()
    before = (folder / "ae.pt").stat().st_mtime_ns
    assert resumed(folder) == {"run": folder}
    assert "already finished" in caplog.text
    assert (folder / "ae.pt").stat().st_mtime_ns == before


def test_a_run_that_ended_in_its_evaluation_is_evaluated(run, tmp_path, monkeypatch):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.evaluate", stop)
    with pytest.raises(Interrupted, match=r"SIGTERM in the evaluation.*vsae eval"):
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_a_signal_in_the_middle_of_a_fill_is_answered_before_the_fill_ends(
    run, tmp_path, monkeypatch
):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    original = ResidualBuffer.refresh

    def refresh(self):
        if self.fills == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(ResidualBuffer, "refresh", refresh)
    with pytest.raises(Interrupted) as stop:
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    assert stop.value.exit_code == 143
    (step,) = steps_of(Path(run.save_dir))[-1:]
    assert load_point(Path(run.save_dir), step).run["buffer"]["batches"] == 0
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_by_time_too_and_the_signal_handlers_are_given_back(run, monkeypatch):
    former = signal.getsignal(signal.SIGTERM)
    clock = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * 3.0)
    seen = []
    original = SAERun.save_point
    monkeypatch.setattr(
        SAERun,
        "save_point",
        lambda self, step, shared: seen.append(step) or original(self, step, shared),
    )
    train(replace(run, save_every="1m", eval_tokens=0), {"x": sae_of()})
    assert seen[-1] == STEPS
    assert len(seen) > 2
    assert signal.getsignal(signal.SIGTERM) is former


def test_none_writes_no_points_but_a_signal_does(run, monkeypatch):
    quiet = replace(run, save_every="none")
    (folder,) = train(quiet, {"x": sae_of()}).values()
    assert steps_of(folder) == []
    stopped_at(12, monkeypatch)
    with pytest.raises(Interrupted):
        train(replace(quiet, overwrite=True), {"x": sae_of()})
    assert steps_of(folder) == [12]


# --- what must be the same


@pytest.fixture
def stopped(run, monkeypatch):
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    return Path(run.save_dir)


def test_other_settings_are_named(stopped):
    config = json.loads((stopped / "config.json").read_text())
    config["run"]["settings"] |= {"beta": 0.5, "log_steps": 3}
    (stopped / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"beta=1\.0, not 0\.5; leave out --beta"):
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
        with pytest.raises(LanguageModelError, match="has changed since the run was stopped"):
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
        with pytest.raises(TextError, match="has changed since the run was stopped"):
            resumed(stopped)
    finally:
        path.write_bytes(before)


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


def test_a_text_that_ended_goes_on_with_another_pass(run, tmp_path, text):
    short = tmp_path / "short.txt"
    short.write_text(Path(text).read_text()[:6_000])
    one = replace(run, data=str(short), save_every="none", eval_tokens=0)
    with pytest.raises(TextError, match="--text-passes 2"):
        train(one, {"x": sae_of()})
    (step,) = steps_of(Path(run.save_dir))
    former, saes = read_run(Path(run.save_dir))
    train(replace(former, text_passes=9), saes, resume=True)
    rows = [
        json.loads(line) for line in (Path(run.save_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    assert 0 < step < STEPS
    assert [row["step"] for row in rows] == [*range(0, STEPS, 7), STEPS]


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


def test_the_last_step_that_any_process_logged_is_remembered(tmp_path):
    assert [note_logged(tmp_path, step) for step in (7, 5, 6, 9)] == [7, 7, 7, 9]


def test_what_is_trained_is_not_thrown_away_for_want_of_a_point(run, monkeypatch):
    quiet = replace(run, save_every="none", save_steps="20")

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.evaluate", stop)
    with pytest.raises(Interrupted):
        train(quiet, {"x": sae_of()})
    monkeypatch.undo()
    before = (Path(run.save_dir) / "ae.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"is kept.*vsae eval"):
        resumed(run.save_dir)
    assert (Path(run.save_dir) / "ae.pt").read_bytes() == before


def test_a_signal_in_the_last_step_is_not_forgotten(run, monkeypatch):
    stopped_at(STEPS, monkeypatch)
    with pytest.raises(Interrupted, match="in the evaluation"):
        train(run, {"x": sae_of()})


def test_overwriting_destroys_nothing_when_wandb_cannot_begin(run, tmp_path, monkeypatch):
    (folder,) = train(run, {"x": sae_of()}).values()
    before = (folder / "ae.pt").read_bytes()
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    with pytest.raises(ConfigError, match="wandb can't start"):
        train(replace(run, overwrite=True, wandb="online"), {"x": sae_of()})
    assert (folder / "ae.pt").read_bytes() == before


@pytest.mark.parametrize("method", ["metrics", "_update"])
def test_what_one_trainer_raises_does_not_end_the_others(method, run, monkeypatch):
    original = getattr(SAERun, method)

    def raises(self, step, x_BD):
        if self.name == "bad" and step == 14:
            raise RuntimeError("out of memory")
        return original(self, step, x_BD)

    monkeypatch.setattr(SAERun, method, raises)
    with pytest.raises(TrainingError, match=r"bad: failed by step 14: RuntimeError: out of memory"):
        train(run, {"bad": sae_of(), "good": sae_of("top_k")})
    base = Path(run.save_dir)
    assert (base / "good" / "metrics.json").exists()
    found = json.loads((base / "bad" / "failed.json").read_text())
    assert (found["step"], found["weights"]) == (14, "checkpoints/ae_14.pt")
    assert (base / "bad" / found["weights"]).exists()
    read, saes = read_run(base)
    assert list(saes) == ["good"]
    assert read.save_dir == str(base / "good")


def test_a_second_writer_is_refused(stopped):
    with locked([stopped]), pytest.raises(ConfigError, match=r"process \d+ on .* is writing there"):
        resumed(stopped)
    with locked([stopped]), pytest.raises(ConfigError, match="is writing there"):
        train(replace(*read_run(stopped)[:1], overwrite=True), {"x": sae_of()})
    resumed(stopped)


# --- points on the disk


def test_a_trainers_state_survives_the_disk_and_one_of_another_trainer_is_refused(tmp_path):
    from dictionary_learning_ext.trainers.build import build_trainer

    def built(architecture, seed):
        sae = sae_of(architecture, seed=seed).resolve(100, 8)
        return build_trainer(
            sae,
            steps=100,
            activation_dim=16,
            layer=0,
            lm_name="tiny",
            hook="h",
            device="cpu",
            dtype="float32",
            name="x",
        )

    one, other = built("vsae_top_k", 0), built("vsae_top_k", 1)
    batches = t.randn(8, 8, 16, generator=t.Generator().manual_seed(0))
    for step, x_BD in enumerate(batches[:5]):
        one.update(step, x_BD)
    save_point(tmp_path, 5, trainer_state(one), {"anything": [1, None, "x"]})
    point = load_point(tmp_path, 5)
    assert point.run == {"anything": [1, None, "x"]}
    load_trainer_state(other, point.trainer)
    for step, x_BD in enumerate(batches[5:], start=5):
        one.update(step, x_BD)
        other.update(step, x_BD)
    assert_equal(trainer_state(one), trainer_state(other))
    with pytest.raises(CheckpointError, match="to another trainer than TopKTrainer"):
        load_trainer_state(built("top_k", 0), point.trainer)


def test_a_run_that_ended_before_its_first_point_begins_anew(run, tmp_path, monkeypatch, caplog):
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


def test_two_points_are_kept_and_half_written_ones_are_none(tmp_path):
    for step in (1, 2, 3):
        save_point(tmp_path, step, {"x": t.ones(2)}, {})
    assert steps_of(tmp_path) == [2, 3]
    (tmp_path / "resume" / "step_00000003" / "complete.json").unlink()
    (tmp_path / "resume" / ".step_00000009").mkdir()
    assert steps_of(tmp_path) == [2]
    save_point(tmp_path, 3, {"x": t.zeros(2)}, {})
    assert steps_of(tmp_path) == [2, 3]
    assert t.equal(load_point(tmp_path, 3).trainer["x"], t.zeros(2))
    assert not (tmp_path / "resume" / ".step_00000009").exists()


def test_a_full_disk_while_a_point_is_written_leaves_the_former(tmp_path, monkeypatch):
    save_point(tmp_path, 1, {"x": t.ones(2)}, {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dictionary_learning_ext.run_folder.resume_points.sync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*still there"):
        save_point(tmp_path, 2, {"x": t.ones(2)}, {})
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step_00000001"]


# --- real processes


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


def written(folder):
    log = folder / "metrics.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def test_sigterm_ends_the_command_with_143_and_resume_goes_on(run, tmp_path, own_wandb):
    """As SLURM does it, with wandb offline: one run id, no step twice."""
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(replace(run, wandb="offline", steps=500)).items()
        if value is not None
    ]
    flags += ["--dict-size=32", "--k=4", "--save-every=none", "--eval-tokens=0", "--text-passes=99"]
    command = [sys.executable, "-m", "dictionary_learning_ext.cli", "train"]
    process = subprocess.Popen([*command, *flags], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    folder = Path(run.save_dir)
    while process.poll() is None and written(folder) < 3:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 143, error
    assert f"continue with `vsae train --resume {folder}`" in error.splitlines()[-1]
    (step,) = steps_of(folder)
    refused = subprocess.run(
        [*command, "--resume", str(folder), "--beta", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "beta=1.0, not 3.0; leave out --beta" in refused.stderr.splitlines()[-1]
    done = subprocess.run(
        [*command, "--resume", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step}" in done.stderr
    logs = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    assert len({log.name for log in logs}) == 1, "one run id"
    logged = sorted(int(row["step"]) for log in logs for row in history(log))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == [line["step"] for line in lines]
