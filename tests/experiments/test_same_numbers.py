"""What the comparison of two commits runs, and that it sees what differs."""

import json
import re

import pytest
import torch as t
from safetensors.torch import save_file

from dictionary_learning_ext import SAEConfig
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.presets import PRESETS
from experiments.robustness.same_numbers import differences_of_case, rewind
from experiments.robustness.same_numbers_cases import LINES, OF_ARCHITECTURES, STEPS, settings


def test_every_architecture_is_trained_with_settings_that_are_allowed():
    assert OF_ARCHITECTURES.keys() == TRAINED.keys()
    for own in settings().values():
        SAEConfig(**own).resolve(STEPS, 512)


def test_every_architecture_is_chosen_on_a_command_line():
    chosen = {name for name in TRAINED if f"--architecture {name} " in LINES.replace("\n", " ")}
    assert chosen | {"vsae_top_k"} == TRAINED.keys()


def test_every_preset_is_chosen_on_a_command_line_and_no_other_name():
    assert set(re.findall(r"--preset (\S+)", LINES)) == PRESETS.keys()


WEIGHTS = {"weight": t.tensor([[1.0, 0.0], [t.nan, 2.0]]), "step": t.tensor(3)}


def written(folder, weights=WEIGHTS, config=None, line="1,2.5"):
    folder.mkdir()
    t.save(weights, folder / "ae.pt")
    save_file(weights, folder / "sae.safetensors")
    config = {"lr": [0.1, None], "date": folder.name} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "table.csv").write_text(f"run,fve\n{line}\n")
    return folder


def test_dates_and_deleted_options_may_differ(tmp_path):
    config = {"date": "today", "free_bits": 0.0, "prior": "fixed", "lr": [0.1, None]}
    one, other = written(tmp_path / "one"), written(tmp_path / "other", config=config)
    assert differences_of_case(one, other) == []


NEGATIVE_ZERO = WEIGHTS | {"weight": t.tensor([[1.0, -0.0], [t.nan, 2.0]])}


@pytest.mark.parametrize(
    ("changed", "file"),
    [
        ({"weights": NEGATIVE_ZERO}, "ae.pt.weight"),
        ({"weights": NEGATIVE_ZERO}, "sae.safetensors.weight"),
        ({"weights": WEIGHTS | {"step": t.tensor(3.0)}}, "ae.pt.step"),
        ({"config": {"lr": [0.1, 0.0]}}, "config.json.lr[1]"),
        ({"config": {"lr": [0.1, None], "k": 8}}, "config.json.k"),
        ({"line": "1,2.50"}, "table.csv[0].fve"),
    ],
)
def test_what_differs_is_named(changed, file, tmp_path):
    found = differences_of_case(written(tmp_path / "a"), written(tmp_path / "b", **changed))
    assert any(each.startswith(f"{file}: ") for each in found)


def test_an_error_and_a_file_that_is_missing_are_differences(tmp_path):
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    (other / "ae.pt").unlink()
    (other / "error.txt").write_text("Traceback\n\nValueError: no\n")
    assert differences_of_case(one, other) == [
        "error in AFTER: ValueError: no",
        "ae.pt: only before",
    ]
    assert differences_of_case(tmp_path / "nothing", tmp_path / "nothing")


def test_a_run_is_rewound_to_its_point_at_half(tmp_path):
    run = written(tmp_path / "run")
    (run / "metrics.json").touch()
    for step in (10, 20):
        (run / "resume").mkdir(exist_ok=True)
        (run / "resume" / f"step_{step:08d}.pt").touch()
    rewind(tmp_path)
    left = sorted(path.name for path in run.iterdir())
    assert left == ["config.json", "resume", "sae.safetensors", "table.csv"]
    assert [path.name for path in (run / "resume").iterdir()] == ["step_00000010.pt"]
