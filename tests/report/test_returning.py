"""`vsae report --seeds`: which features come back, on the page and beside it."""

import csv
import html
import json
import re
import shutil

import numpy as np
import pytest
from report_runs import BARE, data_of, train

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import FeatureScores, reproducibility

F = 32


def measured_again(folders):
    """The measures of the SAEs in these folders, by the folders' names."""
    return reproducibility(
        {one.name: decoder_directions(load_dictionary(one)[0]) for one in folders}
    )


def test_the_features_of_the_folder_have_scores(seeded_report, seeds):
    expected = measured_again(seeds)
    data = data_of(seeded_report.read_text(encoding="utf-8"))
    ours, other = data["saes"]
    assert ours["columns"]["match"] == pytest.approx(expected.match_SF["seed0"], rel=1e-3)
    assert ours["columns"]["returns"] == expected.returns_SF["seed0"].tolist()
    assert not {"match", "returns"} & other["columns"].keys(), "it is no seed of that one"
    assert data["seeds"]["of"] == 2
    files = seeded_report.with_name("seeded_files")
    rows = list(csv.DictReader((files / "features_seed0.csv").open(encoding="utf-8")))
    assert [int(row["returns"]) for row in rows] == ours["columns"]["returns"]
    assert [float(row["match"]) for row in rows] == ours["columns"]["match"]
    assert "match" not in (files / "features_top_k.csv").read_text(encoding="utf-8")
    assert (files / "returning.png").read_bytes().startswith(b"\x89PNG")


def test_the_section_has_every_sae_and_every_pair(seeded_report, seeds):
    page = seeded_report.read_text(encoding="utf-8")
    section = page[page.index('<section id="returning">') : page.index('<section id="map">')]
    rows = [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<t[hd].*?</t[hd]>", row)]
        for row in re.findall("<tr>.*?</tr>", section, re.DOTALL)
    ]
    cells = {name: dict(zip(rows[0][1:], found, strict=True)) for name, *found in rows[1:4]}
    expected = measured_again(seeds)
    for folder in seeds:
        fve = json.loads((folder / "metrics.json").read_text())["fve"]
        assert cells[folder.name] == {
            "FVE": f"{fve:.4f}",
            "returning > 0.7": f"{expected.returning(folder.name)[0.7]:.1%}",
            "returning > 0.9": f"{expected.returning(folder.name)[0.9]:.1%}",
            "within": f"{expected.within[folder.name]:.4f}",
        }
    pairs = {name: found for name, *found in rows[5:]}
    assert list(pairs) == [
        "mean of 3 pairs",
        "seed0 – seed1",
        "seed0 – seed2",
        "seed1 – seed2",
    ]
    pair = expected.pairs["seed1", "seed2"]
    values = (pair.pw_mcc, pair.null, pair.pw_mcc - pair.null, pair.agreement)
    assert pairs["seed1 – seed2"] == [f"{value:.4f}" for value in values]
    means = np.mean([[p.pw_mcc, p.null, p.pw_mcc - p.null] for p in expected.pairs.values()], 0)
    assert pairs["mean of 3 pairs"][:3] == [f"{value:.4f}" for value in means]


def test_the_command_on_the_page_has_the_seeds(seeded_report, seeds):
    page = seeded_report.read_text(encoding="utf-8")
    assert f"vsae report {seeds[0]} --against " in page
    assert f" --seeds {seeds[1]} {seeds[2]} --tokens 600" in page


def test_without_seeds_nothing_is_said_of_them(report):
    page = report.read_text(encoding="utf-8")
    data = data_of(page)
    assert "seeds" not in data
    assert not any({"match", "returns"} & sae["columns"].keys() for sae in data["saes"])
    body = page[: page.index('<script type="text/plain"')]
    assert "come back" not in body
    assert "mean match" not in body
    assert "--seeds" not in body
    assert not (report.with_name("both_files") / "returning.png").exists()


def test_what_seeds_share_is_said_on_the_page(seeds, seeded_report, tiny_lm_dir, text, tmp_path):
    same = train(tiny_lm_dir, text, tmp_path / "same_batches", "--seed", "7", "--k", "5")
    out = tmp_path / "page.html"
    assert main(["report", str(seeds[0]), "--seeds", str(same), "--out", str(out), *BARE]) == 0
    page = html.unescape(out.read_text(encoding="utf-8"))
    assert "these SAEs differ in k, not in their seeds alone" in page
    assert f"{seeds[0]} and {same} saw the same batches: features may return for that" in page
    assert "a feature of each of\n  another SAE, so that" in page
    assert "features may return" not in seeded_report.read_text(encoding="utf-8")


def test_a_score_in_words():
    scores = FeatureScores(np.array([0.934, 0.5]), np.array([7, 0]), 7)
    assert scores.words(0) == "comes back in 7 of 7 seeds, mean match 0.93"
    assert FeatureScores(np.array([0.5]), np.array([0]), 1).words(0) == (
        "comes back in 0 of 1 seed, mean match 0.50"
    )


def test_seeds_that_can_not_be_compared_are_one_line(seeds, tiny_lm_dir, text, tmp_path, capsys):
    wider = train(tiny_lm_dir, text, tmp_path / "wider", "--dict-size", "40")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(seeds[1], unfinished)
    (unfinished / "ae.pt").unlink()
    (unfinished / "metrics.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(seeds[1], elsewhere)
    config = json.loads((elsewhere / "config.json").read_text())
    config["run"]["settings"]["hook"] = "blocks.1.hook_resid_post"
    (elsewhere / "config.json").write_text(json.dumps(config))
    out = tmp_path / "page.html"
    for others, message in (
        ([wider], "wider has 40 features of 16 dimensions, and seed0 has 32 of 16"),
        ([elsewhere], "give SAEs of one hook, which differ in their seeds"),
        ([seeds[1], seeds[1]], "is given twice"),
        ([seeds[0] / ".." / "seed0"], "is given twice"),
        ([unfinished], "not finished"),
        ([tmp_path / "nowhere"], "no such folder"),
    ):
        capsys.readouterr()
        flags = ["--seeds", *map(str, others), "--out", str(out), *BARE]
        assert main(["report", str(seeds[0]), *flags]) == 2, others
        captured = capsys.readouterr()
        error = captured.err.strip().splitlines()[-1]
        assert error.startswith("vsae: "), others
        assert message in error, error
        assert "reading" not in captured.out, "said before the contexts are read"
    assert not out.exists()


def test_a_folder_of_run_folders_takes_no_seeds(seeds, capsys):
    assert main(["report", str(seeds[0].parent), "--seeds", str(seeds[1])]) == 2
    assert "leave out all flags but --out" in capsys.readouterr().err
