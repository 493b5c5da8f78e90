"""Upstream's trainers, with what the training loop asks of a trainer."""

from inspect import signature
from typing import Any

import torch as t

from .base import Failure, batch_metrics


def annealed_k(trainer: Any, step: int) -> int:
    """k at a step of upstream's TopKTrainer or a subclass. Upstream's main branch can anneal it."""
    steps = getattr(trainer, "k_anneal_steps", None)
    if steps is None:
        return trainer.k
    trainer.update_annealed_k(step, trainer.ae.activation_dim, steps)
    return int(trainer.ae.k)


class UpstreamTrainer:
    """Wraps one of upstream's trainers as a `base.Trainer`.

    Upstream's `loss` changes the dead-feature counters and the threshold, so metrics are computed
    here without it. Upstream's `update` takes every step, finite or not, so the last finite weights
    are kept here.

    Arguments:
        trainer: upstream's.
        in_bf16: run its steps under autocast in bfloat16.
    """

    def __init__(self, trainer: Any, *, in_bf16: bool):
        self._trainer = trainer
        self._in_bf16 = in_bf16
        self.starts_trained = False
        self._last_finite: dict[str, t.Tensor] | None = None

    @property
    def ae(self) -> Any:
        return self._trainer.ae

    @property
    def scheduler(self) -> Any:
        return self._trainer.scheduler

    @property
    def config(self) -> dict[str, Any]:
        return self._trainer.config

    def update(self, step: int, x: t.Tensor) -> None:
        """See `base.Trainer`."""
        if self.starts_trained:
            step = max(step, 1)  # at step 0, upstream's trainers set b_dec
        with t.autocast(x.device.type, dtype=t.bfloat16, enabled=self._in_bf16):
            self._trainer.update(step, x)

    @t.no_grad()
    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """See `base.Trainer`."""
        encode: Any = self.ae.encode
        # BatchTopK uses its threshold in inference only. Training keeps the batch's B k largest.
        is_by_batch = "return_active" in signature(encode).parameters
        f_BF = encode(x, use_threshold=False) if is_by_batch else encode(x)
        x_hat_BD = self.ae.decode(f_BF)
        l2_loss = (x - x_hat_BD).square().sum(-1).mean()
        return {"l2_loss": float(l2_loss)} | batch_metrics(x, x_hat_BD, f_BF)

    def check(self, step: int) -> Failure | None:
        """See `base.Trainer`."""
        state = self.ae.state_dict()
        if all(value.isfinite().all() for value in state.values()):
            self._last_finite = {name: value.clone() for name, value in state.items()}
            return None
        self.restore_last_finite()
        return Failure(step, "not finite; the weights are the last finite ones")

    def restore_last_finite(self) -> None:
        """See `base.Trainer`."""
        if self._last_finite is not None:
            self.ae.load_state_dict(self._last_finite)

    def state(self) -> Any:
        """See `base.Trainer`."""
        return self._trainer
