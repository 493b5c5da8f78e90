"""The scores of `make mutants`."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

scores = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scores.py"))))


def test_a_folder_below_its_threshold_is_named():
    ran = {"trainers": 10, "evaluation": 10, "sweep": 10, "training": 10}
    alive = {"trainers": 1, "evaluation": 2, "sweep": 2, "training": 3}
    assert scores.too_low(ran, alive) == [
        "evaluation: 8 of 10 were noticed; expected 90%",
        "training: 7 of 10 were noticed; expected 80%",
    ]


def test_what_differs_on_a_gpu_only_has_its_own_count():
    reasons = [("trainers", "only on a GPU: a sum's order"), ("trainers", "speed only")]
    head, row, total = scores.table({"trainers": 4}, {"trainers": 1}, reasons).splitlines()
    assert head.split() == ["mutants", "noticed", "score", "equivalent", "only", "on", "a", "GPU"]
    assert row.split() == ["trainers", "4", "3", "75%", "1", "1"]
    assert total.split() == ["all", "4", "3", "75%", "1", "1"]


def test_the_survivors_of_other_folders_are_kept(tmp_path):
    path = tmp_path / "build" / "mutants.json"
    with pytest.raises(SystemExit, match="run `make mutants` first"):
        scores.survivors_in(path)
    scores.write_survivors(path, {"sweep": [{"line": 1}], "training": []})
    scores.write_survivors(path, {"training": [{"line": 2}]})
    assert scores.survivors_in(path) == {"sweep": [{"line": 1}], "training": [{"line": 2}]}
    scores.write_survivors(path, {"sweep": []})
    assert scores.survivors_in(path)["sweep"] == []
