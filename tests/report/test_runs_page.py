"""The page about a folder of run folders."""

import json
import re
import shutil
from html import unescape

import numpy as np
import pytest

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.run_folder.files import PAGE_MARK


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


def test_it_has_every_saes_metrics_and_what_differs(folder, runs, capsys):
    assert main(["report", str(folder)]) == 0
    page = folder / "index.html"
    assert f"wrote {page}" in capsys.readouterr().out
    assert PAGE_MARK in page.read_text(encoding="utf-8")
    rows = rows_of(page.read_text(encoding="utf-8"))
    assert list(rows) == ["top_k", "vsae"]
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        assert rows[run.name]["FVE"] == f"{metrics['fve']:.4f}"
    assert rows["top_k"]["architecture"] == "top_k"
    assert rows["vsae"]["architecture"] == "vsae_top_k"
    assert "hook" not in rows["vsae"]
    assert "begun (not finished)" in page.read_text(encoding="utf-8")


def test_a_setting_that_differs_is_a_column(folder):
    path = folder / "top_k" / "config.json"
    config = json.loads(path.read_text())
    config["run"]["settings"]["lr"] = None
    config["trainer"]["lr"] = 0.5  # what it became
    path.write_text(json.dumps(config))
    assert main(["report", str(folder)]) == 0
    assert rows_of((folder / "index.html").read_text(encoding="utf-8"))["top_k"]["lr"] == "0.5"


def test_metrics_that_were_not_measured_alike_are_called_so(folder):
    assert main(["report", str(folder)]) == 0
    assert "different conditions" not in (folder / "index.html").read_text(encoding="utf-8")
    path = folder / "top_k" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": 7}))
    assert main(["report", str(folder)]) == 0
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "different conditions" in page
    assert rows_of(page)["top_k"]["tokens"] == "7"


def test_metrics_of_different_texts_are_called_so_though_the_text_is_a_setting_too(folder):
    for name, data in (("top_k", "a.txt"), ("vsae", "b.txt")):
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        config["run"]["settings"]["data"] = data
        path.write_text(json.dumps(config))
        path = folder / name / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["measured_on"] = metrics.get("measured_on", {}) | {"data": data}
        path.write_text(json.dumps(metrics))
    assert main(["report", str(folder)]) == 0
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert re.search(r"different conditions \(data\), so they can&#39;t be compared", page)
    assert page.count(">data</th>") == 1


def test_reports_are_linked_and_those_that_are_missing_have_a_command(folder, tmp_path):
    (folder / "vsae" / "report.html").write_text("")
    (folder / "report.html").write_text("")
    out = tmp_path / "pages" / "a page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    links = re.findall('href="([^"]*html)"', page)
    assert links == ["../saes/report.html", "../saes/vsae/report.html"]
    assert f"vsae report {folder / 'top_k'}\n" in page
    assert f"vsae report {folder / 'vsae'}\n" not in page


def test_an_sae_without_metrics_is_there(folder):
    (folder / "vsae" / "metrics.json").unlink()
    assert main(["report", str(folder)]) == 0
    assert rows_of((folder / "index.html").read_text(encoding="utf-8"))["vsae"]["FVE"] == "-"


def test_it_takes_no_flags_of_a_report(folder, capsys):
    for flags in (["--tokens", "5"], ["--against", str(folder / "vsae")], ["--figures", "False"]):
        assert main(["report", str(folder), *flags]) == 2
        assert "leave out all flags but --out" in capsys.readouterr().err


def seeds_on(page):
    """The rows of the table of settings with several seeds, by the first setting."""
    section = page[page.index("<h2>Settings with several seeds") :]
    return rows_of(section[: section.index("</table>")])


def test_the_seeds_of_a_setting_are_compared(seeds, runs, tmp_path, capsys):
    folder = tmp_path / "saes"
    for run in [*seeds, runs[1]]:
        shutil.copytree(run, folder / run.name)
    shutil.copytree(seeds[0], folder / "copy")
    assert main(["report", str(folder)]) == 0
    assert "matching the features of 3 seeds" in capsys.readouterr().out
    page = (folder / "index.html").read_text(encoding="utf-8")
    found = reproducibility(
        {one.name: decoder_directions(load_dictionary(one)[0]) for one in seeds}
    )
    less_null = np.mean([pair.pw_mcc - pair.null for pair in found.pairs.values()])
    returning = np.mean([found.returning(one.name)[0.7] for one in seeds])
    (row,) = seeds_on(page).values()
    assert row["n"] == "3", "a copy of an SAE is no seed of it"
    assert row["PW-MCC less null"] == f"{less_null:.4f}"
    assert row["returning > 0.7"] == f"{returning:.1%}"
    fve = [json.loads((one / "metrics.json").read_text())["fve"] for one in seeds]
    assert row["FVE"] == f"{np.mean(fve):.4f} ± {np.std(fve, ddof=1):.4f}"
    assert list(seeds_on(page)) == ["vsae_top_k"]
    assert "seed" not in row
    assert "saw the same batches" not in page


def test_seeds_that_saw_the_same_batches_are_marked(seeds, tmp_path):
    for run in seeds[:2]:
        shutil.copytree(run, tmp_path / "saes" / run.name)
        path = tmp_path / "saes" / run.name / "config.json"
        change(path, lambda it: it["run"]["settings"].update(data_seed=0))
    assert main(["report", str(tmp_path / "saes")]) == 0
    page = (tmp_path / "saes" / "index.html").read_text(encoding="utf-8")
    (row,) = seeds_on(page).values()
    assert row["PW-MCC less null"].endswith(" *")
    assert "* some of these seeds saw the same batches" in page


def test_a_single_seed_is_not_compared(folder):
    assert main(["report", str(folder)]) == 0
    assert "Settings with several seeds" not in (folder / "index.html").read_text(encoding="utf-8")


def test_seeds_that_can_not_be_read_are_named(seeds, tmp_path, caplog):
    for run in seeds[:2]:
        shutil.copytree(run, tmp_path / "saes" / run.name)
    (tmp_path / "saes" / "seed1" / "ae.pt").write_bytes(b"cut")
    assert main(["report", str(tmp_path / "saes")]) == 0
    assert re.search(r"features come back was not measured: \S+seed1/ae.pt", caplog.text)
    page = (tmp_path / "saes" / "index.html").read_text(encoding="utf-8")
    assert "PW-MCC" not in page


def change(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_damaged_folder_is_left_out_and_the_others_are_there(folder, runs):
    shutil.copytree(runs[0], folder / "cut")
    (folder / "cut" / "config.json").write_text('{"trainer": ')
    shutil.copytree(runs[0], folder / "wrong")
    change(folder / "wrong" / "config.json", lambda it: it["run"]["settings"].update(k="many"))
    shutil.copytree(runs[0], folder / "unread")
    (folder / "unread" / "metrics.json").write_text("{")
    assert main(["report", str(folder)]) == 0
    page = unescape((folder / "index.html").read_text(encoding="utf-8"))
    assert list(rows_of(page)) == ["top_k", "vsae"]
    words = page[page.index("Not in the table") :]
    assert re.search(r"cut \(\S+config.json: not valid JSON", words)
    assert re.search(r"wrong \(\S+config.json: k='many': expected a whole number", words)
    assert re.search(r"unread \(\S+metrics.json: not valid JSON", words)


def test_one_architecture_is_no_column_and_long_names_break_at_underscores(folder, runs):
    shutil.rmtree(folder / "top_k")
    for seed in range(2):
        long = folder / f"{'a_long_name_' * 4}seed{seed}"
        shutil.copytree(runs[0], long)
        change(long / "config.json", lambda it: it["run"]["settings"].update(warmup_steps=2))
    assert main(["report", str(folder)]) == 0
    page = (folder / "index.html").read_text(encoding="utf-8")
    rows = rows_of(page)
    assert list(rows) == ["…seed0", "…seed1", "vsae"]
    assert "architecture" not in rows["vsae"]
    assert "warmup_<wbr>steps</th>" in page
