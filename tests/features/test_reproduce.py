"""`vsae reproduce` on run folders: what it prints and writes, and what it warns of; and `agreement`."""

import csv
import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from measurement import codes_of_rows, of_one_setting

from dictionary_learning_ext import RunConfig, agreement, load_dictionary, train
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import ConfigError, LanguageModelError
from dictionary_learning_ext.evaluation import folders as folders_module
from dictionary_learning_ext.evaluation.metrics import METRICS, fve_of
from dictionary_learning_ext.features import reproduce as reproduce_module
from dictionary_learning_ext.features.agreement import CODE_MEASURES
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproduce import reproduce
from dictionary_learning_ext.features.reproduce_text import HEADER, answer, with_random_tokens
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.features.seeds import compare_seeds
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.run_folder.trained_on import trained_on
from dictionary_learning_ext.run_folder.weights import load_sae

D, F = 16, 32


def run_at(folder, model, text, **settings):
    sizes = {"steps": 20, "batch_size": 64, "n_ctxs": 8, "ctx_len": 32, "eval_documents": 4}
    return RunConfig(model=str(model), data=text, save_dir=str(folder), **sizes, **settings)


@pytest.fixture(scope="module")
def seeds(tiny_lm_dir, text, tmp_path_factory):
    """Three seeds of one SAE, each with a data seed of its own, and one of another k."""
    base = tmp_path_factory.mktemp("seeds")
    folders = {}
    for seed, k in ((0, 4), (1, 4), (2, 4), (3, 6)):
        run = run_at(base / f"seed{seed}", tiny_lm_dir, text, data_seed=seed, eval_tokens=500)
        sae = VSAETopKConfig(dict_size=F, k=k, seed=seed)
        folders[seed] = str(train(run, {"sae": sae})["sae"])
    return folders


def changed(folder, to, **settings):
    """A copy of a run folder, with other settings in its config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config["run"]["settings"] |= settings
    (to / "config.json").write_text(json.dumps(config))
    return str(to)


def test_the_table_is_of_the_measures(seeds, capsys, caplog):
    folders = [seeds[0], seeds[1], seeds[2]]
    assert main(["reproduce", *folders, "--all"]) == 0
    out = capsys.readouterr().out
    assert not [one for one in caplog.records if one.levelname == "WARNING"]
    names = ["seed0", "seed1", "seed2"]
    directions = {
        n: decoder_directions(load_dictionary(f)[0]) for n, f in zip(names, folders, strict=True)
    }
    expected = reproducibility(directions)
    for name in names:
        line, within = (line for line in out.splitlines() if line.startswith(name))
        fve = json.loads(Path(folders[names.index(name)], "metrics.json").read_text())["fve"]
        assert METRICS["fve"].text(fve) in line
        assert f"{expected.saes[name].within:.4f}" in within
        assert f"{expected.as_direction(name):.1%}" in line
    pw_mcc = sum(pair.pw_mcc for pair in expected.pairs.values()) / 3
    assert f"{pw_mcc:.4f}" in out
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    pairs = expected.pairs.values()
    for name, value in {
        "null": f"{sum(pair.null for pair in pairs) / 3:.4f}",
        "null's standard error": f"{sum(pair.measures['null_error'] for pair in pairs) / 3:.4f}",
        "null's draws": f"{sum(pair.measures['null_draws'] for pair in pairs) / 3:.0f}",
    }.items():
        assert rows[name] == value
    assert "mean of 3 pairs" in out


def codes_again(folders, tokens):
    """How the codes of these SAEs agree, on the held-out rows of the first one's run."""
    run = trained_on(find_sae(Path(folders[0])))
    x = t.cat([*open_inputs(run, [run.hook]).held_out(run.hook, tokens).batches])
    saes = {Path(folder).name: load_dictionary(folder)[0] for folder in folders}
    directions = {name: decoder_directions(sae) for name, sae in saes.items()}
    return reproducibility(directions, {name: codes_of_rows(sae, x) for name, sae in saes.items()})


def test_codes_are_compared_on_held_out_tokens(seeds, capsys):
    """As many as the runs' own evaluations have, 500, unless others are asked for."""
    folders = [seeds[0], seeds[1], seeds[2]]
    expected = codes_again(folders, 500)
    assert main(["reproduce", *folders, "--all"]) == 0
    out = capsys.readouterr().out
    lines = [
        line.rsplit("  ", 1) for line in out[out.index("on 500 held-out tokens") :].splitlines()
    ]
    shown = {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}
    means = expected.means()
    assert 0 < means["direction_energy"] < 1
    for measure in CODE_MEASURES:
        assert shown[measure.label] == measure.text(means[measure.key])
    assert main(["reproduce", *folders[:2], "--json", "--tokens", "1000"]) == 0
    found = of_one_setting(capsys.readouterr().out)
    of_pair = codes_again(folders[:2], 1000).pair.measures
    assert found["tokens"] == 1000
    assert {key: found["pairs"][0][key] for key in of_pair} == pytest.approx(of_pair)
    assert found["mean"].keys() == found["pairs"][0].keys() - {"saes"}
    assert found["warnings"] == []
    in_python = reproduce(folders[:2], tokens=1000).pairs["seed0", "seed1"].measures
    assert in_python == {k: v for k, v in found["pairs"][0].items() if k != "saes"}


def test_without_tokens_no_language_model_is_needed(seeds, tmp_path, capsys):
    gone = [changed(seeds[i], tmp_path / f"gone{i}", model="not/here") for i in (0, 1)]
    assert main(["reproduce", *gone]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "not/here" in error
    assert "use tokens=0 " in error
    assert main(["reproduce", *gone, "--tokens", "0"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"as a direction +in what they do +near-dead < 0\.1 +FVE\n-+\n.* - +- +0\.\d+$", out, re.M
    )
    path = tmp_path / "features.csv"
    assert main(["reproduce", *gone, "--tokens", "0", "--json", "--csv", str(path)]) == 0
    found = of_one_setting(capsys.readouterr().out)
    assert found["tokens"] == 0
    assert "jaccard" not in found["mean"]
    of_feature = next(csv.DictReader(path.open()))
    assert "direction_match" in of_feature
    assert not {"error_share", "function_in", "token_cosine"} & of_feature.keys()
    assert main(["reproduce", *gone, "--tokens", "-1"]) == 2
    assert "tokens=-1" in capsys.readouterr().err
    with pytest.raises(LanguageModelError, match="tokens=0"):
        reproduce(gone, tokens=None)


def test_seeds_that_read_different_texts_are_compared_on_the_first_ones(
    seeds, text, tmp_path, caplog
):
    other = Path(text).with_name("other.txt")
    other.write_text(Path(text).read_text() + "More. ")
    elsewhere = changed(seeds[1], tmp_path / "elsewhere", data=str(other))
    with caplog.at_level(logging.WARNING):
        found = reproduce([seeds[0], elsewhere], tokens=500)
    assert "other text" in caplog.text
    assert found.tokens
    caplog.clear()
    earlier = changed(seeds[1], tmp_path / "earlier")
    config = json.loads((path := Path(earlier) / "config.json").read_text())
    del config["run"]["settings"]["text_column"]  # of a run before there was the setting
    path.write_text(json.dumps(config))
    assert reproduce([seeds[0], earlier], tokens=500).tokens
    assert "other text" not in caplog.text
    expected = reproduce([seeds[0], seeds[1]], tokens=500)
    assert found.pair.measures == pytest.approx(expected.pair.measures)


def test_one_folder_is_ordered_by_error_share(seeds, tmp_path, capsys):
    (codes,) = folders_module.open_folders([seeds[0]]).codes(600).values()
    share_F = codes.error_share_F
    assert main(["reproduce", seeds[0], "--tokens", "600"]) == 0
    out = capsys.readouterr().out
    shown = re.findall(r"^ *(\d+)  +([\d.]+)%", out, re.M)
    assert [int(feature) for feature, _ in shown] == np.argsort(-share_F)[:10].tolist()
    assert [float(share) / 100 for _, share in shown] == pytest.approx(
        sorted(share_F, reverse=True)[:10], abs=1e-4
    )
    assert f"wrote {Path(seeds[0]) / 'features.csv'}" in out
    with (Path(seeds[0]) / "features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["feature", "firing_rate", "error_share", "token_cosine"]
    assert [float(row["error_share"]) for row in rows] == pytest.approx(share_F, rel=1e-4)
    assert main(["reproduce", seeds[0], "--tokens", "600", "--csv", str(tmp_path / "a.csv")]) == 0
    written = [path.read_text() for path in (tmp_path / "a.csv", Path(seeds[0]) / "features.csv")]
    assert written[0] == written[1]
    capsys.readouterr()
    assert main(["reproduce", seeds[0], "--tokens", "600", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error_share"] == share_F.tolist()


def normalized(dictionary):
    return t.nn.functional.normalize(decoder_directions(dictionary), dim=1)


def test_json_and_the_features_csv(seeds, tmp_path, capsys):
    path = tmp_path / "new" / "features.csv"
    assert main(["reproduce", seeds[0], seeds[1], "--json", "--csv", str(path)]) == 0
    found = of_one_setting(capsys.readouterr().out)
    expected = reproduce([seeds[0], seeds[1]])
    (pair,) = found["pairs"]
    assert pair["saes"] == ["seed0", "seed1"]
    of_pair = expected.pairs["seed0", "seed1"]
    for name in ("pw_mcc", "null", "null_error", "null_draws"):
        assert pair[name] == found["mean"][name] == of_pair.measures[name]
    assert found["mean"]["pw_mcc_less_null"] == of_pair.pw_mcc - of_pair.null
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 2 * F
    scores = [float(row["direction_match"]) for row in rows if row["sae"] == "seed1"]
    assert scores == pytest.approx(expected.scores("seed1").match_F, abs=1e-4)
    assert {row["of"] for row in rows} == {"1"}
    assert {row["random_match"] for row in rows} == {f"{of_pair.random_cosine_f.mean():.4f}"}


def test_what_else_than_the_seeds_may_make_features_return_is_said(seeds, tmp_path, caplog, capsys):
    for other, note in (
        (seeds[3], " k,"),
        (changed(seeds[1], tmp_path / "same_batches", data_seed=0), "--data-seed"),
        (changed(seeds[1], tmp_path / "same_seed", seed=0), "--seed"),
    ):
        caplog.clear()
        capsys.readouterr()
        assert main(["reproduce", seeds[0], other, "--json"]) == 0
        (line,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
        assert note in line
        assert line in of_one_setting(capsys.readouterr().out)["warnings"]


def rows_of(table):
    """The cells of the table of `vsae reproduce`, by the row's name and the column's."""
    lines = re.split("\n-+\n", table.partition("\n\n")[0])[1].splitlines()
    rows = {name: cells for name, *cells in (re.split("  +", line) for line in lines)}
    return {name: dict(zip(HEADER, cells, strict=True)) for name, cells in rows.items()}


def test_each_setting_is_a_row_whatever_the_order_and_the_rest_is_said(
    seeds, tmp_path, caplog, capsys
):
    other = changed(seeds[3], tmp_path / "seed4", seed=4, data_seed=4)
    alone = changed(seeds[3], tmp_path / "alone", k=5)
    folders = [seeds[0], other, seeds[1], seeds[3], alone]
    expected = {
        "vSAE k=4": reproduce([seeds[0], seeds[1]], 500),
        "vSAE k=6": reproduce([seeds[3], other], 500),
    }
    for given in (folders, folders[::-1]):
        caplog.clear()
        capsys.readouterr()
        assert main(["reproduce", *given, "--tokens", "500"]) == 0
        out = capsys.readouterr().out
        rows = rows_of(out)
        assert rows.keys() == {*expected, "random tokens, L0 4", "random tokens, L0 6"}
        for name, found in expected.items():
            assert rows[name]["as a direction"] == f"{found.as_direction():.1%}"
            assert rows[name]["in what they do"] == f"{found.in_function():.1%}"
        assert "of vSAE k=6 features" in " ".join(out.split())
        assert "the settings differ in k: what comes back" in caplog.text
        assert f"{alone}: left out" in caplog.text
    assert main(["reproduce", *folders, "--tokens", "500", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["warnings"]) == 2
    mean = found["settings"]["vSAE k=6"]["mean"]["in_function"]
    assert mean == expected["vSAE k=6"].in_function()


def test_saes_of_which_no_two_are_of_one_setting_are_compared_in_pairs(seeds, tmp_path, capsys):
    third = changed(seeds[1], tmp_path / "third", lr=0.5)
    assert main(["reproduce", seeds[0], seeds[3], third, "--tokens", "0"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ["seed0 and seed3", "seed0 and third", "seed3 and third"]
    assert (
        rows["seed0 and third"]["as a direction"]
        == f"{reproduce([seeds[0], third]).as_direction():.1%}"
    )


def test_a_folder_of_run_folders_stands_for_those_in_it_that_are_finished(
    seeds, tmp_path, caplog, capsys
):
    both = tmp_path / "both"
    for seed in (0, 1, 2):
        shutil.copytree(seeds[seed], both / f"seed{seed}")
    (both / "seed2" / "ae.pt").unlink()
    assert main(["reproduce", str(both), "--tokens", "500"]) == 0
    assert rows_of(capsys.readouterr().out)["vSAE"]["in what they do"] == (
        f"{reproduce([seeds[0], seeds[1]], 500).in_function():.1%}"
    )
    assert f"not finished: {both / 'seed2'}" in caplog.text


def test_saes_of_two_sizes_are_matched_on_the_smaller(seeds, tiny_lm_dir, text, tmp_path, capsys):
    run = run_at(tmp_path / "wide", tiny_lm_dir, text, eval_tokens=0)
    wide = str(train(run, {"sae": VSAETopKConfig(k=4, dict_size=2 * F, seed=9)})["sae"])
    path = tmp_path / "features.csv"
    capsys.readouterr()
    assert main(["reproduce", seeds[1], wide, "--tokens", "500", "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert "These SAEs differ in size" in out
    found = reproduce([seeds[1], wide], 500)
    assert any("differ in dict_size" in note for note in found.notes)
    assert (found.pair.cosines[1] > 0).sum() == F
    assert found.as_direction("wide") == found.as_direction("seed1") / 2
    rows = list(csv.DictReader(path.open()))
    assert [row["sae"] for row in rows] == ["seed1"] * F + ["wide"] * 2 * F
    assert sum(row["direction_match"] == "0.0000" for row in rows) == F
    ours, theirs = rows[:F], rows[F:]
    unit = [normalized(load_dictionary(one)[0]) for one in (seeds[1], wide)]
    for row in ours:
        number = int(row["match_in_wide"])
        cosine = abs(float(unit[0][int(row["feature"])] @ unit[1][number]))
        assert float(row["direction_match"]) == pytest.approx(cosine, abs=1e-4)
        assert theirs[number]["match_in_seed1"] == row["feature"]
    assert sum(row["match_in_seed1"] == "" for row in theirs) == F
    assert {row["match_in_seed1"] for row in ours} == {""}, "its own"


def test_each_sae_is_loaded_once(seeds, monkeypatch):
    loaded = []

    def load(folder, *given, **more):
        loaded.append(folder.name)
        return load_sae(folder, *given, **more)

    monkeypatch.setattr(reproduce_module, "load_sae", load)
    monkeypatch.setattr(folders_module, "load_sae", load)
    reproduce([seeds[0], seeds[1]], tokens=500)
    assert loaded == [seeds[0], seeds[1]]


def test_other_contexts_are_compared_on_the_first_ones(seeds, tmp_path, caplog):
    other = changed(seeds[1], tmp_path / "other", ctx_len=16, text_packing="truncate")
    with caplog.at_level(logging.WARNING):
        found = reproduce([seeds[0], other], tokens=500)
    assert (
        f"other: read in the contexts of {seeds[0]} (text_packing=pack, ctx_len=32" in caplog.text
    )
    expected = reproduce([seeds[0], seeds[1]], tokens=500)
    assert found.pair.measures == pytest.approx(expected.pair.measures)


def test_the_sentence_names_each_setting_where_folders_have_the_same_names(seeds, tmp_path, capsys):
    """In two folders of seeds, each of one k."""
    folders = [
        changed(seeds[of], tmp_path / parent / f"seed{seed}", seed=seed, data_seed=seed)
        for parent, of in (("a", 0), ("b", 3))
        for seed in (0, 1)
    ]
    assert main(["compare", *folders]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of vSAE k=4 features come back as a direction" in said
    assert "of vSAE k=6 features" in said


def test_nothing_is_written_beside_saes_whose_codes_are_not_kept(seeds, tmp_path):
    two = [shutil.copytree(seeds[seed], tmp_path / f"seed{seed}") for seed in (0, 1)]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert reproduce(two, tokens=700, keep=False).random_tokens is not None
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_sae_trained_from_a_cache_is_compared_on_the_text_of_the_first(seeds, tmp_path):
    cached = changed(seeds[1], tmp_path / "cached", activations=str(tmp_path / "deleted_cache"))
    expected = reproduce([seeds[0], seeds[1]], tokens=500)
    found = reproduce([seeds[0], cached], tokens=500)
    assert found.pair.measures == pytest.approx(expected.pair.measures)


def test_the_fve_is_that_of_the_codes_compared_or_else_of_an_evaluation_of_these_weights(
    seeds, tmp_path
):
    again, other = (shutil.copytree(seeds[1], tmp_path / name) for name in ("again", "other"))
    evaluated = json.loads((again / "metrics.json").read_text())["fve"]
    found = reproduce([seeds[0], again], 300)
    codes = found.saes["again"].codes
    assert codes is not None
    assert found.numbers("again")["fve"] == fve_of(codes) != evaluated
    assert reproduce([seeds[0], again]).numbers("again")["fve"] == evaluated, "directions alone"
    shutil.copy(Path(seeds[2]) / "ae.pt", other)
    assert reproduce([seeds[0], other]).numbers("other")["fve"] is None


def test_what_comes_back_is_known_of_folders_with_other_seeds_of_their_setting(seeds, tmp_path):
    """seeds[3] has another k. Of a seed that is there twice the first is compared."""
    configs = {folder: find_sae(folder) for folder in seeds.values()}
    ((folders, found),) = compare_seeds(configs)
    alike = [seeds[0], seeds[1], seeds[2]]
    assert folders == alike
    expected = reproduce(alike)
    for one in alike:
        share = expected.as_direction(Path(one).name)
        assert found.as_direction(Path(one).name) == pytest.approx(share)
    assert not [*compare_seeds({one: configs[one] for one in (seeds[0], seeds[3])})]
    twice = changed(seeds[1], tmp_path / "twice")
    ((folders, found),) = compare_seeds(configs | {twice: find_sae(twice)})
    assert folders == [*alike, twice]
    assert len(found.names) == 3


def test_what_they_do_is_compared_where_codes_on_one_text_are_kept(seeds, tmp_path):
    alike = [str(shutil.copytree(seeds[n], tmp_path / f"seed{n}")) for n in (0, 1)]
    for one in alike:
        shutil.rmtree(Path(one) / "codes", ignore_errors=True)
    configs = {one: find_sae(one) for one in alike}
    ((_, found),) = compare_seeds(configs)
    assert found.in_function() is None
    expected = reproduce(alike, 300).in_function()
    ((_, found),) = compare_seeds(configs)
    assert found.in_function() == expected


# --- agreement


@pytest.fixture
def saes():
    t.manual_seed(0)
    return AutoEncoderTopK(8, 12, 2), AutoEncoderTopK(8, 12, 2)


def test_it_is_the_reproducibility_of_the_two(saes):
    a, b = saes
    found = agreement(a, b)
    expected = reproducibility({"a": a.decoder.weight.data.T, "b": b.decoder.weight.data.T})
    assert found.names == ["a", "b"]
    assert found.pair.pw_mcc == pytest.approx(expected.pairs["a", "b"].pw_mcc, abs=1e-6)
    assert found.pair.null == pytest.approx(expected.pairs["a", "b"].null, abs=1e-6)
    assert found.as_direction("b") == expected.as_direction("b")
    assert f"{found.pair.pw_mcc:.4f}" in repr(found)


def test_run_folders_are_loaded_and_what_makes_them_alike_is_said(trained, caplog):
    with caplog.at_level(logging.WARNING):
        found = agreement(trained / "vsae", str(trained / "top_k"))
    assert "same batches" in caplog.text
    mixed = agreement(load_dictionary(trained / "vsae")[0], trained / "top_k")
    assert mixed.pair.pw_mcc == found.pair.pw_mcc
    with pytest.raises(ConfigError, match="vsae"):
        agreement(trained / "vsae", f"{trained / 'vsae'}/../vsae")


def test_own_batches_have_no_data_seed(trained, tmp_path, caplog):
    for name in ("vsae", "top_k"):
        path = shutil.copytree(trained / name, tmp_path / name) / "config.json"
        content = json.loads(path.read_text())
        content["run"]["settings"] |= {"model": "unknown"}
        path.write_text(json.dumps(content))
    agreement(tmp_path / "vsae", tmp_path / "top_k")
    assert "your own" in caplog.text
    assert "--data-seed" not in caplog.text


def numbers(direction, function=None, fve=None, back=None, l0=None):
    shares = {"as_direction": direction, "in_function": function}
    return {"in_function_fve": back, **shares, "fve": fve, "l0": l0}


@pytest.mark.parametrize(
    ("saes", "chance", "said"),
    [
        ({"vSAE": numbers(0.346, None, 0.869)}, [], "0.869 35% 2%"),
        (
            {"vSAE": numbers(0.346, 0.3, 0.869, 0.67), "TopK": numbers(0.2, 0.1, 0.87, 0.57)},
            [numbers(0.34, 0.42, 0.716, 0.33)],
            "67% 57% 33% 0.869 0.870 35% 30% 20% 10% 34% 42% 0.72",
        ),
        (
            {"vSAE": numbers(0.346, None, 0.86), "TopK": numbers(0.2, None, 0.87)},
            [],
            "0.860 0.870 35% 20% 2%",
        ),
        (
            {"vSAE": numbers(0.5, 0.4, 0.9, -0.1, 16), "ReLU": numbers(0.3, 0.2, 0.8, 0.7, 23.44)},
            [numbers(0.34, 0.42, -9, -3.78, 16), numbers(0.1, 0.2, 0.5, 0.4, 23)],
            "none 70% none 40% 0.900 0.800 50% 40% 30% 20% 16.0 23.4 34% 42% -9.00 16 10% 20% 0.50 23",
        ),
    ],
)
def test_the_answer_says_these_numbers(saes, chance, said):
    assert re.findall(r"none|(?<!L)-?\d+(?:\.\d+)?%?", answer(saes, chance, 0.02)) == said.split()


def test_settings_with_the_same_random_tokens_share_their_row():
    known = [numbers(s, l0=10 * s) | {"near_dead_0.1": 0.0} for s in (0.1, 0.1, 0.2)]
    rows = [(SimpleNamespace(random_tokens=own), [["a"], ["b"]]) for own in (*known, None)]
    found = with_random_tokens(rows)
    chance = ["random tokens, L0 1", "random tokens, L0 2"]
    assert [line[0] for line in found] == [*"abab", chance[0], *"ab", chance[1], *"ab"]
    assert [line[2] for line in found if len(line) > 1] == ["10.0%", "20.0%"]
