"""Results of a sweep: tables, the best setting for each k, and folders or sweeps that have none."""

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dictionary_learning_ext import RunConfig, SAEConfig, load_dictionary, train
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.report.many_runs import RunResult, from_folder, from_wandb
from dictionary_learning_ext.report.runs_page import show_sweep


def row(k, length, seed=0, **settings):
    settings = {"k": k, "seed": seed, "lr": 0.001, **settings}
    return RunResult(f"k{k}_{length}", settings, {"description_length": length, "fve": 0.5})


SEEDS = [row(8, 3.0), row(8, 4.0, seed=1), row(8, 1.0, lr=0.002), row(8, 7.0, seed=1, lr=0.002)]


def run_folder(folder, metrics=None, has_weights=True, **settings):
    folder.mkdir(parents=True)
    config = {"trainer": {"dict_class": "X", "lr": 2e-4}, "run": {"settings": settings}}
    (folder / "config.json").write_text(json.dumps(config))
    if has_weights:
        (folder / "ae.pt").touch()
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))


def test_a_single_seed_is_called_one(tmp_path):
    text = show_sweep([row(8, 3.0), row(16, 2.0)], tmp_path)
    assert "out of 2 runs, one seed each (n = 1):" in text
    winners = ["  k=8", "    k8_3.0", "  k=16", "    k16_2.0"]
    assert text.splitlines()[-6:-2] == winners
    by_lr = show_sweep([row(8, 3.0), row(8, 2.0, lr=0.002)], tmp_path)
    assert by_lr.splitlines()[-4:-2] == ["  k=8, lr=0.002", "    k8_2.0"]
    assert "±" not in text
    assert text.splitlines()[0].split()[:2] == ["k", "FVE"]


def test_seeds_are_averaged_before_the_best_is_chosen(tmp_path):
    text = show_sweep(SEEDS, tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:3] == ["lr", "n", "FVE"], "the seed is no setting"
    assert lines[2][:2] == ["0.001", "2"]
    assert lines[2][-3:] == ["3.5000", "±", "0.7071"]
    assert lines[3][-3:] == ["4.0000", "±", "4.2426"]
    assert "k=8: lr=0.001: 3.5000 ± 0.7071 (n = 2)" in text, "though the best run has lr=0.002"
    runs = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(one["seed"], one["description_length"]) for one in runs[:2]] == [
        ("0", "3.0"),
        ("1", "4.0"),
    ]
    first, second = csv.DictReader((tmp_path / "results_by_setting.csv").open())
    assert (first["lr"], first["n"], first["description_length_mean"]) == ("0.001", "2", "3.5")
    assert float(second["description_length_sd"]) == pytest.approx(18**0.5)
    html = (tmp_path / "results.html").read_text()
    assert "<td>3.5000 ± 0.7071</td>" in html
    assert "over n seeds" in html
    assert html.count("<td>3.5000 ± 0.7071</td>") == 2, "the best, and among all settings"
    best = html[html.index("<h2>Best for each k") : html.index("<h2>All settings")]
    assert '<th scope="col">n</th>' in best
    assert '<th scope="col">seed</th>' not in best
    assert '<th scope="col">seed</th>' in html[html.index("<h2>All runs") :]


def test_results_are_shown_where_they_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").touch()
    text = show_sweep(SEEDS, tmp_path / "file" / "sweep")
    assert "k=8: lr=0.001: 3.5000 ± 0.7071 (n = 2)" in text
    assert "Wrote" not in text
    assert "shown and not written" in caplog.text


def test_what_is_missing_is_said_before_the_winners(tmp_path):
    text = show_sweep(SEEDS[:1], tmp_path, "1 of 8 runs are finished; run `x` again to continue")
    before = text[: text.index("Lowest")]
    assert "\n1 of 8 runs are finished; run `x` again to continue.\n" in before
    assert "<strong>1 of 8 runs" in (tmp_path / "results.html").read_text()


def test_a_table_fits_its_width_and_every_block_has_the_settings(tmp_path):
    text = show_sweep(SEEDS, tmp_path, width=60)
    assert all(len(line) <= 60 for line in text.splitlines()[:8])
    heads = [line.split()[:2] for line in text.splitlines() if line.startswith("lr ")]
    assert heads == [["lr", "n"]] * 2


def test_runs_that_were_not_evaluated_are_listed_and_none_is_best(tmp_path):
    run_folder(tmp_path / "a", eval_tokens=0, k=4, lr=None)
    run_folder(tmp_path / "b", eval_tokens=0, k=8, lr=1e-3)
    results = from_folder(tmp_path)
    assert [one.metrics for one in results] == [{}, {}]
    text = show_sweep(results, tmp_path)
    assert "description length was not measured, so the runs are not ranked." in text
    assert text.splitlines()[2].split()[:3] == ["4", "0.0002", "-"], "the lr that the trainer chose"


def test_an_empty_folder_or_one_without_results(tmp_path, caplog):
    with pytest.raises(ConfigError, match="holds no finished run; expected a folder written by"):
        from_folder(tmp_path)
    run_folder(tmp_path / "one", has_weights=False)
    with pytest.raises(ConfigError, match="holds no finished run"):
        from_folder(tmp_path)
    run_folder(tmp_path / "two", metrics={"fve": 0.5})
    assert len(from_folder(tmp_path)) == 1
    assert "left out, as they have no results yet: one" in caplog.text


def test_a_sweep_that_wandb_does_not_have(monkeypatch):
    monkeypatch.setattr("wandb.Api", lambda: 1 / 0)
    with pytest.raises(ConfigError, match=r"--of-wandb a/b/c: can't be read.*wandb login"):
        from_wandb("a/b/c")


def test_runs_on_wandb_that_have_not_finished_are_counted(monkeypatch):
    one = SimpleNamespace(name="a", config={"k": 4}, summary={"eval/fve": 0.5}, state="finished")
    other = SimpleNamespace(**vars(one) | {"state": "running"})

    def api(*runs):
        monkeypatch.setattr(
            "wandb.Api", lambda: SimpleNamespace(sweep=lambda _: SimpleNamespace(runs=runs))
        )

    api(one, other)
    results, missing = from_wandb("a/b/c")
    assert results == [RunResult("a", {"k": 4}, {"fve": 0.5})]
    assert missing == "1 of 2 runs are finished"
    api(one)
    assert from_wandb("a/b/c")[1] is None


@pytest.fixture(scope="module")
def of_seeds(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of two k: three seeds of one, a single one of the other."""
    folder = tmp_path_factory.mktemp("sweep")
    for k, seed in ((4, 0), (4, 1), (4, 2), (6, 0)):
        run = RunConfig(
            model=str(tiny_lm_dir),
            data=text,
            data_seed=seed,
            save_dir=str(folder / f"k{k}_seed{seed}"),
            steps=20,
            batch_size=64,
            n_ctxs=8,
            ctx_len=32,
            eval_tokens=500,
        )
        train(run, {"sae": SAEConfig(dict_size=32, k=k, seed=seed)})
    return folder


def test_how_well_seeds_agree_is_in_the_tables(of_seeds, tmp_path):
    text = show_sweep(from_folder(of_seeds), tmp_path)
    saes = {path.name: load_dictionary(path)[0] for path in sorted(of_seeds.glob("k4*"))}
    found = reproducibility({name: decoder_directions(sae) for name, sae in saes.items()})
    less_null = np.mean([pair.pw_mcc - pair.null for pair in found.pairs.values()])
    returning = np.mean([found.returning(name)[0.7] for name in saes])
    head, _, several, single = text.splitlines()[:4]
    assert head.endswith("PW-MCC less null  returning > 0.7")
    assert several.split()[-2:] == [f"{less_null:.4f}", f"{returning:.1%}"]
    assert single.split()[-2:] == ["-", "-"]
    assert "same batches" not in text
    first, second = csv.DictReader((tmp_path / "results_by_setting.csv").open())
    assert float(first["pw_mcc_less_null"]) == pytest.approx(less_null)
    assert float(first["returning"]) == pytest.approx(returning)
    assert second["returning"] == ""
    html = (tmp_path / "results.html").read_text()
    settings = html[html.index("<h2>All settings") : html.index("<h2>All runs")]
    assert f"<td>{less_null:.4f}</td><td>{returning:.1%}</td>" in settings
    runs = html[html.index("<h2>All runs") : html.index("<h2>Figures")]
    assert "PW-MCC" not in runs, "a run has no value of its own"


def test_seeds_of_one_data_seed_are_marked(of_seeds, tmp_path):
    for seed in (0, 1):
        shutil.copytree(of_seeds / f"k4_seed{seed}", tmp_path / "same" / f"seed{seed}")
        path = tmp_path / "same" / f"seed{seed}" / "config.json"
        config = json.loads(path.read_text())
        config["run"]["settings"]["data_seed"] = 3
        path.write_text(json.dumps(config))
    text = show_sweep(from_folder(tmp_path / "same"), tmp_path)
    assert text.splitlines()[2].split()[-3] == "*"
    assert "* some of these seeds saw the same batches, and features may return" in text
    assert "saw the same batches" in (tmp_path / "results.html").read_text()


def test_runs_on_wandb_have_no_features_to_match(tmp_path):
    assert "PW-MCC" not in show_sweep(SEEDS, tmp_path)
    header = (tmp_path / "results_by_setting.csv").read_text().splitlines()[0]
    assert "returning" not in header


def test_every_run_is_on_the_page_with_a_dash_for_what_was_not_measured(tmp_path):
    runs = [row(8, 3.0), row(16, None)]
    show_sweep([replace(one, name=f"<k{one.settings['k']}>") for one in runs], tmp_path)
    html = (tmp_path / "results.html").read_text()
    assert html.count("&lt;k8&gt;</th>") == html.count("&lt;k16&gt;</th>") == 1
    last = html[html.index("&lt;k16&gt;</th>") :]
    assert last[: last.index("</tr>")].endswith("<td>-</td>")
    assert "<script src" not in html, "it needs no network"
    assert ">2 runs. The best" in html
    assert "n = 1" in html
    show_sweep(runs[:1], tmp_path)
    assert ">1 run. The best" in (tmp_path / "results.html").read_text()


def test_the_figures_are_those_of_what_differs(tmp_path):
    def titles(*runs):
        show_sweep(list(runs), tmp_path)
        html = (tmp_path / "results.html").read_text()
        return [
            one for one in ("FVE against k", "CE recovered against k", "drag along") if one in html
        ]

    assert titles(row(8, 3.0), row(16, 2.0)) == [
        "FVE against k",
        "CE recovered against k",
        "drag along",
    ]
    assert titles(row(8, 3.0), row(8, 2.0, lr=0.1)) == ["drag along"]
    assert titles(RunResult("a", {}, {"fve": 0.5}), RunResult("b", {}, {})) == []
