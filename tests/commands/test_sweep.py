"""`vsae sweep`: its own flags and those of `vsae train`, and what it prints."""

import csv
import json
import signal

import pytest
from small_commands import refused

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.commands.flags import parse, vsae
from dictionary_learning_ext.commands.sweep import SWEEP as COMMAND
from dictionary_learning_ext.errors import Interrupted, TrainingError
from dictionary_learning_ext.run_folder.files import CODES


@pytest.fixture
def sweep_file(flags, tmp_path):
    """A sweep of four SAEs."""
    path = tmp_path / "a sweep.yaml"
    command = ["vsae", "train", *flags, "--eval-tokens=200", "--eval-documents=4", "${args}"]
    parameters = {"k": {"values": [2, 4]}, "seed": {"values": [0, 1]}}
    content = {"name": "tiny", "method": "grid", "parameters": parameters, "command": command}
    content["metric"] = {"name": "eval/fve", "goal": "maximize"}
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


TYPED = {
    "f.yaml --steps 100 --eval-tokens=0": "--steps 100 --eval-tokens=0",
    "--steps 100 f.yaml --at-once 1 --seed 3 --max-runs 4": "--steps 100 --seed 3",
    "--steps --max-runs 1 f.yaml": "--steps",
    "--rectify f.yaml --device cuda": "--rectify --device cuda",
    "--rectify False f.yaml --at-once 2 --max_norm_multiple 3": "--rectify False --max_norm_multiple 3",
    "f.yaml --group-fractions 0.5 0.5 --at-once 2": "--group-fractions 0.5 0.5",
    "f.yaml --save-dir x --preset paper --wandb offline": "--preset paper --wandb offline",
    "f.yaml": "",
}


@pytest.mark.parametrize("typed", TYPED)
def test_the_flags_of_train_are_told_from_its_own(typed):
    flags = parse(COMMAND, typed.split())
    assert " ".join(flags.passed_on) == TYPED[typed]
    assert str(flags.file) == "f.yaml"
    assert " ".join(flags.words) == typed


def test_a_metric_that_no_evaluation_has_is_refused_before_anything_is_trained(
    sweep_file, tmp_path, capsys
):
    content = json.loads(sweep_file.read_text())
    sweep_file.write_text(json.dumps(content | {"metric": {"name": "eval/fev"}}))
    said = refused(["sweep", str(sweep_file), f"--save-dir={tmp_path / 's'}"], capsys)
    assert "metric='eval/fev': expected eval/fve" in said
    assert "did you mean 'eval/fve'" in said
    assert not (tmp_path / "s").exists()


def test_what_comes_back_between_seeds_is_compared_in_both_ways(sweep_file, tmp_path, capsys):
    folder = tmp_path / "s"
    typed = [str(sweep_file), "--save-dir", str(folder), "--steps", "6", "--decay-start", "None"]
    assert main(["sweep", *typed, "--data-seed", "seed"]) == 0
    said = capsys.readouterr().out
    assert "in what they do" in said
    assert "Highest mean FVE for each k" in said
    assert main(["sweep", "--results", str(folder)]) == 0
    assert "Highest mean FVE for each k" in capsys.readouterr().out
    rows = list(csv.DictReader((folder / "results_by_setting.csv").open()))
    assert [row["k"] for row in rows] == ["2", "4"]
    for row in rows:
        assert 0 <= float(row["in_function"]) <= 1
        assert 0 <= float(row["as_direction"]) <= 1
    kept = list(folder.glob(f"*/{CODES}"))
    assert len(kept) == 4


def test_a_sweep_without_evaluation_ends_with_its_runs(sweep_file, tmp_path, capsys):
    folder = tmp_path / "s"
    fixed = ["--steps", "6", "--eval-tokens", "0", "--decay-start", "None"]
    assert main(["sweep", str(sweep_file), "--save-dir", str(folder), *fixed]) == 0
    out = capsys.readouterr().out
    assert f"4 runs into {folder}" in out
    assert "not ranked" in out
    for path in folder.glob("*/config.json"):
        assert json.loads(path.read_text())["run"]["settings"]["steps"] == 6
    assert "finished" not in out


@pytest.mark.slow
def test_what_is_left_or_failed_is_counted_with_the_command_that_continues(
    sweep_file, tmp_path, capsys, monkeypatch
):
    from dictionary_learning_ext.training import loop

    real, calls = loop.train, []

    def stopped_later(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise Interrupted(signal.SIGINT)
        return real(*given, **options)

    monkeypatch.setattr(loop, "train", stopped_later)
    folder = tmp_path / "s"
    command = ["sweep", str(sweep_file), "--save-dir", str(folder), "--at-once", "2"]
    assert main(command) == 130
    again = f"run `{vsae()} sweep '{sweep_file}' --save-dir {folder} --at-once 2` again to continue"
    assert f"2 of 4 runs are finished; {again}" in capsys.readouterr().err
    assert main(["sweep", "--results", str(folder)]) == 0
    assert f"2 of 4 runs are finished; {again}." in capsys.readouterr().out
    manifest = folder / "sweep.json"
    whole = json.loads(manifest.read_text())
    coloured = dict.fromkeys(whole["settings"], "run `\x1b[2Jvsae` again")
    manifest.write_text(json.dumps(whole | {"advice": coloured}))
    assert main(["sweep", "--results", str(folder)]) == 0
    assert r"run `\x1b[2Jvsae` again" in capsys.readouterr().out
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "4 runs into" in out
    assert ", 2 at once" in out
    assert "are finished" not in out
    assert "out of 4 runs" in out
    assert out.count("(n = 2)") == 4, "two seeds of each k, ranked in two ways"
    # The results of the others are shown beside a failure.
    one = folder / "vsae_k2_seed0"
    (one / "failed.json").write_text("{}")
    (one / "metrics.json").unlink()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert f"; 1 failed, see failed.json in {one.name}" in printed.out
    assert "failed earlier" in printed.err


def test_if_every_run_fails_the_reason_is_printed(sweep_file, tmp_path, capsys, monkeypatch):
    def failing(*_, **__):
        raise TrainingError("the loss is nan")

    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", failing)
    command = ["sweep", sweep_file, "--save-dir", tmp_path / "s"]
    assert refused(command, capsys) == "vsae: the loss is nan"
