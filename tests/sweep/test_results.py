"""Results of a sweep: the best run for each k, and folders or sweeps that have none."""

import pytest

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.sweep.results import best_of_each_k, from_folder, from_wandb


def row(k, length, **settings):
    return {
        "run": f"k{k}_{length}",
        "settings": {"k": k, **settings},
        "metrics": {"description_length": length, "fve": 0.5},
    }


def test_the_best_is_chosen_for_each_k():
    rows = [row(8, 3.0), row(8, 2.0), row(16, 5.0), row(16, None)]
    assert [one["run"] for one in best_of_each_k(rows)] == ["k8_2.0", "k16_5.0"]


def test_an_empty_folder_or_one_without_results(tmp_path, caplog):
    with pytest.raises(ConfigError, match="holds no finished run; expected a folder written by"):
        from_folder(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no finished run"):
        from_folder(tmp_path)
    assert "left out, as they have no results yet: one" in caplog.text


def test_a_sweep_that_wandb_does_not_have(monkeypatch):
    monkeypatch.setattr("wandb.Api", lambda: 1 / 0)
    with pytest.raises(ConfigError, match=r"--of-wandb a/b/c: can't be read.*wandb login"):
        from_wandb("a/b/c")
