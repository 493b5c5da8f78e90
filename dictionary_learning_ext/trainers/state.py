"""Saves and restores what changes in a trainer while it trains."""

from typing import Any

import torch as t


def trainer_state(trainer: Any) -> dict[str, Any]:
    """Everything that changes in a trainer, ours or upstream's, as tensors and plain numbers."""
    attributes = {
        name: value
        for name, value in vars(trainer).items()
        if isinstance(value, t.Tensor | bool | int | float)
    }
    generators = {n: v.get_state() for n, v in vars(trainer).items() if isinstance(v, t.Generator)}
    return {
        "ae": dict(trainer.ae.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "attributes": attributes,
        "generators": generators,
    }


def load_trainer_state(trainer: Any, state: dict[str, Any]) -> None:
    """Restore `state` in a trainer that was built with the same settings. Tensors are copied."""
    trainer.ae.load_state_dict(state["ae"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    for values in trainer.optimizer.state.values():
        values |= {n: v.clone() if isinstance(v, t.Tensor) else v for n, v in values.items()}
    trainer.scheduler.load_state_dict(state["scheduler"])
    for name, value in state["generators"].items():
        getattr(trainer, name).set_state(value)
    for name, value in state["attributes"].items():
        own = value.to(trainer.device, copy=True) if isinstance(value, t.Tensor) else value
        setattr(trainer, name, own)
