"""Results of a sweep: tables, the best setting for each k, and folders or sweeps that have none."""

import csv
import json
from types import SimpleNamespace

import pytest

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.sweep.results import from_folder, from_wandb, show


def row(k, length, seed=0, **settings):
    return {
        "run": f"k{k}_{length}",
        "settings": {"k": k, "seed": seed, "lr": 0.001, **settings},
        "metrics": {"description_length": length, "fve": 0.5},
    }


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
    text = show([row(8, 3.0), row(16, 2.0)], tmp_path)
    assert "out of 2 runs, one seed each (n = 1):" in text
    assert text.splitlines()[-4:-2] == ["  k=8: k8_3.0", "  k=16: k16_2.0"]
    assert "±" not in text
    assert text.splitlines()[0].split()[:2] == ["k", "FVE"]


def test_seeds_are_averaged_before_the_best_is_chosen(tmp_path):
    text = show(SEEDS, tmp_path)
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


def test_what_is_missing_is_said_before_the_winners(tmp_path):
    text = show(SEEDS[:1], tmp_path, "1 of 8 runs are finished; run `x` again to continue")
    before = text[: text.index("Lowest")]
    assert "\n1 of 8 runs are finished; run `x` again to continue.\n" in before
    assert "<strong>1 of 8 runs" in (tmp_path / "results.html").read_text()


def test_a_table_fits_its_width_and_every_block_has_the_settings(tmp_path):
    text = show(SEEDS, tmp_path, width=60)
    assert all(len(line) <= 60 for line in text.splitlines()[:8])
    heads = [line.split()[:2] for line in text.splitlines() if line.startswith("lr ")]
    assert heads == [["lr", "n"]] * 2


def test_runs_that_were_not_evaluated_are_listed_and_none_is_best(tmp_path):
    run_folder(tmp_path / "a", eval_tokens=0, k=4, lr=None)
    run_folder(tmp_path / "b", eval_tokens=0, k=8, lr=1e-3)
    results = from_folder(tmp_path)
    assert [one["metrics"] for one in results] == [{}, {}]
    text = show(results, tmp_path)
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
    assert results == [{"run": "a", "settings": {"k": 4}, "metrics": {"fve": 0.5}}]
    assert missing == "1 of 2 runs are finished"
    api(one)
    assert from_wandb("a/b/c")[1] is None
