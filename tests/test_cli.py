"""The command line: finds the command, exits with the right status, shows its help."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from signal import SIGTERM

import pytest

import dictionary_learning_ext
from dictionary_learning_ext.cli import COMMANDS, main
from dictionary_learning_ext.config.presets import DEFAULT_PRESET, preset
from dictionary_learning_ext.errors import Interrupted, UserError


@pytest.mark.parametrize("command", ["train", "quickstart"])
def test_a_command_without_flags_trains_with_the_defaults(command, monkeypatch, tmp_path):
    """What `make quickstart` types."""
    monkeypatch.chdir(tmp_path)  # where no run is yet
    seen = []

    def stub_cache(*_, **__):
        pass

    def stub(run, saes, *_, **__):
        seen.append((run, list(saes.values())))
        raise UserError("stop here")

    def of_plan(planned, **_):
        stub(planned.settings, {job.name: job.config.sae for job in planned.jobs})

    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", stub)
    monkeypatch.setattr("dictionary_learning_ext.training.loop.carry_out", of_plan)
    monkeypatch.setattr("dictionary_learning_ext.activations.cache_writer.write_cache", stub_cache)
    assert main([command]) == 2
    run, saes = seen[0]
    assert run.model == "embedded"
    assert len(saes) == {"train": 1, "quickstart": 2}[command]
    if command == "train":
        config = preset(DEFAULT_PRESET)
        assert saes == [config.sae.resolve(config.run.steps)]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (None, 0, ""),
        (UserError("k=0: expected 1 or more"), 2, "vsae: k=0: expected 1 or more\n"),
        (UserError(name="k_max", value=0, expected="x"), 2, "vsae: k_max=0: expected x\n"),
        (UserError("a", instead="use k='x y'"), 2, "vsae: a; use k='x y'\n"),
        (Interrupted(SIGTERM, "continue with --resume"), 143, "vsae: continue with --resume\n"),
        (KeyboardInterrupt(), 130, "vsae: stopped by SIGINT\n"),
    ],
    ids=["done", "mistake", "a setting", "what to do", "SIGTERM", "Ctrl-C"],
)
def test_the_exit_status_says_how_a_command_ended(raised, status, said, monkeypatch, capsys):
    def run(flags):
        assert flags.folders == ("runs/a", "runs/b")
        if raised is not None:
            raise raised

    monkeypatch.setitem(COMMANDS, "compare", replace(COMMANDS["compare"], run=run))
    assert main(["compare", "runs/a", "runs/b"]) == status
    assert capsys.readouterr().err == said


@pytest.mark.commands
@pytest.mark.parametrize(("words", "usage"), [([], "COMMAND"), (["compare", "--help"], "compare")])
def test_the_package_runs_as_a_module(words, usage):
    command = [sys.executable, "-m", "dictionary_learning_ext", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: vsae {usage}")


@pytest.mark.commands
def test_the_hubs_warnings_are_not_shown():
    """Without a network there is one for each of 12 attempts, and the error says the same."""
    script = """
from dictionary_learning_ext.cli import main
main(["--version"])
from huggingface_hub.utils.logging import get_logger
get_logger("huggingface_hub.x").warning("Retrying in 1s")
"""
    environment = {n: v for n, v in os.environ.items() if n != "HF_HUB_VERBOSITY"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "given",
    [{}, {"GOMP_SPINCOUNT": "9"}, {"OMP_WAIT_POLICY": "PASSIVE"}],
    ids=["neither", "spin count", "wait policy"],
)
def test_waiting_threads_leave_the_cores_soon_unless_the_user_says_how(given, monkeypatch):
    """It is read when torch is loaded; test_imports.py checks that the command line doesn't load torch."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    main(["--version"])
    expected = given or {"GOMP_SPINCOUNT": "7000"}
    assert {n: os.environ[n] for n in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if n in os.environ} == (
        expected
    )


def test_the_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    installed = version("dictionary-learning-ext")
    assert capsys.readouterr().out == f"vsae {installed}\n"
    assert dictionary_learning_ext.__version__ == installed


def test_what_comes_from_a_file_moves_no_cursor(monkeypatch, capsys):
    def logs(_):
        logging.getLogger("dictionary_learning_ext").warning("%s", "a\x1b[2J")
        raise UserError("b\x1b[2J")

    monkeypatch.setitem(COMMANDS, "compare", replace(COMMANDS["compare"], run=logs))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert main(["compare", "a"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines() == [r"WARNING: a\x1b[2J", r"vsae: b\x1b[2J"]


def test_what_users_named_is_printed_without_control_characters(monkeypatch, capsys):
    def run(flags):
        print("wrote runs/\x1b[2Jmine\tand more")
        raise UserError("runs/a\nb: no such folder")

    monkeypatch.setitem(COMMANDS, "quickstart", replace(COMMANDS["quickstart"], run=run))
    assert main(["quickstart"]) == 2
    out, error = capsys.readouterr()
    assert out == "wrote runs/\\x1b[2Jmine\tand more\n"
    assert error == "vsae: runs/a\\nb: no such folder\n"
