"""Adam that clips gradients and skips steps that are not finite; and one for unit-norm decoders."""

from collections.abc import Iterable

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import nn

from .parts import WHOLE, Part

_COUNTS = ("skipped_steps", "first_skipped_step")


class GuardedAdam(t.optim.Adam):
    """Adam that clips the norm of all gradients to 1, and skips a step that is not finite.

    Skipping costs no synchronisation: the fused kernel reads the flag on the device.

    Arguments:
        parameters: what it trains.
        lr: the learning rate.

    Attributes:
        skipped_steps: how many steps were skipped (0-dim, on the device).
        first_skipped_step: the first of them; -1 if there is none.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, lr=lr, betas=(0.9, 0.999), fused=True)
        device = self.param_groups[0]["params"][0].device
        self.skipped_steps = t.zeros((), dtype=t.long, device=device)
        self.first_skipped_step = t.full((), -1, dtype=t.long, device=device)

    def state_dict(self) -> dict:
        """Torch's, with the counts of skipped steps."""
        counts = {name: getattr(self, name).clone() for name in _COUNTS}
        return super().state_dict() | counts

    @t.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this class, or of torch's Adam.

        Fused Adam assumes that each average has the memory layout of its parameter.
        """
        super().load_state_dict({n: v for n, v in state_dict.items() if n not in _COUNTS})
        for name in state_dict.keys() & _COUNTS:
            getattr(self, name).copy_(state_dict[name])
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = t.empty_like(parameter).copy_(state[name])

    @t.no_grad()
    def guarded_step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """Take a step by the gradients of `loss`, and clear them.

        Returns: whether the step was finite, and so was taken (0-dim bool).
        """
        norm = self._gradient_norm()
        nn.utils.clip_grads_with_norm_(self.param_groups[0]["params"], 1.0, norm)
        is_finite = (
            norm + loss.detach()
        ).abs() < t.inf  # both are: one that isn't stays in the sum
        is_skipped = ~is_finite
        self.found_inf = is_skipped.float()
        self.step()
        self.zero_grad()
        self.skipped_steps += is_skipped
        self.first_skipped_step.masked_fill_(is_skipped & (self.first_skipped_step < 0), step)
        return is_finite

    def _gradient_norm(self) -> t.Tensor:
        """The norm of all gradients, 0-dim."""
        return nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]])


class UnitNormAdam(GuardedAdam):
    """Adam for a dictionary with unit-norm decoder columns.

    A step does what upstream's `TopKTrainer.update` does around its Adam, in fewer passes: project
    the decoder's gradient, clip, move, normalise the decoder. It is skipped if the loss or a
    gradient is not finite.

    Arguments:
        dictionary: its `decoder.weight` is (D, F), of the features of `part`.
        lr: the learning rate.
        part: the norm is that of the gradients of all parts.
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
        """`guarded_step`, which keeps the decoder's columns unit-norm."""
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
    """What a decoder's columns are divided by to be unit-norm, (F,). Upstream adds eps too."""
    return t.linalg.vector_norm(weight_DF, dim=0) + t.finfo(weight_DF.dtype).eps


@t.no_grad()
def project_out_parallel(weight_DF: t.Tensor, grad_DF: t.Tensor) -> None:
    """Remove from each column of the gradient its part along the decoder's column, in place.

    Does what upstream's `remove_gradient_parallel_to_decoder_directions` does, in fewer passes.
    """
    norm_F = t.linalg.vector_norm(weight_DF, dim=0) + 1e-6
    parallel_F = (weight_DF * grad_DF).sum(0) / norm_F.square()
    grad_DF.addcmul_(weight_DF, parallel_F, value=-1)
