"""`vsae eval`, and `vsae compare` of what it measured."""

import json
import re

from dictionary_learning_ext.cli import main


def test_eval_and_compare(small, tmp_path, capsys):
    assert main(["train", *small, "--eval-tokens", "0"]) == 0
    run = str(tmp_path / "run")
    assert main(["compare", run]) == 2
    assert f"run `vsae eval {run}`" in capsys.readouterr().err
    assert main(["eval", run, "--tokens", "300"]) == 0
    assert main(["compare", run, run]) == 0
    assert "FVE" in capsys.readouterr().out


def test_a_checkpoint_of_another_model_or_layer_than_asked_for(small, tmp_path, capsys):
    assert main(["train", *small]) == 0
    run = str(tmp_path / "run")
    assert main(["eval", run, "--model", "embedded"]) == 2
    assert re.search(
        r"activation_dim=16, but blocks.0.* of embedded is 128 wide", capsys.readouterr().err
    )
    assert main(["eval", run, "--hook", "blocks.1.hook_resid_post"]) == 2
    assert "trained on hook blocks.0" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


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
    assert "no checkpoint of step 7; expected one of 6" in capsys.readouterr().err
