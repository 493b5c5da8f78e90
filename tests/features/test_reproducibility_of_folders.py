"""`vsae reproduce` on run folders: what it prints and writes, and what it warns of."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from dictionary_learning_ext import RunConfig, SAEConfig, load_dictionary, train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.features.reproducibility_of_folders import (
    measured,
    warn_of_differences,
)
from dictionary_learning_ext.run_folder.reading import read_config

F = 32


@pytest.fixture(scope="module")
def seeds(tiny_lm_dir, text, tmp_path_factory):
    """Three seeds of one SAE, each with a data seed of its own, and one of another k."""
    base = tmp_path_factory.mktemp("seeds")
    folders = {}
    for seed, k in ((0, 4), (1, 4), (2, 4), (3, 6)):
        run = RunConfig(
            model=str(tiny_lm_dir),
            data=text,
            data_seed=seed,
            save_dir=str(base / f"seed{seed}"),
            steps=20,
            batch_size=64,
            n_ctxs=8,
            ctx_len=32,
            eval_tokens=500,
        )
        sae = SAEConfig(dict_size=F, k=k, seed=seed)
        folders[seed] = str(train(run, {"sae": sae})["sae"])
    return folders


def test_the_table_is_of_the_measures(seeds, capsys, caplog):
    folders = [seeds[0], seeds[1], seeds[2]]
    assert main(["reproduce", *folders]) == 0
    out = capsys.readouterr().out
    assert not caplog.records
    names = ["seed0", "seed1", "seed2"]
    directions = {
        n: decoder_directions(load_dictionary(f)[0]) for n, f in zip(names, folders, strict=True)
    }
    expected = reproducibility(directions)
    for name in names:
        (line,) = [line for line in out.splitlines() if line.startswith(name)]
        fve = json.loads(Path(folders[names.index(name)], "metrics.json").read_text())["fve"]
        assert METRICS["fve"].text(fve) in line
        assert f"{expected.within[name]:.4f}" in line
        assert f"{expected.returning(name)[0.7]:.1%}" in line
    pw_mcc = sum(pair.pw_mcc for pair in expected.pairs.values()) / 3
    assert f"{pw_mcc:.4f}" in out
    assert "mean of 3 pairs" in out


def test_json_and_the_features_csv(seeds, tmp_path, capsys):
    path = tmp_path / "new" / "features.csv"
    assert main(["reproduce", seeds[0], seeds[1], "--json", "--csv", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = measured([seeds[0], seeds[1]]).measured
    (pair,) = found["pairs"]
    assert pair["saes"] == ["seed0", "seed1"]
    assert pair["pw_mcc"] == expected.pairs["seed0", "seed1"].pw_mcc
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 2 * F
    scores = [float(row["mean_match"]) for row in rows if row["sae"] == "seed1"]
    assert scores == pytest.approx(expected.match_SF["seed1"], abs=1e-4)
    assert {row["of"] for row in rows} == {"1"}


def test_what_differs_beyond_the_seeds_is_said(seeds, caplog):
    assert main(["reproduce", seeds[0], seeds[3]]) == 0
    assert "these SAEs differ in k, not in their seeds alone" in caplog.text


def test_another_architecture_is_said_and_what_is_not_known_is_not(seeds):
    configs = {folder: read_config(folder) for folder in (seeds[0], seeds[1])}
    assert warn_of_differences(configs) == []
    configs[seeds[1]]["trainer"]["dict_class"] = "AutoEncoderTopK"
    (note,) = warn_of_differences(configs)
    assert note.startswith("these SAEs differ in architecture, not in their seeds alone")
    upstreams = {name: {"trainer": {"dict_class": "X", "lr": 1e-3}} for name in ("a", "b")}
    assert warn_of_differences(upstreams) == [], "they name no seeds"
    upstreams["b"]["trainer"] |= {"dict_class": "Y", "trainer_class": "YTrainer"}
    upstreams["a"]["trainer"]["trainer_class"] = "XTrainer"
    (note,) = warn_of_differences(upstreams)
    assert note.startswith("these SAEs differ in trainer_class, not"), "which says it all"


@pytest.fixture
def one_more(tiny_lm_dir, text, tmp_path):
    """Trains one more SAE, on the batches of the default data seed."""

    def make(name, **sae):
        run = RunConfig(
            model=str(tiny_lm_dir),
            data=text,
            save_dir=str(tmp_path / name),
            steps=20,
            batch_size=64,
            n_ctxs=8,
            ctx_len=32,
            eval_tokens=0,
        )
        return str(train(run, {"sae": SAEConfig(k=4, **sae)})["sae"])

    return make


def test_saes_of_two_sizes_are_refused_and_nothing_else_is_said(seeds, one_more, capsys, caplog):
    wide = one_more("wide", dict_size=2 * F)
    caplog.clear()
    assert main(["reproduce", seeds[1], wide]) == 2
    assert f"wide has {2 * F} features of" in capsys.readouterr().err
    assert not caplog.records


def test_one_order_of_the_data_is_said(seeds, one_more, capsys, caplog):
    again = one_more("again", dict_size=F, seed=5)
    assert main(["reproduce", seeds[0], again]) == 0
    assert "saw the same batches: features may return for that reason" in caplog.text
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("again")]
    assert line.split()[1] == "-", "not evaluated"


def test_one_seed_is_said(seeds, tmp_path, caplog):
    again = tmp_path / "again"
    shutil.copytree(seeds[0], again)
    config = json.loads((again / "config.json").read_text())
    config["run"]["settings"]["data_seed"] = 9
    (again / "config.json").write_text(json.dumps(config))
    assert main(["reproduce", seeds[0], str(again)]) == 0
    assert "started from the same initial weights: features may return for that" in caplog.text
    assert "saw the same batches" not in caplog.text


@pytest.mark.parametrize("name", ["hook", "model"])
def test_saes_of_other_places_are_refused(name, seeds, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(seeds[1], again)
    config = json.loads((again / "config.json").read_text())
    config["run"]["settings"][name] = "another"
    (again / "config.json").write_text(json.dumps(config))
    assert main(["reproduce", seeds[0], str(again)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{again}: its run has --{name} another, but {seeds[0]} has " in error
    assert f"give SAEs of one {name}" in error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{0}", "{0}"], "is given twice"),
        (["{0}", "{0}/../seed0"], "is given twice"),
        (["{0}"], "expected two or more SAEs"),
        (["{0}", "nowhere"], "nowhere"),
        ([], "expected FOLDER"),
    ],
)
def test_a_mistake_is_one_line(given, message, seeds, capsys):
    assert main(["reproduce", *(each.format(seeds[0]) for each in given)]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
