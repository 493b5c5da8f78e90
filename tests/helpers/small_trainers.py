"""Small trainers of any architecture, built from a configuration as a run builds them."""

from typing import Any

import torch as t

from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae import CONFIGS, option_names, sae_settings
from dictionary_learning_ext.trainers.build import build_trainer

D, F, K, BATCH, STEPS = 16, 32, 4, 24, 100


def batch(seed: int, rows: int = BATCH) -> t.Tensor:
    return t.randn(rows, D, generator=t.Generator().manual_seed(seed))


def built(
    architecture: str,
    dtype: str = "float32",
    device: str = "cpu",
    first_fill: t.Tensor | None = None,
    **options: Any,
) -> Any:
    """The trainer of an architecture for a run of STEPS, with these options. Default: k = K."""
    if "k" in option_names(CONFIGS[architecture]):
        options = {"k": K} | options
    sae = sae_settings(architecture, {"dict_size": F, **options}).without_unused()
    where: Any = {"model": "tiny", "hook": "blocks.0.hook_resid_post", "dtype": dtype}
    config = TrainConfig(sae, RunConfig(steps=STEPS, **where)).resolved
    sizes = {"energy": 1.0, "activation_dim": D, "layer": 0}
    return build_trainer(config, **sizes, name="x", device=device, first_fill=first_fill)


def in_float64(trainer: Any) -> Any:
    trainer.ae.double()
    # Adam's state is made at the first step, in the parameters' dtype.
    return trainer


def descended(trainer: Any, x: t.Tensor, step: int) -> list[t.Tensor]:
    """The gradient of each parameter that an update descends, before projection and clipping."""
    found: list[t.Tensor] = []
    trainer.scheduler.step = lambda: None  # torch warns if the optimiser took no step

    def record(loss, step):
        found.extend(p.grad.clone() for p in trainer.ae.parameters())
        return t.tensor(True)

    trainer.optimizer.step = record
    trainer.update(step, x)
    return found


def weights_of(trainer: Any) -> dict[str, t.Tensor]:
    return {name: value.clone() for name, value in trainer.ae.state_dict().items()}


def assert_same(one: Any, other: Any, name: str = "") -> None:
    """Equal to the bit: tensors, and what holds them."""
    if isinstance(one, t.Tensor):
        assert t.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_same(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, tuple | list):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{name}.{i}")
    else:
        assert one == other, name
