"""The stand-in for a GPU: what it catches, what it lets pass, and that nothing of it stays."""

import copy

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


@pytest.fixture
def x(cuda):
    return t.arange(12.0, device="cuda:1").view(3, 4)


CAUGHT = {
    "a tensor of the CPU": (lambda x: x + t.ones(4), RuntimeError, "add.*cpu and cuda:1"),
    "a tensor of another device": (lambda x: x @ t.ones(4, 2, device="cuda:0"), RuntimeError, "mm"),
    "a number to join, of the CPU": (
        lambda x: t.stack([x[0, 0], t.ones(())]),
        RuntimeError,
        "stack",
    ),
    "a generator of the CPU": (
        lambda x: x.normal_(generator=t.Generator()),
        RuntimeError,
        "generator is on cpu, and the tensors on cuda:1",
    ),
    "a generator of the device, for the CPU": (
        lambda x: t.randn(2, generator=t.Generator(x.device)),
        RuntimeError,
        "generator is on cuda:1, and the tensors on cpu",
    ),
    "an array": (lambda x: x.numpy(), TypeError, "to numpy"),
    "a device that is not there": (
        lambda x: x.to("cuda:2"),
        RuntimeError,
        "invalid device ordinal",
    ),
    "a new tensor there": (lambda x: t.empty(1, device="cuda:2"), RuntimeError, "device ordinal"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_what_cuda_refuses_is_refused(name, x):
    do, error, message = CAUGHT[name]
    with pytest.raises(error, match=message):
        do(x)


WAITS = {
    "a number": lambda x: float(x.sum()),
    "a decision": lambda x: bool(x.any()),
    "a list": lambda x: x.tolist(),
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 3],
    "a mask of many values": lambda x: x.index_put_((x[:, 0] > 3,), t.ones_like(x[:2])),
    "indices of the CPU": lambda x: x[t.tensor([0, 2])],
    "to the CPU": lambda x: x.cpu(),
    "to the device": lambda x: t.ones(3).to(x.device),
    "written on the CPU": lambda x: t.empty(3, 4).copy_(x),
    "written on the device": lambda x: x.copy_(t.zeros(3, 4)),
    "a constant": lambda x: t.tensor([1.0], device=x.device),
}
PASSES = {
    "arithmetic": lambda x: (x @ x.T + 1).relu().topk(2),
    "a number of the CPU": lambda x: t.where(x > 3, x, t.tensor(0.5)) + t.tensor(1.0),
    "filled by a mask": lambda x: x.masked_fill_(x > 3, 0.0).index_put_((x > 3,), x.new_zeros(())),
    "indices of the device": lambda x: x[t.zeros(2, dtype=t.long, device=x.device)],
    "without waiting to the device": lambda x: t.ones(3).to(x.device, non_blocking=True),
    "to another device": lambda x: x.to("cuda:0"),
    "another dtype": lambda x: x.to(t.bfloat16).float(),
    "noise of the device": lambda x: x.normal_(generator=t.Generator(x.device).manual_seed(0)),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_the_host_waits_for_is_counted_once(name, cuda, x):
    WAITS[name](x)
    assert len(cuda.syncs) == 1


@pytest.mark.parametrize("name", PASSES)
def test_what_the_host_does_not_wait_for_is_not_counted(name, cuda, x):
    PASSES[name](x)
    assert not cuda.syncs


def test_what_is_made_of_a_tensor_is_where_it_is(x, tmp_path):
    linear = t.nn.Linear(4, 2).to("cuda:1")
    t.save(x, tmp_path / "x.pt")
    made = [
        *(x[1:], x.T, x.data, x.clone(), copy.deepcopy(x), x.new_zeros(2), t.empty_like(x)),
        *(linear(x), linear.weight, copy.deepcopy(linear).bias, t.load(tmp_path / "x.pt")),
    ]
    assert {str(each.device) for each in made} == {"cuda:1"}
    assert all(each.is_cuda and not each.is_cpu and each.get_device() == 1 for each in made)
    assert t.load(tmp_path / "x.pt", map_location="cpu").tolist() == x.cpu().tolist()
    assert str(t.load(tmp_path / "x.pt", map_location="cuda:0").device) == "cuda:0"


def test_a_gradient_goes_back_to_where_its_tensor_is(x):
    start = t.ones(4, requires_grad=True)
    (x * start.to("cuda:1")).sum().backward()
    assert start.grad is not None
    assert start.grad.device == t.device("cpu")
    assert start.grad.tolist() == [12, 15, 18, 21]


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


# --- planted in a training step


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
    finish = VariationalTopKTrainer._finish_step

    def counted(trainer, *arguments):
        finish(trainer, *arguments)
        assert int(trainer.dead_features) >= 0

    steps_of(trainer, cuda)
    assert not cuda.syncs
    monkeypatch.setattr(VariationalTopKTrainer, "_finish_step", counted)
    steps_of(trainer, cuda)
    (found,) = cuda.syncs
    assert found.startswith("_local_scalar_dense: variational_top_k.py:")
