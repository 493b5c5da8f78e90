"""JSON of any content in the files of a run folder: each command that reads it works, or ends in one line.

What is not JSON at all is tested with each file's reader.
"""

import json
import shutil

import pytest
from small_commands import refused

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.run_folder.reading import read_history, read_metrics

HUGE = b"1" + b"0" * 400
DEEP = b'{"fve": ' + b"[" * 100_000
OF_METRICS = {
    "text": b'"x"',
    "a list": b"[1]",
    "null": b"null",
    "a huge number": HUGE,
    "a metric in words": b'{"fve": "hi"}',
    "a metric that is true": b'{"fve": true}',
    "a huge metric": b'{"fve": ' + HUGE + b"}",
    "NaN": b'{"fve": NaN}',
    "NaN in words": b'{"fve": "NaN"}',
    "infinite": b'{"fve": 1e999}',
    "nested without end": DEEP,
    "measured on a list": b'{"measured_on": [1]}',
    "measured on null": b'{"measured_on": null}',
    "a rule in words": b'{"measured_on": {"max_norm_multiple": "x"}}',
    "no reasons": b'{"not_measured": [1]}',
}
OF_A_LINE = {name: OF_METRICS[name] for name in list(OF_METRICS)[:11]} | {
    "no step": b"{}",
    "no number": b'{"step": null}',
}
ODD = {"activations": "~nobody-here/x", "model": None}
FINE = {
    "nobody's home": json.dumps({"measured_on": ODD}).encode(),
    "a count without its whole": b'{"positions_left_alone": 3}',
}
"""Content that is odd, and of the right types."""


@pytest.mark.parametrize("damage", OF_METRICS)
def test_metrics_of_another_shape(damage, trained, tmp_path):
    folder = shutil.copytree(trained / "vsae", tmp_path / "run")
    (folder / "metrics.json").write_bytes(OF_METRICS[damage])
    with pytest.raises(CheckpointError, match=r"metrics\.json: .*; run `vsae eval ") as raised:
        read_metrics(folder)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("damage", OF_A_LINE)
def test_a_line_of_another_shape(damage, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n' + OF_A_LINE[damage] + b"\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: .*; delete it"):
        read_history(tmp_path)


@pytest.fixture
def pair(trained, tmp_path):
    """A folder with two run folders, which were measured."""
    for name in ("vsae", "top_k"):
        folder = shutil.copytree(trained / name, tmp_path / "runs" / name)
        (folder / "metrics.json").write_text('{"fve": 0.5, "measured_on": {"model": "m"}}')
    return tmp_path / "runs"


def commands(pair):
    one, other = pair / "vsae", pair / "top_k"
    return {
        "compare": ["compare", one, other],
        "json": ["compare", one, "--json"],
        "reproduce": ["reproduce", one, other],
        "push": ["push", one, "jane/saes", "--dry-run"],
        "results": ["sweep", "--results", pair],
        "index": ["report", pair],
    }


@pytest.mark.parametrize(
    "damage", ["a metric in words", "measured on a list", "nested without end"]
)
def test_every_reader_of_metrics_refuses_them_in_one_line(damage, pair, tiny_lm_dir, capsys):
    (pair / "vsae" / "metrics.json").write_bytes(OF_METRICS[damage])
    few = ["--tokens", "200"]
    slow = {
        "report": ["report", pair / "vsae", *few],
        "export": ["export", pair / "vsae", *few, "--format", "safetensors"],
    }
    for name, command in (commands(pair) | slow).items():
        if name not in ("index", "results"):
            assert "metrics.json: " in refused(command, capsys), name
    assert main(["report", str(pair)]) == 0
    page = (pair / "index.html").read_text()
    assert "the table: vsae (" in page
    assert "top_k" in page
    assert main(["eval", str(pair / "vsae"), *few]) == 0, "it is measured again"
    assert read_metrics(pair / "vsae")["measured_on"]["model"] == str(tiny_lm_dir)


@pytest.mark.parametrize("content", FINE)
def test_odd_metrics_are_shown(content, pair):
    (pair / "vsae" / "metrics.json").write_bytes(FINE[content])
    for command in commands(pair).values():
        assert main([str(word) for word in command]) == 0


PLACES = (
    *("trainer", "buffer", "run", "run.settings", "run.versions"),
    *(f"trainer.{name}" for name in ("dict_class", "trainer_class", "k", "norm_factor", "lm_name")),
    *("trainer.submodule_name", "trainer.warmup_steps", "trainer.seed", "buffer.io"),
    *(
        f"run.settings.{name}"
        for name in ("architecture", "posterior", "steps", "k", "activations")
    ),
)
VALUES = (None, "x", [1], 10**400, json.loads("[" * 90 + "]" * 90))


@pytest.mark.parametrize(
    ("place", "with_run"),
    [(place, True) for place in PLACES]
    + [(place, False) for place in PLACES if not place.startswith("run")],
)
def test_a_config_of_any_content(place, with_run, pair, capsys):
    path = pair / "vsae" / "config.json"
    former = json.loads(path.read_text())
    for value in VALUES:
        config = json.loads(json.dumps(former))
        *sections, name = place.split(".")
        section = config
        for each in sections:
            section = section[each]
        section[name] = value
        if not with_run:
            del config["run"]
        path.write_text(json.dumps(config))
        for command, words in commands(pair).items():
            status = main([str(word) for word in words])
            assert status in ((0,) if command == "index" else (0, 2)), command
            assert "Traceback" not in capsys.readouterr().err
