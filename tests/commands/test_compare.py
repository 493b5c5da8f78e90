"""`vsae compare`: the whole command, and its JSON."""

import json
import shutil

import pytest
from small_commands import refused

from dictionary_learning_ext.cli import main


@pytest.fixture
def measured(trained, tmp_path):
    trained = shutil.copytree(trained, tmp_path / "trained")
    for name, fve in (("vsae", 0.5), ("top_k", 0.25)):
        metrics = {"fve": fve, "l0": 4.0, "tokens": 200, "measured_on": {"data": "x"}}
        (trained / name / "metrics.json").write_text(json.dumps(metrics))
    return [str(trained / "vsae"), str(trained / "top_k")]


def test_the_columns_asked_for_and_what_differs(measured, capsys):
    assert main(["compare", *measured, "--columns", "l0,fve"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4:3]] == [["L0", "FVE"], ["top_k", "4.0", "0.2500"]]
    assert "Trained with" not in "".join(lines), "the two are matched: the default lr too"
    assert "no metric 'fvee'" in refused(["compare", *measured, "--columns", "fvee"], capsys)


def test_json_is_the_content_of_the_files(measured, capsys):
    assert main(["compare", *measured, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == measured
    assert content[measured[0]] == {
        "fve": 0.5,
        "l0": 4.0,
        "tokens": 200,
        "measured_on": {"data": "x"},
    }
    assert main(["compare", *measured, "--json", "--columns=fve"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content[measured[1]] == {"fve": 0.25, "tokens": 200, "measured_on": {"data": "x"}}
