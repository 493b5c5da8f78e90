"""Upstream's JumpReLU trainer, with the sparsity loss of the JumpReLU paper.

Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 10 to 12. Shapes: B batch, D activation_dim,
F dict_size.
"""

from typing import Any

import torch as t
from dictionary_learning.trainers.jumprelu import JumpReLUFunction, JumpReluTrainer, StepFunction

from .base import LossLog


class CorrectedJumpReluTrainer(JumpReluTrainer):
    """Upstream's `JumpReluTrainer`, whose sparsity loss sees the pre-activations.

        pre_BF = x W_enc + b_enc,  f = JumpReLU(pre),  l0 = mean_B sum_F step(pre - threshold)
        loss   = mean_B ||x - x_hat||^2 + sparsity_penalty (l0 / target_l0 - 1)^2

    The threshold learns of the step function by a pseudo-derivative, which counts the pre-activations
    within half a bandwidth on either side of it. Upstream applies the step function to f, where all
    below the threshold are 0 (dictionary_learning's issue 55). So it counts those above alone, and
    thresholds learn half as fast. The loss has the same value.

    Arguments beyond upstream's:
        threshold_twice: do as upstream does.
    """

    def __init__(self, *args: Any, threshold_twice: bool = False, **options: Any):
        super().__init__(*args, **options)
        self.threshold_twice = threshold_twice

    def loss(self, x: t.Tensor, step: int, logging: bool = False, **_: Any) -> Any:
        """Upstream's, but for the gradient of the thresholds. Updates the counters of dead features."""
        if self.threshold_twice:
            return super().loss(x, step, logging=logging)
        x = x.to(self.ae.W_enc.dtype)
        threshold_F = self.ae.threshold
        pre_BF = x @ self.ae.W_enc + self.ae.b_enc
        f_BF = JumpReLUFunction.apply(pre_BF, threshold_F, self.bandwidth)
        x_hat_BD = self.ae.decode(f_BF)
        self._count(f_BF.detach())
        l2_loss = (x - x_hat_BD).square().sum(-1).mean()
        l0: Any = StepFunction.apply(pre_BF, threshold_F, self.bandwidth)
        distance = l0.sum(-1).mean() / self.target_l0 - 1
        weight = self.sparsity_coefficient * self.sparsity_warmup_fn(step)
        loss = l2_loss + weight * distance.square()
        if not logging:
            return loss
        losses = {"l2_loss": l2_loss.item(), "loss": loss.item()}
        return LossLog(x, x_hat_BD, f_BF, losses)

    def _count(self, f_BF: t.Tensor) -> None:
        fired_F = f_BF.sum(0) > 0
        self.num_tokens_since_fired += len(f_BF)
        self.num_tokens_since_fired[fired_F] = 0
        self.dead_features = int((self.num_tokens_since_fired > self.dead_feature_threshold).sum())

    @property
    def config(self) -> dict[str, Any]:
        """Upstream's, class names included: its readers take the SAE. And which loss it was."""
        return super().config | {"threshold_twice": self.threshold_twice}
