"""Adapts upstream's trainers to the training loop, and corrects the loss of its JumpReLU trainer.

Shapes: B batch, D activation_dim, F dict_size.
"""

from inspect import signature
from typing import Any

import torch as t
from dictionary_learning.trainers.jumprelu import JumpReLUFunction, JumpReluTrainer, StepFunction

from .base import LossLog, NotFinite, batch_metrics, load_state, state_of
from .parts import WHOLE


class UpstreamTrainer:
    """Wraps one of upstream's trainers as a `base.Trainer`.

    Upstream's `loss` changes the dead-feature counters and the threshold, so metrics are computed without it.
    Upstream's `update` takes every step, finite or not, so the wrapper keeps the last finite weights.

    Arguments:
        trainer: upstream's class.
        arguments: those of its constructor, and dead_feature_threshold, which is none there.
        energy: E||x||^2 of the activations.
        in_bf16: run its steps under autocast in bfloat16.
    """

    part = WHOLE
    starts_trained = False

    def __init__(self, trainer: type, arguments: dict[str, Any], energy: float, *, in_bf16: bool):
        arguments = dict(arguments)
        threshold = arguments.pop("dead_feature_threshold", None)
        if threshold is not None:
            arguments["auxk_alpha"] *= energy  # AuxK has no unit, and the squared error has
        self._trainer: Any = trainer(**arguments)
        if threshold is not None:
            self._trainer.dead_feature_threshold = threshold
        self.ae, self.scheduler = self._trainer.ae, self._trainer.scheduler
        self._in_bf16 = in_bf16
        self._last_finite: dict[str, t.Tensor] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return self._trainer.config

    def update(self, step: int, x: t.Tensor) -> None:
        """See `base.Trainer`. Keeps the old threshold if the new one is infinite.

        TopK's threshold averages each row's smallest positive value. One row without any makes it infinite, and the
        running mean would never recover.
        """
        if self.starts_trained:
            step = max(step, 1)  # upstream's trainers set b_dec at step 0
        former = dict(self.ae.named_buffers()).get("threshold")
        former = None if former is None else former.clone()
        with t.autocast(x.device.type, dtype=t.bfloat16, enabled=self._in_bf16):
            self._trainer.update(step, x)
        if former is not None:
            new = self.ae.threshold
            self.ae.threshold = t.where(new.isfinite(), new, former)

    @t.no_grad()
    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """See `base.Trainer`."""
        encode: Any = self.ae.encode
        # In training, BatchTopK keeps the B k largest of a batch instead of using its threshold.
        is_by_batch = "return_active" in signature(encode).parameters
        f_BF = encode(x, use_threshold=False) if is_by_batch else encode(x)
        x_hat_BD = self.ae.decode(f_BF)
        l2_loss = (x - x_hat_BD).square().sum(-1).mean()
        return {"l2_loss": float(l2_loss)} | batch_metrics(x, x_hat_BD, f_BF)

    def check(self, step: int) -> NotFinite | None:
        """See `base.Trainer`."""
        state = self.ae.state_dict()
        if all(value.isfinite().all() for value in state.values()):
            self._last_finite = {name: value.clone() for name, value in state.items()}
            return None
        self.restore_last_finite()
        return NotFinite(step, "not finite; the weights are the last finite ones")

    def restore_last_finite(self) -> None:
        """See `base.Trainer`."""
        if self._last_finite is not None:
            self.ae.load_state_dict(self._last_finite)

    def state_dict(self) -> dict[str, Any]:
        """See `base.Trainer`. Upstream's trainers count in tensors."""
        counts = [n for n, v in vars(self._trainer).items() if isinstance(v, t.Tensor)]
        return state_of(self._trainer, counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `base.Trainer`."""
        load_state(self._trainer, state)


class CorrectedJumpReluTrainer(JumpReluTrainer):
    """Upstream's `JumpReluTrainer`, with the sparsity loss on pre-activations as in the paper.

    Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 10 to 12:

        pre_BF = x W_enc + b_enc,  f = JumpReLU(pre),  l0 = mean_B sum_F step(pre - threshold)
        loss   = mean_B ||x - x_hat||^2 + sparsity_penalty (l0 / target_l0 - 1)^2

    The threshold's gradient is a pseudo-derivative of the step function: it counts the pre-activations within half a
    bandwidth above and below the threshold. Upstream applies the step function to f, which is 0 below the threshold
    (dictionary_learning's issue 55). So it only counts those above, and thresholds learn half as fast. The loss has
    the same value.
    """

    def loss(self, x: t.Tensor, step: int, logging: bool = False, **_: Any) -> Any:
        """Upstream's loss with the corrected gradient for thresholds. Updates the dead-feature counters."""
        x = x.to(self.ae.W_enc.dtype)
        threshold_F = self.ae.threshold
        pre_BF = x @ self.ae.W_enc + self.ae.b_enc
        f_BF = JumpReLUFunction.apply(pre_BF, threshold_F, self.bandwidth)
        x_hat_BD = self.ae.decode(f_BF)
        fired_F = f_BF.detach().sum(0) > 0
        self.num_tokens_since_fired += len(x)
        self.num_tokens_since_fired[fired_F] = 0
        self.dead_features = int((self.num_tokens_since_fired > self.dead_feature_threshold).sum())
        l2_loss = (x - x_hat_BD).square().sum(-1).mean()
        l0: Any = StepFunction.apply(pre_BF, threshold_F, self.bandwidth)
        distance = l0.sum(-1).mean() / self.target_l0 - 1
        weight = self.sparsity_coefficient * self.sparsity_warmup_fn(step)
        loss = l2_loss + weight * distance.square()
        if not logging:
            return loss
        losses = {"l2_loss": l2_loss.item(), "loss": loss.item()}
        return LossLog(x, x_hat_BD, f_BF, losses)
