"""`vsae quickstart`: what it writes and prints, and a second one."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from signal import SIGINT

import pytest
from interrupted_runs import killed_at_the_first_update

from dictionary_learning_ext import RunConfig, TopKConfig, VSAETopKConfig
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae import option_names
from dictionary_learning_ext.features import reproduce as reproduce_module
from dictionary_learning_ext.features.reproduce import reproduce
from dictionary_learning_ext.report import page as report_page

pytestmark = [pytest.mark.slow, pytest.mark.guide]
SHORT = ["quickstart", "--steps", "12", "--eval-tokens", "500"]


FOLDER = Path("runs/quickstart")
NAMES = ["top_k_seed0", "vsae_seed0", "top_k_seed1", "vsae_seed1"]


@pytest.fixture
def again(quickstart_run, tmp_path, monkeypatch):
    """A copy of a finished quickstart to work in, and the trainings there, which only copy such SAEs."""
    runs = quickstart_run[0] / "runs"
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    trained = []

    def copy(run, saes, *_, **__):
        trained.append((run, saes))
        for name in saes:
            same = runs / "quickstart" / f"{name.partition('_seed')[0]}_seed0"
            shutil.copytree(same, FOLDER / name, dirs_exist_ok=True)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", copy)
    return trained


@pytest.fixture
def quick_report(monkeypatch):
    def write_report(folder, against, page, **_):
        Path(page).write_text(f"of {folder} {settings_of(Path(folder))['steps']}")

    monkeypatch.setattr("dictionary_learning_ext.report.page.write_report", write_report)


def stopped(owner, name):
    """A quickstart with Ctrl-C in the first call of a function or method. The signal is real."""
    original = getattr(owner, name)

    def stopping(*given, **options):
        os.kill(os.getpid(), SIGINT)
        patch.undo()
        return original(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        return main(SHORT)


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["run"]["settings"]


def test_quickstart_ends_with_the_answer_and_what_to_try_next(quickstart_run):
    folder, out = quickstart_run
    for name in NAMES:
        settings = settings_of(folder / FOLDER / name)
        seed = int(name[-1])
        assert (settings["seed"], settings["data_seed"]) == (seed, seed)
        assert settings["hook"] == "blocks.2.hook_resid_post", "a middle layer"
        assert settings["activations"] == str(FOLDER / "cache"), "the language model runs once"
        assert settings["max_norm_multiple"] == 10.0, "as recommended has"
    assert re.search(r"^TopK( +(-|-?\d+\.\d+%?))+$", out, re.M)
    vsae, top_k = (f"{reproducibility_of(folder / FOLDER, one):.0%}" for one in ("vsae", "top_k"))
    said = " ".join(out.split())
    assert f"{vsae} of vSAE features come back as a direction" in said
    assert f"of TopK features {top_k}" in said
    assert f"Open {FOLDER / 'report.html'} " in out
    reported = (folder / FOLDER / "report.html").read_text().split()
    assert [Path(name).name for name in reported] == ["vsae_seed0", "top_k_seed0"]
    commands = re.findall(r"^  \S*vsae (\w+) ", out.partition("Next:")[2], re.M)
    assert commands == ["reproduce", "reproduce", "train", "train"]


def test_the_training_it_names_next_is_a_third_seed(quickstart_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(quickstart_run[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^  \S*vsae (train .*--config.*)$", quickstart_run[1], re.M)
    assert main(shlex.split(line)) == 0
    first, third = (settings_of(FOLDER / f"vsae_seed{seed}") for seed in (0, 2))
    assert {key for key in first if first[key] != third[key]} == {"seed", "data_seed", "save_dir"}


def test_seeds_and_architectures_join_it_and_read_its_cache(
    quickstart_run, quick_report, tmp_path, monkeypatch, capsys
):
    shutil.copytree(quickstart_run[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    cache = open_stored(FOLDER / "cache").manifest
    joined = ["--seeds", "3", "--beside", "batch_top_k", "--save-dir", str(FOLDER)]
    assert main(["train", *SHORT[1:], *joined]) == 0
    assert open_stored(FOLDER / "cache").manifest == cache
    trained = {path.parent.name for path in FOLDER.glob("*/ae.pt")}
    assert trained == {*NAMES, "vsae_seed2", *(f"batch_top_k_seed{seed}" for seed in range(3))}


def test_the_report_and_a_later_evaluation_find_held_out_tokens(quickstart_run):
    """Whatever --eval-tokens was."""
    stored = open_stored(quickstart_run[0] / FOLDER / "cache")
    assert stored.held_out_tokens >= RunConfig.eval_tokens


def reproducibility_of(folder, name):
    """The share of features that come back as a direction."""
    return reproduce([folder / f"{name}_seed{seed}" for seed in range(2)]).as_direction()


def test_the_saes_of_a_seed_differ_only_in_the_posterior(quickstart_run):
    top_k, vsae = (settings_of(quickstart_run[0] / FOLDER / name) for name in NAMES[:2])
    differ = {name for name in vsae if vsae[name] != top_k.get(name)} - {"save_dir"}
    variational = {*option_names(VSAETopKConfig)} - {*option_names(TopKConfig)}
    assert {"architecture", "posterior"} <= differ <= {"architecture"} | variational


def test_a_folder_that_can_not_hold_the_cache_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (FOLDER / "cache").mkdir(parents=True)
    (FOLDER / "cache" / "notes.txt").write_text("mine")
    assert main(SHORT) == 2
    assert "(notes.txt)" in capsys.readouterr().err
    assert [path.name for path in FOLDER.iterdir()] == ["cache"]


def test_other_seeds_have_a_page_of_their_own_and_the_second_seed_is_the_next(again, capsys):
    notes = FOLDER / "cache" / "notes.txt"
    notes.write_text("mine")
    flags = ["--seed", "1", "--eval-tokens", "500", "--overwrite", "--report", "False"]
    assert main([*SHORT, *flags]) == 0
    assert notes.read_text() == "mine", "the cache is not deleted"
    for (run, saes), seed in zip(again, (1, 2), strict=True):
        assert run.overwrite
        assert run.data_seed == seed
        assert {sae.seed for sae in saes.values()} == {seed}
        assert list(saes) == [f"vsae_seed{seed}", f"top_k_seed{seed}"]
    out = capsys.readouterr().out
    assert "come back" in out
    assert "Next:" in out


def test_the_same_command_continues_a_killed_one_and_a_stopped_table_and_report(
    quickstart_run, quick_report, tmp_path, monkeypatch, capsys
):
    """Killed before a resume point of its first seed."""
    monkeypatch.chdir(tmp_path)
    with killed_at_the_first_update():
        main(SHORT)
    for owner, name in (
        (reproduce_module, "reproduce_settings"),
        (report_page, "write_report"),
    ):
        assert stopped(owner, name) == 130, name
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == "vsae: stopped by SIGINT; run the same command again to continue"
    assert main(SHORT) == 0
    for name in NAMES:
        for file in ("ae.pt", "metrics.json"):
            whole = quickstart_run[0] / FOLDER / name / file
            assert (FOLDER / name / file).read_bytes() == whole.read_bytes(), (name, file)
    assert (FOLDER / "report.html").is_file()
