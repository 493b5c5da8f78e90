"""`vsae train --hook A,B`: a run folder for each hook point, and the commands that take them."""

import json
import re

import pytest
import torch as t
from command_runs import settings_of
from small_commands import content, refused

from dictionary_learning_ext.cli import main

HOOKS = ["blocks.0.hook_attn_out", "blocks.2.hook_resid_post"]
BOTH = ["--hook", ", ".join(HOOKS)]


@pytest.fixture(scope="session")
def trained_at_both(flags, tmp_path_factory):
    """The folder of a run of two hook points."""
    base = tmp_path_factory.mktemp("hooks") / "both"
    measured = [*flags, "--eval-tokens=64", "--eval-documents=2"]
    assert main(["train", *measured, *BOTH, f"--save-dir={base}"]) == 0
    return base


def test_each_hook_point_gets_the_run_folder_of_its_own_run(trained_at_both, flags, tmp_path):
    assert sorted(path.name for path in trained_at_both.iterdir()) == HOOKS
    for hook in HOOKS:
        alone = tmp_path / hook
        assert main(["train", *flags, "--hook", hook, f"--save-dir={alone}"]) == 0
        one, other = (
            t.load(folder / hook / "ae.pt", weights_only=True)
            for folder in (trained_at_both, tmp_path)
        )
        assert all(t.equal(one[name], other[name]) for name in one)
        log = (alone / "metrics.jsonl").read_text()
        assert (trained_at_both / hook / "metrics.jsonl").read_text() == log
        assert settings_of(trained_at_both / hook)["hook"] == hook
        trainer = json.loads((trained_at_both / hook / "config.json").read_text())["trainer"]
        assert (trainer["submodule_name"], trainer["layer"]) == (hook, int(hook.split(".")[1]))


def test_other_commands_take_the_folders(trained_at_both, tmp_path, capsys):
    folders = [str(trained_at_both / hook) for hook in HOOKS]
    before = content(trained_at_both)
    assert main(["eval", *folders]) == 0
    assert content(trained_at_both) == before, "the same numbers"
    capsys.readouterr()
    assert main(["compare", *folders]) == 0
    shown = capsys.readouterr().out
    assert "* Not a matched comparison: measured differently from the first row." in shown
    assert re.search(r"hook +tokens|hook\n", shown)
    page = tmp_path / "index.html"
    assert main(["report", str(trained_at_both), "--out", str(page)]) == 0
    assert all(hook in page.read_text() for hook in HOOKS)
    line = refused(["report", folders[0], "--against", folders[1]], capsys)
    assert f"its run has --hook {HOOKS[1]}, but {folders[0]} has '{HOOKS[0]}'" in line


def test_the_same_command_continues_with_resume_auto(flags, tmp_path, capsys):
    base = tmp_path / "run"
    command = ["train", *flags, *BOTH, "--resume=auto", f"--save-dir={base}"]
    assert main(command) == 0
    before = content(base)
    assert main(command) == 0
    assert main(["train", "--resume", str(base)]) == 0
    assert content(base) == before
    line = refused([*command, "--seed=3"], capsys)
    assert f"--resume auto: {base / HOOKS[0]}: the run has --seed 0, not 3" in line


def test_a_folder_is_needed_and_none_is_written_over(trained_at_both, flags, capsys):
    line = refused(["train", *flags, *BOTH], capsys)
    assert line == (
        f"vsae: --hook '{', '.join(HOOKS)}': several hook points need a folder for their run folders;"
        " add --save-dir DIR, and each is written to DIR/HOOK"
    )
    before = content(trained_at_both)
    line = refused(["train", *flags, *BOTH, f"--save-dir={trained_at_both}"], capsys)
    assert "already holds a run" in line
    assert content(trained_at_both) == before
