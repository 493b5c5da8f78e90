"""The report: what is in the page and beside it, that it repeats, hostile text, and one-line errors."""

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as t
from measurement import codes_of_rows
from report_runs import QUICK, VSAE, data_of, train
from small_commands import refused

from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.evaluation.metrics import fve_of
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproduce_text import HEADER
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.run_folder.weights import load_dictionary


def test_the_page_holds_everything_and_loads_nothing(report):
    page = report.read_text(encoding="utf-8")
    data = data_of(page)
    assert [sae["label"] for sae in data["saes"]] == ["vsae", "top_k"]
    for sae in data["saes"]:
        columns = sae["columns"]
        assert {len(column) for column in columns.values()} == {32}
        live = [i for i, rate in enumerate(columns["firing_rate"]) if rate]
        assert sorted(map(int, sae["pages"])) == live
        assert [line["step"] for line in sae["history"]] == [0, 10, 20, 30]
        for feature, one in sae["pages"].items():
            best = one["top"][0]
            assert best[0] == columns["max"][int(feature)]
            assert dict(zip(best[4][::2], best[4][1::2], strict=True))[best[2]] == pytest.approx(
                best[0], rel=1e-2
            )
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "How they compare" in page
    assert "Example features" in page
    assert page.count("<h2") >= 7


def test_the_page_says_what_was_measured(report, runs):
    page = report.read_text(encoding="utf-8")
    for folder in runs:
        metrics = json.loads((folder / "metrics.json").read_text())
        assert f"{metrics['fve']:.4f}" in page
    assert f"vsae report {runs[0]} --against {runs[1]} --tokens 600 --split train" in page
    assert f"--out {report}" in page


def test_a_former_report_stays_whole_while_the_next_is_written(runs, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    command = ["report", str(runs[0]), "--out", str(out), *QUICK]
    assert main([*command, "--tokens", "300"]) == 0
    former = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.name != ".lock"}
    files = out.with_name("page_files")
    opened = Path.open

    def half(file):
        opened(Path(file), "wb").write(b"half")
        raise KeyboardInterrupt

    for killed in (files / "features_vsae.csv", out):

        def is_it(file, killed=killed):
            return killed.name in str(file)

        with monkeypatch.context() as patched:
            patched.setattr(
                Path,
                "open",
                lambda self, *how, **more: (
                    half(self) if is_it(self) else opened(self, *how, **more)
                ),
            )
            assert main(command) == 130
        assert former[out] == out.read_bytes()
        killed.with_name(f".{killed.name}.89abcdef").mkdir()
    assert former[files / "features_vsae.csv"]
    assert main(command) == 0
    assert former.keys() == {path for path in tmp_path.rglob("*.*") if path.name != ".lock"}


@pytest.mark.slow
def test_the_command_on_the_page_writes_it_again(runs, tmp_path):
    """Every flag that was given is in it, and none beside."""
    model = json.loads((runs[0] / "config.json").read_text())["run"]["settings"]["model"]
    where = ["--out", str(tmp_path / "a page.html"), "--model", model]
    assert main(["report", str(runs[0]), *QUICK, *where]) == 0
    page = (tmp_path / "a page.html").read_text(encoding="utf-8")
    command = html.unescape(re.search(r"<code>vsae report (.*?)</code>", page)[1])
    folder, *flags = shlex.split(command)
    assert folder == str(runs[0])
    assert dict(pairwise_of(flags)) == dict(pairwise_of([*QUICK, *where]))

    plain = shutil.copytree(runs[0], tmp_path / "run")
    assert main(["report", f"{plain}/", *QUICK]) == 0  # as a shell completes it
    page = (plain / "report.html").read_text(encoding="utf-8")
    assert "--out" not in page
    assert "--device" not in page


def pairwise_of(flags):
    return list(zip(flags[::2], flags[1::2], strict=True))


@pytest.mark.slow
def test_two_reports_of_a_run_differ_only_in_their_time(report, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dictionary_learning_ext.report.page.time.strftime", lambda *a: "another time"
    )
    out = tmp_path / "both.html"
    command = ["report", str(runs[0]), "--against", str(runs[1]), "--out", str(out), *QUICK]
    assert main(command) == 0

    def lines(path):
        return [
            line.replace(str(path), "PAGE")
            for line in path.read_text(encoding="utf-8").splitlines()
            if "<time>" not in line
        ]

    assert lines(out) == lines(report)
    assert out.read_text(encoding="utf-8") != report.read_text(encoding="utf-8")
    files = sorted(path.name for path in out.with_name("both_files").iterdir())
    assert len(files) >= 2
    for name in files:
        ours, theirs = (one.with_name("both_files") / name for one in (out, report))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_hostile_text_stays_text(hostile_report):
    page = hostile_report.read_text(encoding="utf-8")
    assert "owned'</script>" not in page
    assert "<img src=x" not in page
    assert "<b>bold" not in page
    assert "\u202e" not in page
    assert "\x07" not in page
    assert "x" * 1000 not in page
    data = data_of(page)
    shown = "\n".join(data["tokens"])
    assert "</script><script>" in shown  # in the data, where it is not markup
    assert "‹U+202E›" in shown
    assert "(30,000 characters)" in shown
    assert "{{ 7 * 7 }}" in shown
    assert data["saes"][0]["label"] == "<b>bold & 'quoted'"


def features_csv(report, label):
    path = report.with_name("page_files") / f"features_{label}.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_without_live_features_has_a_report(runs, tmp_path):
    dead = shutil.copytree(runs[1], tmp_path / "dead")
    (dead / "metrics.jsonl").unlink()
    (dead / "metrics.json").unlink()
    state = t.load(dead / "ae.pt")
    state["encoder.weight"].zero_()
    state["encoder.bias"].fill_(-1.0)
    t.save(state, dead / "ae.pt")
    assert main(["report", str(dead), "--out", str(dead / "page.html"), *QUICK]) == 0
    page = (dead / "page.html").read_text(encoding="utf-8")
    assert '<td role="cell">0 of 32</td>' in page


@pytest.mark.slow
def test_mistakes_are_one_line(runs, lm_dir_of, tmp_path, capsys):
    other = shutil.copytree(runs[1], tmp_path / "llama")
    config = json.loads((other / "config.json").read_text())
    config["run"]["settings"]["model"] = str(lm_dir_of("llama"))
    (other / "config.json").write_text(json.dumps(config))
    damaged = shutil.copytree(runs[0], tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text("{")
    (tmp_path / "file").write_text("")
    ours = str(runs[0])
    beneath = str(tmp_path / "file" / "x.html")
    for flags, named in (
        ([str(tmp_path / "none")], str(tmp_path / "none")),
        ([ours, "--against", str(other)], f"{other} has model="),
        ([ours, "--model", "embedded"], "128"),
        ([ours, "--tokens", "0"], "tokens=0"),
        ([ours, "--data", "./none.txt"], "./none.txt"),
        ([str(damaged), *QUICK], "metrics.jsonl"),
        ([ours, *QUICK, "--out", beneath], beneath),
    ):
        assert named in refused(["report", *flags], capsys), flags


def test_the_sae_that_is_shown_is_the_folders(runs, report):
    """The page's maxima are those of a direct pass over the same tokens."""
    sae, config = load_dictionary(runs[1])
    settings = config["run"]["settings"]
    model = load_language_model(settings["model"])
    stream = ContextStream(open_text(settings["data"]), model.tokenizer, settings["ctx_len"])
    ids, _ = stream.next_batch(-(-600 // settings["ctx_len"]))
    with t.no_grad():
        states = model._module(input_ids=ids, output_hidden_states=True).hidden_states[1]
        features = sae.encode(states.flatten(0, 1)[:600])
    page_max = data_of(report.read_text(encoding="utf-8"))["saes"][1]["columns"]["max"]
    for i, largest in enumerate(features.max(0).values.tolist()):
        assert (page_max[i] or 0.0) == pytest.approx(largest, rel=2e-3, abs=1e-5)


# --- `--seeds`: which features come back


def measured_again(folders):
    """The measures of the SAEs in these folders, by the folders' names."""
    return reproducibility(
        {one.name: decoder_directions(load_dictionary(one)[0]) for one in folders}
    )


@pytest.mark.slow
def test_the_features_of_the_folder_have_scores(seeded_report, seeds):
    expected = measured_again(seeds).scores("seed0")
    data = data_of(seeded_report.read_text(encoding="utf-8"))
    ours, other = data["saes"]
    columns = ours["columns"]
    assert columns["direction_match"] == pytest.approx(expected.match_F, rel=1e-3)
    assert columns["as_direction_in"] == expected.returns_F.tolist()
    assert max(columns["correlation"]) <= 1
    own = {"direction_match", "as_direction_in", "function_in", "correlation"}
    assert not own & other["columns"].keys(), "it is no seed of that one"
    assert ours["seeds"]["of"] == 2
    assert ours["seeds"]["random"] == pytest.approx(expected.random, abs=5e-5)
    assert "seeds" not in other
    assert f" --seeds {seeds[1]} {seeds[2]} --tokens 600" in seeded_report.read_text("utf-8")
    files = seeded_report.with_name("seeded_files")
    rows = list(csv.DictReader((files / "features_seed0.csv").open(encoding="utf-8")))
    assert [int(row["as_direction_in"]) for row in rows] == columns["as_direction_in"]
    assert [int(row["function_in"]) for row in rows] == columns["function_in"]
    assert [float(row["correlation"]) for row in rows] == columns["correlation"]
    assert "correlation" not in (files / "features_top_k.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_section_has_every_sae_with_both_shares(seeded_report, seeds):
    page = seeded_report.read_text(encoding="utf-8")
    section = page[page.index('<section id="come-back">') : page.index('<section id="features">')]
    rows = [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<t[hd].*?</t[hd]>", row)]
        for row in re.findall("<tr>.*?</tr>", section, re.DOTALL)
    ]
    expected = measured_again(seeds)
    assert rows[0] == ["SAE", *HEADER]
    codes = open_folders([*seeds]).codes(600, split="train")  # as QUICK says
    for folder, row in zip(seeds, rows[1:4], strict=True):
        fve = fve_of(codes[str(folder)])
        assert fve is not None
        share = expected.as_direction(folder.name)
        assert row == [folder.name, row[1], f"{share:.1%}", *row[3:5], f"{fve:.4f}"]
        assert 0 <= float(row[1]) <= fve
        assert re.search(rf"\d+% of {folder.name}[,.]", section)
    (said,) = re.findall(r'<p class="answer">(.*?)</p>', page, re.DOTALL)
    said = " ".join(said.split())
    assert "of the variance" in said
    assert "as a direction" not in said, "one number, the FVE"
    of_one_token = [int(share) for share in re.findall(r"(\d+)% of seed", section)]
    assert ("one token each" in said) == (np.mean(of_one_token) > 50)
    mean = np.mean([expected.as_direction(name) for name in expected.names])
    assert f"{mean:.0%} of " in section


def test_without_seeds_nothing_is_said_of_them(report):
    page = report.read_text(encoding="utf-8")
    data = data_of(page)
    assert not any("seeds" in sae for sae in data["saes"])
    own = {"direction_match", "as_direction_in", "function_in", "correlation"}
    assert not any(own & sae["columns"].keys() for sae in data["saes"])
    body = page[: page.index('<script type="text/plain"')]
    assert not re.search("These come back|comes back|--seeds|other seed", body)


def test_features_have_the_error_share_of_the_tokens_of_the_page(report, runs):
    """On the page and beside it, without other seeds."""
    (batch,) = open_folders(runs).inputs.contexts("blocks.0.hook_resid_post", "train", 600)
    data = data_of(report.read_text(encoding="utf-8"))
    for folder, sae in zip(runs, data["saes"], strict=True):
        codes = codes_of_rows(load_dictionary(folder)[0], batch.wanted_ND)
        own = sae["columns"]["error_share"]
        assert own == pytest.approx(codes.error_share_F, rel=1e-3)
        path = report.with_name("both_files") / f"features_{folder.name}.csv"
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
        assert [float(row["error_share"]) for row in rows] == own


def test_an_sae_of_one_feature_has_a_page(tiny_lm_dir, text, tmp_path):
    flags = ["--dict-size", "1", "--k", "1", "--noise-to-signal", "0.3"]
    folder = train(tiny_lm_dir, text, tmp_path / "one", *flags)
    assert main(["report", str(folder), *QUICK]) == 0


@pytest.mark.slow
def test_what_seeds_share_is_said_on_the_page(seeds, seeded_report, tiny_lm_dir, text, tmp_path):
    same = train(tiny_lm_dir, text, tmp_path / "same_batches", "--seed", "7", "--k", "5", *VSAE)
    out = tmp_path / "page.html"
    assert main(["report", str(seeds[0]), "--seeds", str(same), "--out", str(out), *QUICK]) == 0
    page = html.unescape(out.read_text(encoding="utf-8"))
    assert "differ in k," in page
    assert f"{seeds[0]} and {same} saw " in page
    assert " saw the same " not in html.unescape(seeded_report.read_text(encoding="utf-8"))
