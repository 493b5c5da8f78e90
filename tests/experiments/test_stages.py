"""One command line for all: a stage measures, and the page is written after it."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import pages, raw_results, stages
from experiments.stages import Stages, in_child

NAME = "paper.selection_churn"


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_results, "RESULTS", tmp_path)
    raw = tmp_path / "selection_churn.json"
    return Stages(
        NAME,
        {
            "train": lambda arguments: raw_results.write(raw, {"fve": arguments.fve}),
            "bench": lambda _: None,
        },
        page=lambda content: [f"FVE {content['fve']}"],
        draw=lambda content, page: page.with_suffix(".png").write_text(str(content["fve"])),
        options=lambda parser: parser.add_argument("--fve", type=float, default=0.5),
    )


def test_a_stage_writes_raw_results_page_and_plots(experiment, tmp_path, capsys):
    experiment.run(["train", "--fve", "0.9"])
    page = (tmp_path / "selection_churn.md").read_text()
    assert page == f"`python -m experiments.{NAME} train`\n\nFVE 0.9\n"
    assert (tmp_path / "selection_churn.png").read_text() == "0.9"
    assert capsys.readouterr().out == page


def test_tables_measures_nothing(experiment, tmp_path):
    raw_results.write(tmp_path / "selection_churn.json", {"fve": 0.7})
    experiment.run(["tables"])
    assert "FVE 0.7" in (tmp_path / "selection_churn.md").read_text()


def test_tables_without_raw_results_says_what_to_type(experiment):
    with pytest.raises(SystemExit, match=rf"isn't there.*python -m experiments\.{NAME} train$"):
        experiment.run(["tables"])


def test_a_stage_that_leaves_no_raw_results_writes_no_page(experiment, tmp_path):
    experiment.run(["bench"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "given"), [(["trian"], "no stage trian"), ([], "no stage given")]
)
def test_an_unknown_stage_is_an_error_that_lists_those_there_are(experiment, capsys, words, given):
    with pytest.raises(SystemExit):
        experiment.run(words)
    says = capsys.readouterr().err
    assert f"{given}; expected one of train, bench, tables, e.g. python -m experiments" in says


def test_a_part_is_measured_in_a_process_of_its_own(capsys):
    one = Stages(NAME, {"train": lambda _: None}, page=lambda _: [], child=lambda part: part * 2)
    one.run(["train", "--only", "ab"])
    assert capsys.readouterr().out == "abab\n"


def test_the_child_process_finds_experiments_from_any_folder(tmp_path, monkeypatch):
    """It is `python -m`, so the repository's root must be on its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    calls = []

    def run(command, **settings):
        calls.append(command)
        code = "import experiments; print('noise'); print(experiments.__file__)"
        return real([sys.executable, "-c", code], **settings)

    real = subprocess.run
    monkeypatch.setattr(stages.subprocess, "run", run)
    found = in_child(NAME, "bench", "--only", "64")
    assert Path(found) == Path(pages.__file__).parent / "__init__.py"
    assert calls == [[sys.executable, "-m", f"experiments.{NAME}", "bench", "--only", "64"]]


def test_raw_results_can_be_elsewhere(tmp_path):
    one = Stages(
        NAME,
        {"train": lambda _: None},
        page=lambda content: [content["says"]],
        raw_of=lambda arguments: tmp_path / "other.json",
    )
    raw_results.write(tmp_path / "other.json", {"says": "here"})
    one.run(["tables"])
    assert (tmp_path / "other.md").read_text().endswith("here\n")
    assert isinstance(one.parse(["tables"]), argparse.Namespace)
