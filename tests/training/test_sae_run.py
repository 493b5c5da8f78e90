"""One SAE of a run: its failure is its own, and no other run's files are lost to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from interrupted_runs import sae_of

from dictionary_learning_ext import VariationalTopKTrainer, train
from dictionary_learning_ext.errors import ConfigError, TrainingError
from dictionary_learning_ext.run_folder.reading import read_run


def test_overwriting_destroys_nothing_when_wandb_cannot_begin(run, tmp_path, monkeypatch):
    (folder,) = train(run, {"x": sae_of()}).values()
    before = (folder / "ae.pt").read_bytes()
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    with pytest.raises(ConfigError, match="wandb can't start"):
        train(replace(run, overwrite=True, wandb="online"), {"x": sae_of()})
    assert (folder / "ae.pt").read_bytes() == before


@pytest.mark.parametrize("method", ["metrics", "update"])
def test_what_one_trainer_raises_does_not_end_the_others(method, run, monkeypatch):
    original = getattr(VariationalTopKTrainer, method)

    def raises(self, step, x):
        if step == 14:
            raise RuntimeError("out of memory")
        return original(self, step, x)

    monkeypatch.setattr(VariationalTopKTrainer, method, raises)
    with pytest.raises(
        TrainingError, match=r"bad: failed at or before step 14: RuntimeError: out of memory"
    ):
        train(run, {"bad": sae_of(), "good": sae_of("top_k")})
    base = Path(run.save_dir)
    assert (base / "good" / "metrics.json").exists()
    found = json.loads((base / "bad" / "failed.json").read_text())
    assert (found["step"], found["weights"]) == (14, "checkpoints/ae_14.pt")
    assert (base / "bad" / found["weights"]).exists()
    read, saes, _ = read_run(base)
    assert list(saes) == ["good"]
    assert read.save_dir == str(base / "good")
