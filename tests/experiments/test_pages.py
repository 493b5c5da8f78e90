"""Pages hold the tables of their raw results, and what is written around them by hand."""

import importlib

import pytest

from experiments import pages, raw_results
from experiments.index import EXPERIMENTS
from experiments.raw_results import RESULTS
from experiments.stages import Page, Stages

WITH_RAW = {
    raw.removesuffix(".json"): experiment
    for experiment in EXPERIMENTS
    for raw in experiment.raw
    if (RESULTS / raw).exists()
}
NAME = "paper.selection_churn"


@pytest.mark.parametrize("name", WITH_RAW)
def test_the_tables_are_those_of_the_raw_results(name):
    stages = importlib.import_module(WITH_RAW[name].module).STAGES
    lines = stages.pages[name].tables(raw_results.read(RESULTS / f"{name}.json"))
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert "\n".join(["", pages.BEGIN, "", *lines, "", pages.END, ""]) in page


def test_a_stage_writes_raw_results_tables_and_plots_and_leaves_the_prose(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_results, "RESULTS", tmp_path)
    raw, page = tmp_path / "selection_churn.json", tmp_path / "selection_churn.md"

    def tables(content):
        return [f"FVE {content['fve']}"]

    def draw(content, path):
        path.with_suffix(".png").write_text(str(content["fve"]))

    one = Stages(
        NAME,
        {"train": lambda arguments: raw_results.write(raw, {"fve": arguments.fve})},
        {"selection_churn": Page(tables, draw)},
        options=lambda parser: parser.add_argument("--fve", type=float),
    )
    with pytest.raises(SystemExit, match=rf"python -m experiments\.{NAME} train"):
        one.run(["tables"])
    one.run(["train", "--fve", "0.9"])
    head = f"`python -m experiments.{NAME} train`\n\n{pages.BEGIN}\n\nFVE "
    assert page.read_text() == f"{head}0.9\n\n{pages.END}\n"
    assert raw.with_suffix(".png").read_text() == "0.9"
    page.write_text("Before.\n" + page.read_text() + "After.\n")
    one.run(["train", "--fve", "0.7"])
    assert page.read_text() == f"Before.\n{head}0.7\n\n{pages.END}\nAfter.\n"
    page.write_text("by hand alone")
    with pytest.raises(ValueError, match="the lines"):
        one.run(["tables"])


def test_a_part_is_measured_in_a_process_of_its_own(capsys):
    one = Stages(NAME, {"bench": print}, {}, child={"bench": lambda part: part * 2})
    one.run(["bench", "--only", "ab"])
    assert capsys.readouterr().out == "abab\n"


def test_the_commits_and_minutes_of_earlier_parts_are_kept(monkeypatch):
    before = {"commit": "a1", "minutes": 2.0}
    monkeypatch.setattr(raw_results, "commit", lambda: "b2")
    monkeypatch.setattr(raw_results.time, "monotonic", lambda: 150.0)
    found = raw_results.about(30.0, before)
    assert (found["commit"], found["minutes"]) == ("a1, b2", 4.0)
