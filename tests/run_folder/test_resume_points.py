"""Resume points on the disk: whole or none, the last two kept, the newest that all folders have."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch as t
from interrupted_runs import (
    STEPS,
    Killed,
    a_point,
    assert_equal,
    results,
    resumed,
    sae_of,
    stopped_at,
)

from dictionary_learning_ext import train
from dictionary_learning_ext.errors import CheckpointError, Interrupted
from dictionary_learning_ext.run_folder.resume_points import (
    forget_after,
    load_point,
    newest_points,
    save_point,
    steps_of,
)


@pytest.mark.slow
def test_where_a_run_ended_between_two_folders_the_last_common_point_counts(
    run, tmp_path, monkeypatch
):
    saes = {"a": sae_of(), "b": sae_of("top_k")}
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), saes)
    original, calls = save_point, []

    def dies(folder, point):
        calls.append(point.step)
        if len(calls) == 6:  # b's at step 30
            raise Killed
        original(folder, point)

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
    caplog.set_level("INFO", "dictionary_learning_ext")
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    stopped_at(33, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    folder = Path(run.save_dir)
    flip_a_bit(folder / "resume" / "step_00000033.pt")
    resumed(folder)
    assert "step_00000033.pt: missing or damaged" in caplog.text
    assert "step 30" in caplog.text
    assert_equal(results(whole), results(folder))
    for point in folder.glob("resume/step_*"):
        point.write_bytes(point.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=f"step_{STEPS:08d}"):
        load_point(folder, STEPS)
    (folder / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match="step_0"):
        resumed(folder)


def test_a_damaged_point_is_no_reason_to_start_from_scratch(tmp_path):
    """Even where nothing else was written: what is left of it is the user's to look at."""
    assert newest_points([tmp_path]).step is None
    save_point(tmp_path, a_point(1, trainer={"x": t.ones(4096)}))
    flip_a_bit(tmp_path / "resume" / "step_00000001.pt")
    with pytest.raises(CheckpointError, match="step_00000001"):
        newest_points([tmp_path])


@pytest.mark.parametrize("content", [b"", b"x" * 100, pickle.dumps(print)])
def test_bytes_of_any_content_are_a_damaged_point_and_none_is_executed(content, tmp_path):
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "step_00000001.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="step_00000001"):
        load_point(tmp_path, 1)


def test_checkpoints_without_a_resume_point_do_not_keep_a_run_from_starting_over(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert newest_points([tmp_path]).step is None
    (tmp_path / "ae.pt").touch()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        newest_points([tmp_path])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_that_resumes_keeps_the_point_it_resumes_from(tmp_path):
    for step in (9, 10):
        save_point(tmp_path, a_point(step, trainer={"x": t.full((2,), step)}))
    forget_after(tmp_path, 10)
    assert steps_of(tmp_path) == [9, 10]
    forget_after(tmp_path, 9)
    assert steps_of(tmp_path) == [9]
    assert not (tmp_path / "resume" / "step_00000010.pt").exists()
    assert load_point(tmp_path, 9).trainer["x"].tolist() == [9, 9]


def test_two_points_are_kept_and_half_written_ones_are_none(tmp_path):
    for step in (1, 2, 3):
        save_point(tmp_path, a_point(step, trainer={"x": t.ones(2)}))
    assert steps_of(tmp_path) == [2, 3]
    (tmp_path / "resume" / ".step_00000009.pt.0123abcd").mkdir()
    assert steps_of(tmp_path) == [2, 3]
    save_point(tmp_path, a_point(3, trainer={"x": t.zeros(2)}))
    assert t.equal(load_point(tmp_path, 3).trainer["x"], t.zeros(2))


def test_a_full_disk_while_a_point_is_written_leaves_the_former(tmp_path, monkeypatch):
    save_point(tmp_path, a_point(1, trainer={"x": t.ones(2)}))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dictionary_learning_ext.run_folder.files.sync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_point(tmp_path, a_point(2, trainer={"x": t.ones(2)}))
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step_00000001.pt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_files_have_the_mode_that_the_umask_says(umask, run, tmp_path):
    """So that a colleague on a shared disk can read them, or nobody can."""
    before = os.umask(umask)
    try:
        train(replace(run, steps=2, eval_tokens=200), {"x": sae_of()})
    finally:
        os.umask(before)
    files = [path for path in Path(run.save_dir).rglob("*") if path.is_file()]
    assert {"ae.pt", "config.json", "metrics.jsonl", "step_00000002.pt"} <= {
        path.name for path in files
    }
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
