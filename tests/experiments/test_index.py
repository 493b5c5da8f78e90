"""The index lists every experiment, and what it names is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from experiments import __main__ as listing
from experiments.index import EXPERIMENTS, FORMER_PAGES
from experiments.speed import whole_runs

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
STAGED = [experiment for experiment in EXPERIMENTS if experiment.stages]
COMMAND = re.compile(r"python -m (experiments\.[\w.]+\w)(?: ([a-z]\w*))?")


def test_every_file_with_a_command_is_listed():
    found = set()
    for file in (ROOT / "experiments").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tests = [ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If)]
        if file.name != "__main__.py" and any("__main__" in test for test in tests):
            found.add(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert len(found) > 15
    assert found == {experiment.module for experiment in EXPERIMENTS}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_a_module_is_imported_and_its_stages_are_those_of_the_index(experiment):
    if experiment.name == "language_models.embedded_text":
        pytest.importorskip("rdata")
    module = importlib.import_module(experiment.module)
    if experiment.stages:
        stages = module.STAGES
        assert stages.name == experiment.name
        assert {*stages.measure, "tables"} == set(experiment.stages)
        assert {f"{name}.md" for name in stages.pages} == set(experiment.pages)


def test_the_files_that_it_names_are_there_and_none_else():
    pages = {page for experiment in EXPERIMENTS for page in experiment.pages}
    assert not {page for page in pages if not (RESULTS / page).exists()}
    former = {page for names in FORMER_PAGES.values() for page in names}
    assert former.isdisjoint(pages)
    assert former <= {file.name for file in RESULTS.glob("*.md")} <= pages | former
    raw = {name for experiment in EXPERIMENTS for name in experiment.raw}
    assert {file.name for file in RESULTS.glob("*.json")} <= raw


@pytest.mark.parametrize(
    ("tag", "page"), [(tag, page) for tag, pages in FORMER_PAGES.items() for page in pages]
)
def test_a_page_whose_experiment_is_gone_names_the_tag_and_the_file_that_made_it(tag, page):
    text = (RESULTS / page).read_text(encoding="utf-8")
    (made_by,) = re.findall(rf"^Made by `(\S+\.py)` at the git tag `{tag}`", text, re.MULTILINE)
    assert not (ROOT / made_by).exists()
    assert page in "\n".join(listing.listing())


def test_every_command_that_is_written_somewhere_can_be_typed():
    known = {experiment.module: experiment for experiment in EXPERIMENTS}
    found = [
        (file.name, *command)
        for pattern in ("README.md", "docs/*.md", "experiments/**/*.py", "experiments/**/*.md")
        for file in ROOT.glob(pattern)
        for command in COMMAND.findall(file.read_text(encoding="utf-8"))
    ]
    assert len(found) > 70
    for name, module, word in found:
        assert module in known or "NAME" in module, f"{name}: {module}"
        if module in known and known[module].stages:
            assert word in known[module].stages, f"{name}: {module} {word}"


def test_what_the_profile_times_is_there():
    for place in whole_runs.TIMED.values():
        assert callable(getattr(*whole_runs.owner_of(place))), place


def test_one_experiment_is_told_in_full_and_an_unknown_name_lists_them(capsys):
    assert listing.main(["selection_churn"]) == 0
    told = capsys.readouterr().out
    assert "experiments/results/selection_churn.json" in told
    assert "Stability is" in told, "the docstring"
    assert listing.main(["selection_chrun"]) == 2
    assert "paper.selection_churn" in capsys.readouterr().err
