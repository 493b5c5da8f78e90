"""Adam with clipping that skips steps that are not finite, and a version for unit-norm decoders."""

from collections.abc import Iterable

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import nn

from .parts import WHOLE, Part

_COUNTS = ("skipped_steps", "first_skipped_step")


class GuardedAdam(t.optim.Adam):
    """Adam that clips the norm of all gradients to 1, and skips a step that is not finite.

    Skipping needs no synchronisation: the fused kernel reads the flag on the device.

    Attributes:
        skipped_steps: how many steps were skipped (0-dim, on the device).
        first_skipped_step: the first skipped step, or -1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, lr=lr, betas=(0.9, 0.999), fused=True)
        device = self.param_groups[0]["params"][0].device
        self.skipped_steps = t.zeros((), dtype=t.long, device=device)
        self.first_skipped_step = t.full((), -1, dtype=t.long, device=device)

    def state_dict(self) -> dict:
        """torch's state dict, plus the counts of skipped steps."""
        counts = {name: getattr(self, name).clone() for name in _COUNTS}
        return super().state_dict() | counts

    @t.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state dict, with each average in its parameter's memory layout, which fused Adam assumes."""
        super().load_state_dict({n: v for n, v in state_dict.items() if n not in _COUNTS})
        for name in _COUNTS:
            getattr(self, name).copy_(state_dict[name])
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = t.empty_like(parameter).copy_(state[name])

    @t.no_grad()
    def guarded_step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """Take a step along the gradients of `loss`, unless one isn't finite, and clear them.

        Returns: whether the step was taken (0-dim bool).
        """
        norm = self._gradient_norm()
        nn.utils.clip_grads_with_norm_(self.param_groups[0]["params"], 1.0, norm)
        is_finite = (norm + loss.detach()).abs() < t.inf  # fewer operations than asking of each
        is_skipped = ~is_finite
        self.found_inf = is_skipped.float()
        self.step()
        self.zero_grad()
        self.skipped_steps += is_skipped
        self.first_skipped_step.masked_fill_(is_skipped & (self.first_skipped_step < 0), step)
        return is_finite

    def _gradient_norm(self) -> t.Tensor:
        """The norm of all gradients together, 0-dim."""
        return nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]])


class UnitNormAdam(GuardedAdam):
    """Adam for a dictionary with unit-norm decoder columns.

    A step does what upstream's `TopKTrainer.update` does around its Adam, in fewer passes: project the decoder's
    gradient, clip, move, normalise the decoder. Gradients are clipped by their norm over all parts.
    """

    def __init__(self, dictionary: AutoEncoderTopK, lr: float, part: Part = WHOLE):
        super().__init__(dictionary.parameters(), lr)
        self.decoder_weight, self._b_dec, self._part = (
            dictionary.decoder.weight,
            dictionary.b_dec,
            part,
        )

    @t.no_grad()
    def constrained_step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """`guarded_step`, with the decoder's columns kept at norm 1."""
        weight = self.decoder_weight
        assert weight.grad is not None
        project_out_parallel(weight, weight.grad)
        is_finite = self.guarded_step(loss, step)
        weight.div_(t.where(is_finite, column_norms(weight), 1.0))
        return is_finite

    def _gradient_norm(self) -> t.Tensor:
        if self._part.count == 1:
            return super()._gradient_norm()
        own = [p.grad for p in self.param_groups[0]["params"] if p is not self._b_dec]
        assert self._b_dec.grad is not None
        squares = self._part.sum(
            nn.utils.get_total_norm(own).square()
        )  # b_dec's is the same in all parts
        return (squares + self._b_dec.grad.square().sum()).sqrt()


def column_norms(weight_DF: t.Tensor) -> t.Tensor:
    """The norms of a decoder's columns, (F,), plus eps as upstream adds it."""
    return t.linalg.vector_norm(weight_DF, dim=0) + t.finfo(weight_DF.dtype).eps


@t.no_grad()
def project_out_parallel(weight_DF: t.Tensor, grad_DF: t.Tensor) -> None:
    """Remove the component of each gradient column along its decoder column, in place.

    Same as upstream's `remove_gradient_parallel_to_decoder_directions`, in fewer passes.
    """
    norm_F = t.linalg.vector_norm(weight_DF, dim=0) + 1e-6
    parallel_F = (weight_DF * grad_DF).sum(0) / norm_F.square()
    grad_DF.addcmul_(weight_DF, parallel_F, value=-1)
