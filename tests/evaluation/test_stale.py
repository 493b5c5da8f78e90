"""Measurements of other weights, texts or definitions: made again by what measures, marked by what only reads."""

import json
import os
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch as t
from small_commands import setting

from dictionary_learning_ext.codes import codes, encoding
from dictionary_learning_ext.evaluation import metrics
from dictionary_learning_ext.evaluation.folders import evaluate_folders
from dictionary_learning_ext.evaluation.metrics import METRICS, Metric
from dictionary_learning_ext.evaluation.tables import metrics_as_now, results_table
from dictionary_learning_ext.report.runs_page import write_index
from dictionary_learning_ext.run_folder.sae_folder import find_sae, read_metrics

TOKENS = 300


@pytest.fixture
def define(tmp_path, monkeypatch):
    """Puts a changed copy of codes/encoding.py in its place."""

    def define(name, *changes):
        source = Path(encoding.__file__).read_text()
        for old, new in changes:
            assert source.count(old) == 1
            source = source.replace(old, new)
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = spec_from_file_location(f"{encoding.__package__}.{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(codes, "Encoder", module.Encoder)
        for place in (codes, metrics):
            monkeypatch.setattr(place, "Totals", module.Totals)

    return define


def test_a_new_total_and_a_changed_definition_are_seen_by_every_evaluation(
    folder, define, monkeypatch
):
    def evaluated():
        (found,) = evaluate_folders([folder], tokens=TOKENS).values()
        return found["cubes"], found["twice_l0"], found["stability_rms"]

    cubes = Metric("cubes", "", "", formula=lambda totals: getattr(totals, "cubes", None))
    monkeypatch.setitem(METRICS, "cubes", cubes)
    monkeypatch.setitem(METRICS, "twice_l0", Metric("twice_l0", "", ""))
    *missing, stability = evaluated()
    assert missing == [None, None]
    new = (
        ("    kl: float | None = None", "    cubes: float = 0.0\n    kl: float | None = None"),
        (
            "        self.squares += ",
            "        self.cubes += float(x_BD.abs().pow(3).sum())\n        self.squares += ",
        ),
        ('add_mean("l1_loss", sizes / n, n)', 'add_mean("twice_l0", 2 * selected / n, n)'),
    )
    define("with_totals", *new)
    first = evaluated()
    assert first[0] > 0
    assert first[1] == 2 * read_metrics(folder)["l0"]
    assert first == evaluated(), "from kept codes"
    define("with_more_noise", *new, ("0.1 * rms)", "1.0 * rms)"))
    assert evaluated() == evaluated() != first
    assert read_metrics(folder)["stability_rms"] < stability


def weights(folder, define):
    state = t.load(folder / "ae.pt")
    state["b_dec"] += 0.5
    t.save(state, folder / "ae.pt")


def text(folder, define):
    path = Path(find_sae(folder).config["run"]["settings"]["data"])
    state, content = path.stat(), path.read_text()
    path.write_text(content.upper())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


def definitions(folder, define):
    define("with_a_comment", ("# --- what is summed", "# --- what is added"))


def unknown(folder, define):
    metrics = read_metrics(folder)
    del metrics["of"]
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (weights, "with other weights"),
        (text, "with another text"),
        (definitions, "with other definitions of the metrics"),
        (unknown, "by an earlier version"),
    ],
)
def test_what_has_changed_is_marked_until_it_is_measured_again(
    change, said, folder, text, tmp_path, define
):
    own = {"data": str(shutil.copy(text, tmp_path / "own.txt")), "eval_tokens": 0}
    setting(**own)(folder / "config.json")

    def shown():
        table = results_table({str(folder): read_metrics(folder)}, {str(folder): find_sae(folder)})
        return table, write_index(folder.parent, tmp_path / "index.html").read_text()

    evaluate_folders([folder], tokens=TOKENS)
    assert not any(" measures again" in page for page in shown())
    change(folder, define)
    assert all(f"Measured {said}" in page for page in shown())
    assert (metrics_as_now(find_sae(folder)) is None) == (change != unknown)
    evaluate_folders([folder], tokens=TOKENS if change == unknown else 2 * TOKENS)
    assert not any(" measures again" in page for page in shown())
