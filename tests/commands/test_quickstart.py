"""`vsae quickstart`: what it writes and prints, and a second one."""

import json
import re
import shutil
from pathlib import Path
from signal import SIGINT

import pytest

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import Interrupted

SHORT = ["quickstart", "--steps", "12", "--eval-tokens", "500"]


@pytest.fixture
def again(quickstart_run, tmp_path, monkeypatch):
    """A copy of a finished quickstart to work in, and how often SAEs are trained there."""
    shutil.copytree(quickstart_run[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(
        "dictionary_learning_ext.training.loop.train", lambda *given, **_: trained.append(given)
    )
    return trained


def test_quickstart_ends_with_the_table_and_what_to_try_next(quickstart_run):
    folder, out = quickstart_run
    for name in ("top_k", "vsae_paper", "vsae_annealed_selection"):
        assert (folder / "runs" / "quickstart" / name / "ae.pt").exists()
        assert re.search(rf"^{name} +-?0\.\d", out, re.M)
        config = json.loads((folder / "runs" / "quickstart" / name / "config.json").read_text())
        assert config["run"]["settings"]["max_norm_multiple"] == 10.0, "as recommended has"
    assert "Open runs/quickstart/report.html in a browser" in out
    reported = (folder / "runs" / "quickstart" / "report.html").read_text().split()
    names = ["vsae_annealed_selection", "top_k", "vsae_paper"]
    assert [Path(name).name for name in reported] == names
    commands = re.findall(r"^  \S*vsae (\w+) ", out.partition("Next:")[2], re.M)
    assert commands == ["train", "compare", "train"]


def test_a_second_quickstart_shows_what_is_there_and_how_to_do_it_again(again, capsys):
    page = Path("runs/quickstart/report.html")
    before = page.read_bytes()
    assert main(SHORT) == 0
    out = capsys.readouterr().out
    assert "runs/quickstart holds these SAEs already; --overwrite trains them again" in out
    assert re.search(r"^top_k +-?0\.\d", out, re.M)
    assert page.read_bytes() == before
    assert again == []


def test_a_quickstart_with_other_flags_does_not_overwrite(again, capsys):
    assert main([*SHORT, "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "--seed 0, not 1; overwrite it with --overwrite, or choose another --save-dir" in said
    assert again == []
    assert Path("runs/quickstart/report.html").is_file()


def test_no_report_of_former_saes_is_left_and_without_evaluation_there_is_no_table(again, capsys):
    folder = Path("runs/quickstart")
    (folder / "report_files").mkdir()
    (folder / "report_files" / "x").write_text("")
    (folder / "index.html").write_text("")
    flags = ["--seed", "1", "--eval-tokens", "0", "--overwrite", "--report", "False"]
    assert main([*SHORT, *flags]) == 0
    ((run, saes),) = again
    assert run.overwrite
    assert {sae.seed for sae in saes.values()} == {1}
    for name in ("report.html", "report_files", "index.html"):
        assert not (folder / name).exists()
    out = capsys.readouterr().out
    assert "held-out text" not in out
    assert "Next:" in out


def test_an_interrupted_quickstart_continues(again, monkeypatch, capsys):
    for metrics in Path("runs/quickstart").glob("*/metrics.json"):
        metrics.rename(metrics.with_name("later"))

    def stopped(run, saes, *, resume):
        assert resume
        assert not run.overwrite
        raise Interrupted(SIGINT)

    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", stopped)
    assert main(SHORT) == 130
    assert capsys.readouterr().err == (
        "vsae: stopped by SIGINT; run the same command again to continue\n"
    )
