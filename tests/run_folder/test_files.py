"""The files of a run folder: their names, whole files or none, and one writer per folder."""

import csv
import errno
import io
import multiprocessing
import os
import re
import resource
import signal
from dataclasses import replace

import pytest
import torch as t
from interrupted_runs import resumed, sae_of
from small_commands import content, refused

from dictionary_learning_ext import train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.run_folder import files
from dictionary_learning_ext.run_folder.files import (
    locked,
    replacing,
    require_free,
    write_json,
    write_rows,
)
from dictionary_learning_ext.run_folder.reading import read_run
from dictionary_learning_ext.run_folder.weights import load_dictionary, save_weights

# --- names


def test_a_folder_is_free_until_it_holds_one_of_a_runs_files(tmp_path):
    for other in ("notes.txt", files.LOCK):
        (tmp_path / other).touch()
    require_free(tmp_path / "missing", overwrite=False)
    for name in files.RUN_FILES:
        require_free(tmp_path, overwrite=False)
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match=re.escape(name)):
            require_free(tmp_path, overwrite=False)
        (tmp_path / name).rmdir()


def test_a_run_may_be_overwritten_and_folders_of_the_same_names_that_are_not_a_runs_may_not(
    tmp_path,
):
    (tmp_path / files.CHECKPOINTS).mkdir()
    with pytest.raises(ConfigError, match=files.CONFIG):
        require_free(tmp_path, overwrite=True)
    (tmp_path / files.CONFIG).touch()
    require_free(tmp_path, overwrite=True)


def test_an_unfinished_run_is_told_how_to_continue(tmp_path):
    (tmp_path / files.CONFIG).touch()
    for is_finished in (False, True):
        with pytest.raises(ConfigError) as raised:
            require_free(tmp_path, overwrite=False)
        assert (f"--resume {tmp_path}" in raised.value.instead) != is_finished
        (tmp_path / files.WEIGHTS).touch()


def test_an_evaluation_at_other_settings_has_a_name_made_of_them(tmp_path):
    assert files.evaluation(tmp_path, {}) == tmp_path / "metrics.json"
    beside = tmp_path / "evaluations"
    assert files.evaluation(tmp_path, {"step": 7, "tokens": 9}) == beside / "step_7_tokens_9.json"
    texts = ["a/text.txt", "b/text.txt", "../..", "x" * 500, "a b"]
    paths = [files.evaluation(tmp_path, {"data": text}) for text in texts]
    assert len(set(paths)) == len(texts), "of one last name too"
    for path in paths:
        assert path.parent == beside
        assert re.fullmatch(r"data_[\w.-]{1,80}\.json", path.name)


# --- writing


@pytest.fixture
def file_size_limit():
    """Sets how large a file may become; gives the former limit back."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_limit_hit_in_the_middle_of_a_resume_point(flags, folder, capsys, file_size_limit):
    """All files of the first run stay; none of the second counts, which may not write so much."""
    other = folder.parent / "other"
    before = content(folder)
    capsys.readouterr()
    file_size_limit(8000)
    assert main(["train", *flags, f"--save-dir={other}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    file_size_limit(resource.RLIM_INFINITY)
    assert re.search(r"\(.*\); choose another save_dir", error), error
    assert content(folder) == before
    assert not (other / "ae.pt").exists()
    assert not list(other.glob("resume/step_*"))
    assert not list(other.glob("**/.[!l]*")), "no half-written file stays"


def test_a_limit_hit_while_ae_pt_is_replaced(folder, file_size_limit):
    dictionary, _ = load_dictionary(folder)
    before = content(folder)
    file_size_limit(3000)
    with pytest.raises(CheckpointError, match=r"ae\.pt "):
        save_weights(folder / "ae.pt", dictionary)
    file_size_limit(resource.RLIM_INFINITY)
    assert content(folder) == before


@pytest.mark.parametrize("where", ["/proc/vsae", "FILE", "FILE/vsae"])
def test_a_folder_where_nothing_can_be_written(where, flags, tmp_path, capsys):
    (tmp_path / "file").touch()
    where = where.replace("FILE", str(tmp_path / "file"))
    line = refused(["train", *flags, f"--save-dir={where}"], capsys)
    assert re.search(rf"{where} .*\(.*\); choose another save_dir$", line), line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(flags, folder, capsys):
    folder.chmod(0o500)
    before = content(folder)
    line = refused(["train", *flags, f"--save-dir={folder}", "--overwrite"], capsys)
    folder.chmod(0o700)
    assert f"{folder}" in line
    assert "--save-dir" in line
    assert content(folder) == before


@pytest.mark.parametrize("writer", ["text", "tensors"])
def test_what_a_kill_in_the_middle_of_a_file_leaves_goes_with_the_next_write(writer, tmp_path):
    """In a process that ends without a word while it writes. What a living one is writing stays."""
    path, beside = tmp_path / "x.json", tmp_path / ".x.json.mine"
    beside.mkdir()
    write_json(path, "former")

    def write_and_die():
        with replacing(path) as temporary:
            if writer == "text":
                temporary.write_text("half")
            else:
                t.save({"w": t.ones(9)}, temporary)
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=write_and_die)
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 3, "it was killed in the middle"
    with replacing(path) as living:
        living.write_text("living")
        write_json(path, "next")
        assert living.read_text() == "living"
    assert path.read_text() == "living"
    assert {each.name for each in tmp_path.iterdir()} == {path.name, beside.name}


def test_a_kill_right_after_a_file_was_replaced_leaves_nothing_else(tmp_path, monkeypatch):
    """As the file is there, the next command doesn't write it again, and would remove nothing."""
    replace_file = os.replace

    def replace_and_die(*names):
        replace_file(*names)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "replace", replace_and_die)
    write = multiprocessing.get_context("fork").Process(
        target=write_json, args=(tmp_path / "x.json", "content")
    )
    write.start()
    write.join()
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


# --- locks


def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with locked(tmp_path / "run"):
        write_json(tmp_path / "run" / "x.json", 1)
    assert (tmp_path / "run" / "x.json").read_text()
    assert "(No locks available)" in caplog.text


def test_a_second_writer_is_refused(stopped):
    with locked(stopped), pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        resumed(stopped)
    with locked(stopped), pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        train(replace(*read_run(stopped)[:1], overwrite=True), {"x": sae_of()})
    resumed(stopped)


def test_text_that_a_spreadsheet_would_run_is_text_in_a_csv_file():
    run = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]
    kept = ["1 = 1", "", "-0.25", "+3", "-inf", "a-b"]
    file = io.StringIO()
    write_rows(file, [run, kept, [-0.25, None, 3]])
    first, second, third = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert first == [f"'{text}" for text in run]
    assert second == kept
    assert third == ["-0.25", "", "3"]
