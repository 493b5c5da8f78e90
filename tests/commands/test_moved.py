"""Run folders that were copied with what they name by relative paths, and are used from another working directory."""

import json
import shutil
from pathlib import Path

import pytest
import torch as t
from small_commands import refused

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.run_folder.files import CODES, RANDOM_TOKENS

STEPS = "--steps=12 --batch-size=32 --n-ctxs=8 --ctx-len=32 --dict-size=32 --k=4 --save-every=5"
NAMED = "--model=lm --data=text --eval-tokens=200 --eval-documents=4"


@pytest.fixture(scope="module")
def project(tiny_lm_dir, text, tmp_path_factory):
    """A folder with a language model, a text, two seeds that read a cache, and a run that reads none."""
    here = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_lm_dir, here / "lm")
    shutil.copytree(text, here / "text") if Path(text).is_dir() else shutil.copy(text, here)
    flags = [*STEPS.split(), *NAMED.replace("=text ", f"={Path(text).name} ").split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main(["train", *flags, "--seeds", "2", "--save-dir", "runs/two"]) == 0
        assert main(["train", *flags, "--save-dir", "runs/one"]) == 0
        assert main(["eval", "runs/two/seed0", "runs/two/seed1"]) == 0
        assert main(["reproduce", "runs/two"]) == 0
    return here


@pytest.fixture
def moved(project, tmp_path, monkeypatch):
    """A copy of its runs' folder, used from another folder, while the original isn't there."""
    there = shutil.copytree(project, tmp_path / "there")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return there / "runs"


def of_random_tokens(runs):
    return json.loads((runs / "two" / "seed0" / RANDOM_TOKENS).read_text())


def test_what_moved_along_with_a_run_is_found(project, moved):
    kept = (moved / "two" / "seed1" / CODES).stat().st_mtime_ns
    assert main(["reproduce", str(moved / "two")]) == 0
    assert (moved / "two" / "seed1" / CODES).stat().st_mtime_ns == kept
    assert of_random_tokens(moved) == of_random_tokens(project / "runs")
    before = (moved / "one" / "metrics.json").read_bytes()
    for folder in ("one", "two/seed0"):
        assert main(["eval", str(moved / folder)]) == 0
        assert not (moved / folder / "evaluations").exists()
    now = json.loads((moved / "one" / "metrics.json").read_text())
    assert now["fve"] == json.loads(before)["fve"]


def test_without_its_cache_the_language_model_runs(moved, caplog):
    was = json.loads((moved / "two" / "seed0" / "metrics.json").read_text())
    shutil.rmtree(moved / "two" / "cache")
    kept = (moved / "two" / "seed0" / CODES).stat().st_mtime_ns
    random_tokens = of_random_tokens(moved)
    assert main(["reproduce", str(moved / "two")]) == 0
    assert main(["eval", str(moved / "two" / "seed0")]) == 0
    assert "cache: no such folder; running the language model" in caplog.text
    assert main(["train", "--resume", str(moved / "two" / "seed0")]) == 0
    assert "already finished" in caplog.text
    assert (moved / "two" / "seed0" / CODES).stat().st_mtime_ns == kept
    assert of_random_tokens(moved) == random_tokens
    shutil.rmtree(moved / "two" / "seed0" / "codes")
    assert main(["eval", str(moved / "two" / "seed0")]) == 0
    now = json.loads((moved / "two" / "seed0" / "metrics.json").read_text())
    for name in ("fve", "loss_reconstructed"):
        assert now[name] == pytest.approx(was[name], rel=1e-4)


def test_a_moved_run_resumes(moved):
    for folder in (moved / "one", moved / "two" / "seed1"):
        weights = t.load(folder / "ae.pt", weights_only=True)
        (folder / "ae.pt").unlink()
        assert main(["train", "--resume", str(folder)]) == 0
        for name, value in t.load(folder / "ae.pt", weights_only=True).items():
            assert t.equal(value, weights[name])


def test_what_did_not_move_along_is_named_with_the_flag_that_replaces_it(moved, capsys):
    shutil.rmtree(moved.parent / "lm")
    line = refused(["eval", str(moved / "one")], capsys)
    assert "'lm'" in line
    assert "model=PATH" in line
