"""The memory of a training step on a GPU, counted on torch's meta device, which holds no numbers.

Of what a step needs it lacks generators, autocast and the fused optimiser's flag. These three are stood in
for.
"""

import contextlib
import dataclasses
import weakref

import pytest
import torch as t
from recorded_ops import RecordedOps
from step_settings import every_setting
from torch.utils._python_dispatch import TorchDispatchMode

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers import base, optimizers


@pytest.fixture
def meta_as_a_gpu(monkeypatch):
    def trainer(dict_size, activation_dim, **settings):
        made = VariationalTopKTrainer(
            steps=100,
            activation_dim=activation_dim,
            dict_size=dict_size,
            k=4,
            layer=0,
            lm_name="tiny",
            warmup_steps=2,
            device="cpu",
            seed=0,
            dead_feature_threshold=1,  # so that AuxK runs
            threshold_start_step=0,
            **settings,
        )
        made.device = "meta"
        made.ae.to("meta")
        made.optimizer = optimizers.UnitNormAdam(made.ae, made.lr)
        made.form = type(made.form).of(t.device("cuda"), dict_size * activation_dim)
        made.num_tokens_since_fired = made.num_tokens_since_fired.to("meta")
        made.generator = None
        return made

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad)

    monkeypatch.setattr(optimizers.UnitNormAdam, "step", step)
    monkeypatch.setattr(base, "geometric_median", lambda x: x.mean(0))  # upstream's, which waits
    monkeypatch.setattr(VariationalTopKTrainer, "_warn_of_noise", lambda *_: None)  # waits, once
    monkeypatch.setattr(t, "autocast", lambda *_, **__: contextlib.nullcontext())
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors on the meta device hold at a time."""

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self._alive += [weakref.ref(m) for m in made if isinstance(m, t.Tensor) and m.is_meta]
        self._alive = [ref for ref in self._alive if ref() is not None]
        storages = {s._cdata: s.nbytes() for s in (ref().untyped_storage() for ref in self._alive)}
        self.peak = max(self.peak, sum(storages.values()))
        return result


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "width"), [(512, 6), (256, 144)])
@every_setting
def test_memory_over_the_weights_is_at_most_that_of_the_gradients_and_five_tensors(
    settings, batch, width, meta_as_a_gpu
):
    """Of three B x F and two F x D numbers in fp32, where a block of rows is as at B = 4,096 and F = 65,536:
    half as many means as F x D, or a 16th of the batch's. There 144 of 256 are a width of 2,304."""
    dict_size = 4096
    trainer = meta_as_a_gpu(dict_size=dict_size, activation_dim=width, **settings)
    assert trainer.form.of(t.device("cuda"), 1).means_at_once == 4096 * 65536 / 16
    means = max(batch * dict_size // 16, dict_size * width // 2)
    trainer.form = dataclasses.replace(trainer.form, means_at_once=means)
    x = t.empty(batch, width, device="meta")
    trainer.update(0, x)  # makes the gradients
    matrices = sum(parameter.dim() == 2 for parameter in trainer.ae.parameters())
    with PeakMemory() as memory:
        trainer.update(1, x)
    numbers = 3 * batch * dict_size + (matrices + 2) * dict_size * width
    assert 0.05 < memory.peak / (4 * numbers) < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_step_selects_in_few_blocks_with_k_sparse_products(dtype, meta_as_a_gpu):
    """A block has at most 1,152 rows, half of D; noise and mean select in each."""
    trainer = meta_as_a_gpu(dict_size=16384, activation_dim=2304, dtype=dtype)
    trainer.auxk_alpha = 0.0
    with RecordedOps() as ops:
        trainer.update(1, t.empty(4096, 2304, device="meta"))
    assert ops.counts["topk"] == 2 * 4
    assert ops.code_form == "sparse"
