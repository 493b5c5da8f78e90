"""Adam that clips, and leaves out the steps that are not finite."""

from collections.abc import Iterable

import torch as t
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
