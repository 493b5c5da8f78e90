"""Clipping, and a guard that skips steps that are not finite, around any optimiser; and unit-norm decoders.

Guarded(adam(parameters, lr))               clips, and skips what isn't finite
UnitNorm(adam(...), dictionary)             the same for a dictionary with unit-norm decoder columns
"""

from collections.abc import Iterable
from typing import Any

import torch as t
from torch import nn

from .parts import WHOLE, Part

_COUNTS = ("skipped_steps", "first_skipped_step")


def adam(parameters: Iterable[nn.Parameter], lr: float) -> t.optim.Adam:
    """Adam as upstream's trainers have it, fused."""
    return t.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), fused=True)


class Guarded:
    """An optimiser that clips the norm of all gradients to 1, and skips a step that is not finite.

    Skipping needs no synchronisation if the optimiser is fused: its kernel reads the flag on the device. Others wait for the
    device in each step.

    Arguments:
        optimizer: any of torch's.

    Attributes:
        skipped_steps: how many steps were skipped (0-dim, on the device).
        first_skipped_step: the first skipped step, or -1.
    """

    def __init__(self, optimizer: t.optim.Optimizer):
        self.optimizer = optimizer
        device = self.parameters[0].device
        self.skipped_steps = t.zeros((), dtype=t.long, device=device)
        self.first_skipped_step = t.full((), -1, dtype=t.long, device=device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that it moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def state(self) -> Any:
        """What the optimiser keeps of each parameter."""
        return self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state dict, plus the counts of skipped steps."""
        counts = {name: getattr(self, name).clone() for name in _COUNTS}
        return self.optimizer.state_dict() | counts

    @t.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict. What has a parameter's shape gets its memory layout, which fused kernels assume."""
        own = {name: value for name, value in state_dict.items() if name not in _COUNTS}
        self.optimizer.load_state_dict(own)
        for name in _COUNTS:
            getattr(self, name).copy_(state_dict[name])
        for parameter, state in self.state.items():
            for name, value in state.items():
                if isinstance(value, t.Tensor):
                    like = parameter if value.shape == parameter.shape else value
                    state[name] = t.empty_like(like, dtype=value.dtype).copy_(value)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    @t.no_grad()
    def step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """Take a step along the gradients of `loss`, unless one isn't finite, and clear them.

        Returns: whether the step was taken (0-dim bool).
        """
        norm = self._gradient_norm()
        nn.utils.clip_grads_with_norm_(self.parameters, 1.0, norm)
        is_finite = (norm + loss.detach()).abs() < t.inf  # fewer operations than asking of each
        is_skipped = ~is_finite
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # a fused one
            self.optimizer.found_inf = is_skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif is_finite:
            self.optimizer.step()
        self.zero_grad()
        self.skipped_steps += is_skipped
        self.first_skipped_step.masked_fill_(is_skipped & (self.first_skipped_step < 0), step)
        return is_finite

    def _gradient_norm(self) -> t.Tensor:
        """The norm of all gradients together, 0-dim."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])


class UnitNorm(Guarded):
    """A guarded optimiser of a dictionary with unit-norm decoder columns.

    A step does what upstream's `TopKTrainer.update` does around its Adam, in fewer passes: project the decoder's
    gradient, clip, move, normalise the decoder. Gradients are clipped by their norm over all parts.

    Arguments:
        dictionary: has upstream's `decoder.weight` (D, F) and `b_dec`.
    """

    def __init__(self, optimizer: t.optim.Optimizer, dictionary: Any, part: Part = WHOLE):
        super().__init__(optimizer)
        self.decoder_weight, self._b_dec = dictionary.decoder.weight, dictionary.b_dec
        self._part = part

    @t.no_grad()
    def step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """`Guarded.step`, with the decoder's columns kept at norm 1."""
        weight = self.decoder_weight
        assert weight.grad is not None
        project_out_parallel(weight, weight.grad)
        is_finite = super().step(loss, step)
        weight.div_(t.where(is_finite, column_norms(weight), 1.0))
        return is_finite

    def _gradient_norm(self) -> t.Tensor:
        if self._part.count == 1:
            return super()._gradient_norm()
        own = [p.grad for p in self.parameters if p is not self._b_dec and p.grad is not None]
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
