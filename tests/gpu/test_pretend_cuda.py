"""The stand-in for a GPU catches what is planted in a training step, and nothing of it stays."""

import pytest
import torch as t
from pretend_cuda import PretendCuda
from small_trainers import BATCH, built
from small_trainers import batch as batch_of

from dictionary_learning_ext import VariationalTopKTrainer


@pytest.fixture
def cuda():
    with PretendCuda(devices=2) as pretended:
        yield pretended


def test_nothing_of_it_stays():
    before = {name: vars(t.Tensor).get(name) for name in ("device", "to", "numpy", "is_cuda")}
    was = t.Generator, t.tensor, t.cuda.is_available(), t.cuda.device_count()
    with PretendCuda():
        assert t.cuda.is_available()
        own = t.zeros(2, device="cuda")
    assert {name: vars(t.Tensor).get(name) for name in before} == before
    assert was == (t.Generator, t.tensor, t.cuda.is_available(), t.cuda.device_count())
    assert own.device == t.device("cpu")
    assert (own + 1).numpy().tolist() == [1, 1]


def steps_of(trainer, cuda):
    for step in range(2):
        x = batch_of(step).to(trainer.device)
        cuda.syncs.clear()
        trainer.update(step, x)


def test_a_planted_mixed_device_is_caught_with_its_line(cuda):
    trainer = built("vsae_top_k", device="cuda:1", dead_feature_threshold=BATCH)
    trainer.num_tokens_since_fired = trainer.num_tokens_since_fired.cpu()
    with pytest.raises(RuntimeError, match=r"found cpu and cuda:1 .*: step\.py:\d+ < "):
        steps_of(trainer, cuda)


def test_a_planted_sync_is_caught_with_its_line(cuda, monkeypatch):
    trainer = built("vsae_top_k", device="cuda:1", dead_feature_threshold=BATCH)
    count = VariationalTopKTrainer._count

    def counted(trainer, *arguments):
        count(trainer, *arguments)
        assert int(trainer.dead_features) >= 0

    steps_of(trainer, cuda)
    assert not cuda.syncs
    monkeypatch.setattr(VariationalTopKTrainer, "_count", counted)
    steps_of(trainer, cuda)
    (found,) = cuda.syncs
    assert found.startswith("_local_scalar_dense: base.py:")
