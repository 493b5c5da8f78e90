"""`vsae eval` and `vsae compare`: the whole commands."""

import json
import shutil
from pathlib import Path

import pytest

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.run_folder.sae_folder import find_sae


@pytest.fixture
def measured(trained, tmp_path):
    trained = shutil.copytree(trained, tmp_path / "trained")
    for name, fve in (("vsae", 0.5), ("top_k", 0.25)):
        metrics = {"fve": fve, "l0": 4.0, "tokens": 200, "measured_on": {"data": "x"}}
        metrics["of"] = {"weights": find_sae(trained / name).hash}
        (trained / name / "metrics.json").write_text(json.dumps(metrics))
    return [str(trained / "vsae"), str(trained / "top_k")]


def test_the_columns_asked_for_and_what_differs(measured, capsys):
    assert main(["compare", *measured, "--columns", "l0,fve"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4:3]] == [["L0", "FVE"], ["top_k", "4.0", "0.2500"]]
    assert "Trained with" not in "".join(lines), "the two are matched: the default lr too"


def test_json_is_the_content_of_the_files(measured, capsys):
    assert main(["compare", *measured, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == measured
    both = {"tokens": 200, "measured_on": {"data": "x"}}
    of = {"of": {"weights": find_sae(measured[0]).hash}}
    assert content[measured[0]] == {"fve": 0.5, "l0": 4.0} | both | of
    assert main(["compare", *measured, "--json", "--columns=fve"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content[measured[1]] == {"fve": 0.25} | both
    assert main(["compare", str(Path(measured[0]).parent), "--json"]) == 0
    assert [*json.loads(capsys.readouterr().out)] == measured, "those in a folder"
    shutil.copy(f"{measured[0]}/ae.pt", measured[1])
    assert main(["compare", *measured, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert ["stale" in one for one in content.values()] == [False, True]


def test_eval_and_compare(folder, capsys):
    assert main(["compare", str(folder)]) == 2
    assert f"run `vsae eval {folder}`" in capsys.readouterr().err
    assert main(["eval", str(folder), "--tokens", "300"]) == 0
    assert main(["compare", str(folder)]) == 0
    assert "FVE" in capsys.readouterr().out


def test_a_checkpoint_of_the_middle_is_evaluated_beside_the_final_weights(small, tmp_path, capsys):
    assert main(["train", *small, "--save-steps", "6"]) == 0
    run = tmp_path / "run"
    final = (run / "metrics.json").read_bytes()
    capsys.readouterr()
    assert main(["eval", str(run), "--step", "6"]) == 0
    path = run / "evaluations" / "step_6.json"
    assert f"wrote {path}" in capsys.readouterr().out
    assert (run / "metrics.json").read_bytes() == final
    middle = json.loads(path.read_text())
    assert middle["step"] == 6
    assert middle["tokens"] == json.loads(final)["tokens"]
    assert middle["fve"] != json.loads(final)["fve"]
    assert main(["eval", str(run), "--step", "7"]) == 2
    assert "step 7; expected one of 6" in capsys.readouterr().err
