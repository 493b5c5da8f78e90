"""One SAE of a run: its failure is its own, and no other run's files are lost to it."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch as t
from interrupted_runs import Killed, results, resumed, sae_of, stopped_at
from small_trainers import assert_same, batch, built

from dictionary_learning_ext import VariationalTopKTrainer, train
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.errors import ConfigError, Interrupted, TrainingError
from dictionary_learning_ext.run_folder.resume_points import Scale, steps_of
from dictionary_learning_ext.trainers.parts import WHOLE
from dictionary_learning_ext.training.plan import Job
from dictionary_learning_ext.training.sae_run import LOGGED_ROWS, SAERun


def test_overwriting_destroys_nothing_when_wandb_cannot_begin(run, tmp_path, monkeypatch):
    (folder,) = train(run, {"x": sae_of()}).values()
    before = (folder / "ae.pt").read_bytes()
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    with pytest.raises(ConfigError, match=r"^wandb="):
        train(replace(run, overwrite=True, wandb="online"), {"x": sae_of()})
    assert (folder / "ae.pt").read_bytes() == before


def small_run(folder) -> Any:
    """An SAERun that is not started."""
    return SAERun(
        Job("x", TrainConfig(), folder), SimpleNamespace(config={}, part=WHOLE), Scale(1.0, 1.0)
    )  # pyright: ignore


def test_no_results_stand_beside_the_settings_of_another_run(tmp_path, monkeypatch):
    """Killed when config.json is replaced, a run would look finished with the new settings."""
    for name in ("config.json", "metrics.json", "ae.pt", "failed.json"):
        (tmp_path / name).write_text("{}")

    def killed(*_):
        raise Killed

    monkeypatch.setattr("dictionary_learning_ext.training.sae_run.write_json", killed)
    with pytest.raises(Killed):
        small_run(tmp_path).begin({}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("own", [None, "new"])
def test_wandbs_files_of_an_overwritten_run_are_deleted(own, tmp_path):
    for name in ("offline-run-2026-old", "run-2026-older", "offline-run-2026-new"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    run = small_run(tmp_path)
    run.log.wandb_id = own
    run.begin({}, None)
    left = [path.name for path in (tmp_path / "wandb").iterdir()]
    assert left == (["offline-run-2026-new"] if own else [])


def raise_at(steps, monkeypatch, error=MemoryError):
    """Trainers of these SAEs raise an error at a step."""
    update = SAERun.update

    def raising(self, step, x_BD):
        raises = step == steps.get(self.name)
        effect = error("too little") if raises else None
        with patch.object(self.trainer, "update", side_effect=effect) if raises else nullcontext():
            update(self, step, x_BD)

    monkeypatch.setattr(SAERun, "update", raising)


def test_an_sae_that_keeps_failing_does_not_keep_those_behind_it_from_continuing(run, monkeypatch):
    base = Path(run.save_dir)
    stopped_at(45, monkeypatch)
    raise_at({"behind": 14}, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"ahead": sae_of(), "behind": sae_of("top_k")})
    monkeypatch.undo()
    raise_at({"ahead": 50}, monkeypatch)
    said = rf"ahead: .*--resume {base / 'ahead'}`; trained and saved: {base / 'behind'}$"
    with pytest.raises(TrainingError, match=said):
        resumed(base)
    assert (base / "behind" / "metrics.json").exists()
    monkeypatch.undo()
    resumed(base)
    assert (base / "ahead" / "metrics.json").exists()


def test_a_mistake_in_a_trainer_is_not_met_again_by_continuing(run, monkeypatch):
    base = Path(run.save_dir)
    raise_at({"bad": 14}, monkeypatch, TypeError)
    saes = {"bad": sae_of(), "good": sae_of("top_k")}
    with pytest.raises(TrainingError, match=r"bad: .*TypeError.*overwrite") as raised:
        train(run, saes)
    assert "--resume" not in str(raised.value)
    assert (base / "bad" / "failed.json").exists()
    with pytest.raises(ConfigError, match=r"failed, see failed\.json"):
        resumed(base / "bad")
    monkeypatch.undo()
    with pytest.raises(
        TrainingError, match=rf"bad: failed .*; trained and saved: {base / 'good'}$"
    ):
        resumed(base)
    shutil.rmtree(base / "bad")
    train(run, saes, resume=True)
    assert (base / "bad" / "metrics.json").exists()


@pytest.mark.parametrize("method", ["metrics", "update"])
def test_what_one_trainer_raises_does_not_end_the_others(method, run, monkeypatch):
    original = getattr(VariationalTopKTrainer, method)

    def raises(self, step, x):
        if step == 14:
            raise RuntimeError("out of memory")
        return original(self, step, x)

    monkeypatch.setattr(VariationalTopKTrainer, method, raises)
    base = Path(run.save_dir)
    again = rf"bad: .* step 14: RuntimeError: .*train --resume {base / 'bad'}`; trained and saved: "
    with pytest.raises(TrainingError, match=again):
        train(run, {"bad": sae_of(), "good": sae_of("top_k")})
    assert (base / "good" / "metrics.json").exists()
    assert (base / "bad" / "checkpoints" / "ae_14.pt").exists()
    assert not (base / "bad" / "failed.json").exists()

    monkeypatch.undo()
    before = (base / "good" / "ae.pt").stat().st_mtime_ns
    resumed(base)
    assert (base / "bad" / "metrics.json").exists()
    assert (base / "good" / "ae.pt").stat().st_mtime_ns == before


def test_a_run_is_continued_after_one_sae_stopped_alone_and_then_all(run, tmp_path, monkeypatch):
    """Its resume points are older than the others'. All end as if nothing had happened."""
    saes = {"bad": sae_of(), "failed": sae_of(lr=1e18), "good": sae_of("top_k"), "late": sae_of()}
    base, whole = Path(run.save_dir), tmp_path / "whole"
    train(replace(run, save_dir=str(whole)), {name: saes[name] for name in ("bad", "good")})
    stopped_at(45, monkeypatch)
    raise_at({"bad": 14, "late": 4}, monkeypatch)  # "late" has no resume point yet
    with pytest.raises(Interrupted, match=f"--resume {base}`"):
        train(run, saes)
    monkeypatch.undo()
    assert [steps_of(base / name)[-1:] for name in saes] == [[10], [], [45], []]
    assert [(base / name / "failed.json").exists() for name in saes] == [False, True, False, False]
    with pytest.raises(TrainingError, match="failed"):
        resumed(base)
    for name, same in {"bad": "bad", "late": "bad", "good": "good"}.items():
        expected, found = (results(each / name) for each, name in ((whole, same), (base, name)))
        found["checkpoints"] = []  # what was saved when it stopped
        assert_same(expected, found)


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_log_is_of_some_rows_of_a_large_batch_and_changes_nothing(architecture, tmp_path):
    """The other rows may hold anything. A trainer that isn't logged trains the same way."""
    logged, silent = (built(architecture) for _ in range(2))
    run, x = small_run(tmp_path), batch(0, rows=3 * LOGGED_ROWS)
    run.trainer = logged
    for trainer in (logged, silent):
        trainer.update(0, x.clone())
    expected = logged.metrics(1, x[:LOGGED_ROWS])
    other = t.cat([x[:LOGGED_ROWS], t.full_like(x[LOGGED_ROWS:], t.nan)])
    for given in (x, other):
        found = run.check_and_log(1, given)
        assert found is not None
        assert {name: found[name] for name in expected} == expected
    fewer = x[: LOGGED_ROWS // 2]
    found = run.check_and_log(1, fewer)
    assert found is not None
    assert found["fve"] == logged.metrics(1, fewer)["fve"] != expected["fve"]
    for trainer in (logged, silent):
        trainer.update(1, x.clone())
    assert_same(logged.state_dict(), silent.state_dict())
