"""The processes that train one SAE together, and what their tensors have in common.

Each rank steps on its share of the batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch as t
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. With one, every method returns what it was given.

    Every rank must call the same methods in the same order, with tensors of the same shape and dtype.
    All get the same numbers, to the bit.

    Arguments:
        rank: of this process, from 0.
        count: how many there are. torch.distributed has been started if there are several.
    """

    rank: int = 0
    count: int = 1

    def sum_(self, x: t.Tensor) -> t.Tensor:
        """The sum over the ranks, in place."""
        if self.count > 1:
            dense = x.contiguous()  # a copy only of what has other strides
            dist.all_reduce(dense)
            if dense is not x:
                x.copy_(dense)
        return x

    def mean_(self, x: t.Tensor) -> t.Tensor:
        """The mean over the ranks, in place."""
        return self.sum_(x).div_(self.count) if self.count > 1 else x

    def sums(self, *parts: t.Tensor) -> tuple[t.Tensor, ...]:
        """The sum of each over the ranks, as new tensors of the last one's dtype; at once."""
        if self.count == 1:
            return parts
        flat = self.sum_(t.cat([part.reshape(-1).to(parts[-1].dtype) for part in parts]))
        split = flat.split([part.numel() for part in parts])
        return tuple(new.view(part.shape) for new, part in zip(split, parts, strict=True))

    def gather(self, x: t.Tensor) -> t.Tensor:
        """Every rank's tensor, one after the other: (N, …) for one of shape (…)."""
        if self.count == 1:
            return x[None]
        gathered = [t.empty_like(x, memory_format=t.contiguous_format) for _ in range(self.count)]
        dist.all_gather(gathered, x.contiguous())
        return t.stack(gathered)

    @t.no_grad()
    def copy_first_(self, tensors: Iterable[t.Tensor]) -> None:
        """Overwrite each tensor with rank 0's."""
        if self.count == 1:
            return
        for x in tensors:
            dense = x.contiguous()
            dist.broadcast(dense, 0)
            x.copy_(dense)


ALONE = Ranks()
"""One process."""


class FlatGradients:
    """The gradients of some parameters in one buffer, so that one message averages them all.

    Arguments:
        parameters: each has a gradient whenever `average` is called.
    """

    @t.no_grad()
    def __init__(self, parameters: Iterable[t.nn.Parameter], ranks: Ranks):
        self._parameters, self._ranks = list(parameters), ranks
        numbers = [parameter.numel() for parameter in self._parameters]
        self._flat = self._parameters[0].new_zeros(sum(numbers) + 1)
        parts = self._flat[:-1].split(numbers)
        self._views = [  # of each gradient, with its parameter's own strides
            part.as_strided(
                parameter.shape, t.empty_like(parameter).stride(), part.storage_offset()
            )
            for part, parameter in zip(parts, self._parameters, strict=True)
        ]

    @t.no_grad()
    def average(self, loss: t.Tensor | None = None) -> t.Tensor | None:
        """Average the gradients over the ranks. Returns the average of `loss`, 0-dim.

        What is not finite on one rank is not finite on all. The gradients are views of the buffer
        until they are cleared.
        """
        for view, parameter in zip(self._views, self._parameters, strict=True):
            assert parameter.grad is not None
            view.copy_(parameter.grad)
        if loss is not None:
            self._flat[-1] = loss.detach()
        self._ranks.mean_(self._flat)
        for view, parameter in zip(self._views, self._parameters, strict=True):
            parameter.grad = view
        return None if loss is None else self._flat[-1].clone()
