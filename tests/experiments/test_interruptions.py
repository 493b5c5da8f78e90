"""What the experiment on interruptions takes for a difference."""

import argparse
import json
import signal

import pytest
import torch as t

from experiments.robustness import interruptions
from experiments.robustness.interruptions import Child, contents, damaged, differences, is_right


def written(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return contents(folder)


def test_dates_ids_and_locks_are_no_difference_and_all_else_is(tmp_path):
    def result(day, value):
        return json.dumps({"date": f"2026-01-0{day}", "eval_id": f"{day}", "fve": value})

    wanted = written(tmp_path / "a", a__json=result(1, 0.5), b__json="{}", c__csv="1")
    same = written(tmp_path / "b", a__json=result(2, 0.5), b__json="{}", c__csv="1", __lock="7")
    assert not any(differences(same, wanted).values())
    other = written(tmp_path / "c", a__json=result(1, 0.6), __b__json__0123abcd="", c__csv="1")
    assert differences(other, wanted) == {
        "left over": [".b.json.*"],
        "missing": ["b.json"],
        "different": ["a.json"],
    }


def test_a_resume_point_is_what_it_holds(tmp_path):
    def point(name, one, other, weight):
        (tmp_path / name / "resume").mkdir(parents=True)
        held = {"a": one, "b": other, "w": t.tensor([weight])}
        t.save(held, tmp_path / name / "resume" / "step_00000005.pt")
        return contents(tmp_path / name)

    text = "vsae of seed 0"
    shared, apart = point("x", text, text, 1.0), point("y", text, " ".join(text.split()), 1.0)
    assert shared == apart
    assert shared != point("u", text, text, 2.0)


def test_what_was_there_may_be_replaced_by_what_is_to_come_and_by_nothing_else():
    before, after = {"a": "1", "b": "1", "c": "1", "d": "1"}, {"a": "2", "b": "2", "c": "2"}
    assert damaged({"a": "1", "b": "2", "c": "half"}, before, after) == ["c"]


SETTINGS = {"date": "2026-01-01", "commit": "0123abc", "torch": "2.0", "minutes": 1.0}
ROW = {"damaged": [], "left over": [], "missing": [], "different": [], "exit again": 0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"damaged": ["ae.pt"]}, False),
        ({"left over": [".ae.pt.*"]}, False),
        ({"traceback": True}, False),
        ({"exit again": 2}, False),
        ({"exit again": 2, "done": True}, True),
        ({"exit again": 1, "done": True}, False),
        ({"what": "SIGINT", "exit": 130}, True),
        ({"what": "SIGTERM", "exit": 143}, True),
        ({"what": "SIGTERM twice", "exit": -15}, True),
        ({"what": "SIGINT", "exit": 0}, False),
        ({"what": "SIGINT", "exit": 1}, False),
        ({"second": "train", "exit": 2}, True),
        ({"second": "train", "exit": 0}, False),
        ({"second": "train", "exit": 1}, False),
        ({"rank": 0, "exit": 1}, True),
        ({"rank": 0, "exit": 0}, False),
    ],
)
def test_a_row_is_right_only_if_nothing_is_wrong(change, expected):
    assert is_right(ROW | change) == expected


def test_a_command_that_ends_before_it_could_be_interrupted_is_an_error(tmp_path):
    (tmp_path / "place").mkdir()
    child = Child("python -m this", tmp_path / "place")
    with pytest.raises(SystemExit, match="python -m this: ended before the moment: The Zen"):
        child.came_to(lambda child: False, "the moment")


@pytest.mark.parametrize("part", [interruptions.signals, interruptions.processes])
def test_a_part_is_an_error_where_nothing_could_be_interrupted(part, tmp_path, monkeypatch):
    monkeypatch.setattr(interruptions, "TRAIN", "python -m this")
    monkeypatch.setattr(interruptions, "TORCHRUN", "python -m this")
    with pytest.raises(SystemExit, match="ended before"):
        part(argparse.Namespace(seed=0), interruptions.Places(tmp_path))


def test_a_command_that_does_not_continue_is_shown_with_what_is_wrong(tmp_path):
    """One that starts from scratch where another has begun, and says nothing."""
    script = "from pathlib import Path; import time\nwith Path('a').open('a') as a: a.write('x')\ntime.sleep(%s)"
    command = f"python -m begins {tmp_path}"
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "begins.py").write_text(script % 0.3)
    moments = [("at once", interruptions.after_writing("a"), signal.SIGINT)]
    places = interruptions.Places(tmp_path)
    (row,) = interruptions.typed_again(command, moments, places, tmp_path / "template")
    assert (row["what"], row["different"], row["traceback"]) == ("SIGINT at once", ["a"], True)
    page = interruptions.tables(
        {
            "settings": SETTINGS,
            "flags": "",
            "parts": {"explain": {"command": command, "rows": [row]}},
        }
    )
    assert "different: `a`; a traceback" in "\n".join(page)


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path, monkeypatch):
    raw, new = tmp_path / "raw.json", {"rows": [ROW, ROW]}

    def writers(flags, places):
        return new

    parts = {name: {"rows": [ROW]} for name in ("signals", "writers")}
    raw.write_text(json.dumps({"parts": parts}))
    monkeypatch.setattr(interruptions, "RAW", raw)
    monkeypatch.setattr(interruptions, "writers", writers)
    monkeypatch.setattr(interruptions.os, "environ", {})
    flags = argparse.Namespace(parts=["writers"], again=True, kills=1, seed=0)
    interruptions.measure(flags)
    assert json.loads(raw.read_text())["parts"] == parts | {"writers": new}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("vsae: stopped by SIGTERM; continue with `vsae eval run`", "eval run"),
        ("continue from the last resume point with `torchrun --n 2 -m x`", "TORCHRUN --n 2 -m x"),
        ("nothing was written; run the same command again", "as before"),
        ("", "train --resume run"),
    ],
)
def test_a_command_is_continued_as_it_says(said, expected, tmp_path):
    (tmp_path / "run").mkdir()
    child = type("Child", (), {"said": said, "folder": tmp_path})
    expected = expected.replace("TORCHRUN", interruptions.TORCHRUN)
    assert interruptions.continued(child, "as before") == expected
