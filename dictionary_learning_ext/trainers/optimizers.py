"""Adam that clips and skips steps that are not finite, and the same for unit-norm decoders."""

from collections.abc import Iterable

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import nn

_COUNTS = {"skipped_steps", "first_skipped_step"}


class GuardedAdam(t.optim.Adam):
    """Adam that clips the norm of all gradients to 1, and moves nothing where they are not finite.

    Leaving out a step costs no sync, since the fused kernel itself reads the flag.

    Arguments:
        parameters: what it moves.
        lr: the learning rate.

    Attributes:
        skipped_steps: how many steps were skipped (0-dim, on the device).
        first_skipped_step: the first of them, or -1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, lr=lr, betas=(0.9, 0.999), fused=True)
        device = self.param_groups[0]["params"][0].device
        self.skipped_steps = t.zeros((), dtype=t.long, device=device)
        self.first_skipped_step = t.full((), -1, dtype=t.long, device=device)

    def state_dict(self) -> dict:
        """As torch's, with the counts of skipped steps."""
        counts = {name: getattr(self, name).clone() for name in _COUNTS}
        return super().state_dict() | counts

    @t.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, of this class or of Adam.

        Each average is laid out in memory as its parameter: fused Adam assumes it.
        """
        super().load_state_dict({n: v for n, v in state_dict.items() if n not in _COUNTS})
        for name in _COUNTS & state_dict.keys():
            getattr(self, name).copy_(state_dict[name])
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = t.empty_like(parameter).copy_(state[name])

    @t.no_grad()
    def guarded_step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """Move by the gradients of `loss`, and clear them. Returns whether it did (0-dim bool)."""
        norm = nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        is_finite = norm.isfinite() & loss.detach().isfinite()
        self.found_inf = (~is_finite).float()
        self.step()
        self.zero_grad()
        self.skipped_steps += ~is_finite
        self.first_skipped_step.masked_fill_(~is_finite & (self.first_skipped_step < 0), step)
        return is_finite


class UnitNormAdam(GuardedAdam):
    """Adam for a dictionary whose decoder columns have norm 1.

    A step projects the decoder's gradient, clips the norm of all gradients to 1, moves, and
    renormalises the decoder: what upstream's `TopKTrainer.update` does around its Adam, in fewer
    passes. Where the loss or a gradient is not finite nothing moves.

    Arguments:
        dictionary: its `decoder.weight` is (D, F).
        lr: the learning rate.
    """

    def __init__(self, dictionary: AutoEncoderTopK, lr: float):
        super().__init__(dictionary.parameters(), lr)
        self.decoder_weight = dictionary.decoder.weight

    @t.no_grad()
    def constrained_step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """Move by the gradients of `loss`, and clear them. Returns whether it did (0-dim bool)."""
        weight = self.decoder_weight
        assert weight.grad is not None
        project_out_parallel(weight, weight.grad)
        is_finite = self.guarded_step(loss, step)
        norm_F = t.linalg.vector_norm(weight, dim=0) + t.finfo(weight.dtype).eps
        weight.div_(t.where(is_finite, norm_F, 1.0))
        return is_finite


@t.no_grad()
def project_out_parallel(weight_DF: t.Tensor, grad_DF: t.Tensor) -> None:
    """Take from each column of the gradient its part along the decoder's column, in place.

    Upstream's `remove_gradient_parallel_to_decoder_directions`, in fewer passes.
    """
    norm_F = t.linalg.vector_norm(weight_DF, dim=0) + 1e-6
    parallel_F = (weight_DF * grad_DF).sum(0) / norm_F.square()
    grad_DF.addcmul_(weight_DF, parallel_F, value=-1)
