"""The index lists every experiment, and what it names is there."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as listing
from experiments.index import EXPERIMENTS, find

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
STAGED = [experiment for experiment in EXPERIMENTS if experiment.stages]
COMMAND = re.compile(r"python -m (experiments\.[\w.]+\w)(?: ([a-z]\w*))?")


def has_main_block(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body
    )


def test_every_file_that_can_be_run_is_listed():
    files = [file for file in (ROOT / "experiments").rglob("*.py") if file.name != "__main__.py"]
    runnable = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if has_main_block(file)
    }
    assert len(runnable) > 20
    assert runnable == {experiment.module for experiment in EXPERIMENTS}


def test_the_files_that_it_names_are_there_and_none_else():
    pages = {experiment.page for experiment in EXPERIMENTS if experiment.page}
    assert not {page for page in pages if not (RESULTS / page).exists()}
    assert {file.name for file in RESULTS.glob("*.md")} <= pages
    raw = {experiment.raw for experiment in EXPERIMENTS if experiment.raw}
    assert {file.name for file in RESULTS.glob("*.json")} <= raw


@pytest.mark.parametrize("experiment", STAGED, ids=lambda experiment: experiment.name)
def test_a_command_parses_and_its_stages_are_those_of_the_module(experiment):
    stages = importlib.import_module(experiment.module).STAGES
    assert stages.name == experiment.name
    assert {*stages.measure, "tables"} == set(experiment.stages)
    for stage in experiment.stages:
        assert stages.parse([stage]).stage == stage
    with pytest.raises(SystemExit):
        stages.parse(["trian"])


def test_stages_are_named_alike_everywhere():
    for experiment in STAGED:
        assert "tables" in experiment.stages
        assert {"train", "bench"} & set(experiment.stages), experiment.name


@pytest.mark.parametrize(
    "file",
    [
        file
        for pattern in (
            "README.md",
            "docs/*.md",
            "experiments/**/*.py",
            "experiments/**/*.md",
            "experiments/*.j2",
        )
        for file in ROOT.glob(pattern)
    ],
    ids=lambda file: file.name,
)
def test_every_command_that_is_written_somewhere_can_be_typed(file):
    known = {experiment.module: experiment for experiment in EXPERIMENTS}
    for module, word in COMMAND.findall(file.read_text(encoding="utf-8")):
        assert module in known or "NAME" in module, f"{file.name}: {module}"
        if module in known and known[module].stages:
            assert word in known[module].stages, f"{file.name}: {module} {word}"


def test_listing_imports_nothing_heavy_and_works_without_the_package():
    code = (
        "import sys; sys.argv = ['experiments']; import experiments.__main__ as main; main.main([]); "
        "heavy = {'torch', 'numpy', 'dictionary_learning_ext'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for experiment in EXPERIMENTS:
        assert experiment.question in done.stdout
        assert experiment.command in done.stdout


def test_one_experiment_is_found_by_its_short_name_and_told_in_full(capsys):
    assert find("selection_churn") is find("paper.selection_churn")
    short = [experiment.name.rpartition(".")[2] for experiment in EXPERIMENTS]
    assert len(set(short)) == len(short)
    assert listing.main(["selection_churn"]) == 0
    told = capsys.readouterr().out
    assert "experiments/results/selection_churn.json" in told
    assert "Stability is the mean" in told, "the docstring"


def test_an_unknown_name_lists_those_there_are(capsys):
    assert listing.main(["selection_chrun"]) == 2
    says = capsys.readouterr().err
    assert "there is no experiment selection_chrun; expected one of" in says
    assert "paper.selection_churn" in says
