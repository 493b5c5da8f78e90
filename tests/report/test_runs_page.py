"""The page about a folder of run folders, and a sweep's results as text, CSV and a page."""

import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from dictionary_learning_ext import reproduce
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.report import runs_page
from dictionary_learning_ext.report.many_runs import RunResult, from_folder
from dictionary_learning_ext.report.runs_page import show_sweep
from dictionary_learning_ext.run_folder.sae_folder import SAEFolder


@pytest.fixture
def folder(runs, tmp_path):
    """Two run folders, and one that is not finished."""
    for run in runs:
        shutil.copytree(run, tmp_path / "saes" / run.name)
    shutil.copytree(runs[0], tmp_path / "saes" / "begun")
    (tmp_path / "saes" / "begun" / "ae.pt").unlink()
    return tmp_path / "saes"


def rows_of(page):
    """The table's cells, by the name of the SAE."""
    head, *rows = (
        [unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<t[hd].*?</t[hd]>", row)]
        for row in re.findall("<tr>.*?</tr>", page, re.DOTALL)
    )
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}


def change(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def index_of(folder):
    """Write the index page of a folder; return its HTML."""
    assert main(["report", str(folder)]) == 0
    return (folder / "index.html").read_text(encoding="utf-8")


def seeds_on(page):
    """The rows of the table of settings with several seeds, by the first setting."""
    section = page[page.index("<h2>Settings with several seeds") :]
    return rows_of(section[: section.index("</table>")])


def test_seeds_of_several_hook_points_have_a_page(folder, capsys):
    """As `vsae train --seeds` with several --hook writes them."""
    both = folder.with_name("both")
    for seed in ("seed0", "seed1"):
        shutil.copytree(folder, both / seed)
    capsys.readouterr()
    rows = rows_of(index_of(both))
    assert list(rows) == [
        f"{seed}/{name}" for seed in ("seed0", "seed1") for name in ("top_k", "vsae")
    ]


def test_it_has_every_saes_metrics_and_what_differs(folder, runs, capsys):
    page = index_of(folder)
    assert f"wrote {folder / 'index.html'}" in capsys.readouterr().out
    rows = rows_of(page)
    assert list(rows) == ["top_k", "vsae"]
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        assert rows[run.name]["FVE"] == f"{metrics['fve']:.4f}"
    assert rows["top_k"]["architecture"] == "top_k"
    assert rows["vsae"]["architecture"] == "vsae_top_k"
    assert "hook" not in rows["vsae"]
    assert "begun (not finished)" in page


def test_a_setting_that_differs_is_a_column(folder):
    def cut(it):
        it["run"]["settings"]["lr"] = 0.5

    change(folder / "top_k" / "config.json", cut)
    (folder / "vsae" / "metrics.json").unlink()
    rows = rows_of(index_of(folder))
    assert rows["top_k"]["lr"] == "0.5"
    assert rows["vsae"]["FVE"] == "-", "not measured"


def test_the_seeds_of_a_setting_are_compared(seeds, runs, tmp_path):
    folder = tmp_path / "saes"
    for run in [*seeds, runs[1]]:
        shutil.copytree(run, folder / run.name)
    shutil.copytree(seeds[0], folder / "copy")
    page = index_of(folder)
    expected = reproduce(seeds)
    (row,) = seeds_on(page).values()
    assert row["n"] == "3", "a copy of an SAE is no seed of it"
    assert row["as a direction"] == f"{expected.as_direction():.1%}"
    fve = [json.loads((one / "metrics.json").read_text())["fve"] for one in seeds]
    assert row["FVE"] == f"{np.mean(fve):.4f} ± {np.std(fve, ddof=1):.4f}"
    assert list(seeds_on(page)) == ["vsae_top_k"]
    assert "seed" not in row
    results = show_sweep(from_folder(folder), tmp_path)
    assert " (n = 3)" in results, "a copy is none here, either"
    (chance,) = re.findall(
        "^Random tokens, untrained, at .*, k=4: .*% as a direction.*$", results, re.M
    )
    assert "Random tokens" not in page, "an index reads no text"
    assert chance in unescape(index_of(folder)), "but shows what is kept"
    assert "same batches" not in page


def test_seeds_that_saw_the_same_batches_are_marked(seeds, tmp_path):
    """In a sweep's results, printed and on their page."""
    folder = tmp_path / "saes"
    for run in seeds[:2]:
        shutil.copytree(run, folder / run.name)
        change(
            folder / run.name / "config.json", lambda it: it["run"]["settings"].update(data_seed=0)
        )
    text = show_sweep(from_folder(folder), tmp_path)
    assert "% *" in text.splitlines()[2]
    assert "* some of these seeds saw the same batches, and features may come back" in text
    assert "same batches" in (tmp_path / "results.html").read_text()


def test_a_damaged_folder_is_left_out_and_the_others_are_there(folder, runs):
    shutil.copytree(runs[0], folder / "cut")
    (folder / "cut" / "config.json").write_text('{"trainer": ')
    shutil.copytree(runs[0], folder / "wrong")
    change(folder / "wrong" / "config.json", lambda it: it["run"]["settings"].update(k="many"))
    shutil.copytree(runs[0], folder / "unread")
    (folder / "unread" / "metrics.json").write_text("{")
    page = unescape(index_of(folder))
    assert list(rows_of(page)) == ["top_k", "vsae"]
    words = page[page.index("Not in the table") :]
    assert re.search(r"cut \(\S+config.json: ", words)
    assert re.search(r"wrong \(\S+config.json: damaged \(run.settings.k: ", words)
    assert re.search(r"unread \(\S+metrics.json: ", words)


# --- a sweep's results


def row(k, length, seed=0, **settings):
    settings = {"k": k, "seed": seed, "lr": 0.001, **settings}
    name, metrics = f"k{k}_{length}", {"description_length": length, "fve": 0.5}
    return RunResult(name, settings, metrics, SAEFolder(name, Path(name), {}))


@pytest.fixture
def without_saes(monkeypatch):
    """Rows have no SAEs whose features could be compared."""
    monkeypatch.setattr(runs_page, "with_seed_scores", lambda groups, **_: groups)


SEEDS = [row(8, 3.0), row(8, 4.0, seed=1), row(8, 1.0, lr=0.002), row(8, 7.0, seed=1, lr=0.002)]


@pytest.mark.usefixtures("without_saes")
def test_the_best_run_for_each_k_is_named(tmp_path):
    text = show_sweep([row(8, 3.0), row(16, 2.0)], tmp_path)
    assert "out of 2 runs (mean" in text
    winners = ["  k=8: 3.0000 (n = 1)", "    k8_3.0", "  k=16: 2.0000 (n = 1)", "    k16_2.0"]
    assert text.splitlines()[-6:-2] == winners
    by_lr = show_sweep([row(8, 3.0), row(8, 2.0, lr=0.002)], tmp_path)
    assert by_lr.splitlines()[-4:-2] == ["  k=8, lr=0.002: 2.0000 (n = 1)", "    k8_2.0"]
    assert text.splitlines()[0].split()[:2] == ["k", "FVE"]


@pytest.mark.usefixtures("without_saes")
def test_the_metric_of_a_sweeps_file_decides(tmp_path, caplog):
    rows = [row(8, 3.0), row(8, 2.0, lr=0.002)]
    rows[0].metrics["fve"] = 0.9
    by_fve = {"name": "eval/fve", "goal": "maximize"}
    text = show_sweep(rows, tmp_path, metric=by_fve)
    assert text.splitlines()[-4:-2] == ["  k=8, lr=0.001: 0.9000 (n = 1)", "    k8_3.0"]
    assert "Highest mean FVE" in text
    assert "the highest FVE" in (tmp_path / "results.html").read_text()
    assert caplog.text == ""
    text = show_sweep(rows, tmp_path, metric={"name": "loss", "goal": "minimize"})
    assert text.splitlines()[-3] == "    k8_2.0"
    assert "metric loss" in caplog.text


@pytest.mark.usefixtures("without_saes")
def test_seeds_are_averaged_before_the_best_is_chosen(tmp_path):
    text = show_sweep(SEEDS, tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:3] == ["lr", "n", "FVE"], "the seed is no setting"
    assert lines[2][:2] == ["0.001", "2"]
    assert lines[2][-3:] == ["3.5000", "±", "0.7071"]
    assert lines[3][-3:] == ["4.0000", "±", "4.2426"]
    assert "k=8, lr=0.001: 3.5000 ± 0.7071 (n = 2)\n    k8_3.0, k8_4.0\n" in text, (
        "though the best run has lr=0.002"
    )
    runs = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(one["seed"], one["description_length"]) for one in runs[:2]] == [
        ("0", "3.0"),
        ("1", "4.0"),
    ]
    first, second = csv.DictReader((tmp_path / "results_by_setting.csv").open())
    assert (first["lr"], first["n"], first["description_length_mean"]) == ("0.001", "2", "3.5")
    assert float(second["description_length_sd"]) == pytest.approx(18**0.5)
    html = (tmp_path / "results.html").read_text()
    assert ">3.5000 ± 0.7071</td>" in html
    assert "n seeds" in html
    assert html.count(">3.5000 ± 0.7071</td>") == 2, "the best, and among all settings"
    best = html[html.index("<h2>Best for each k") : html.index("<h2>All settings")]
    assert '<th scope="col">n</th>' in best
    assert '<th scope="col">seed</th>' not in best
    assert '<th scope="col">seed</th>' in html[html.index("<h2>All runs") :]
