"""Forward passes of a language model, shared by the hook points and divided among the processes of a run.

Shapes: B contexts, L tokens, D = the width of a place.
"""

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .hook_points import AnyPlace, Place, input_device, read_places
from .language_models import CausalLM
from .tokens import ONE_RANK, Ranks

_log = logging.getLogger(__name__)

Contexts = tuple[Tensor, Tensor]
"""What one pass reads: token ids, int64, and the mask, 0 at padding. Both (B, L)."""


class SharedPasses:
    """Reads the activations at several places, whose readers ask for the same contexts in turn.

    The first reader runs the model for all places. Activations at the other places are kept until their reader
    asks for them. When readers ask for different contexts, sharing ends, which is logged.

    With several processes, each runs the model on some of the batches, and sends the activations to the others by
    torch.distributed. So every process gets what a single process would have read. All must ask for the same.
    """

    def __init__(self, model: CausalLM, places: Sequence[AnyPlace], ranks: Ranks = ONE_RANK):
        self.at_once = ranks.count
        """How many batches to ask for together, so that every process has one."""
        self._model, self._ranks = model, ranks
        self._places = list(places)
        self._kept: dict[AnyPlace, list[Tensor]] = {}
        self._passes: Sequence[Contexts] = ()  # the contexts that _kept is of
        self._dealt = 0  # the number of passes so far
        # D and dtype of a place's activations
        self._kinds: dict[Place, tuple[int, torch.dtype]] = {}

    def read(self, place: AnyPlace, passes: Sequence[Contexts]) -> list[Tensor]:
        """The activations at one of the places, (B, L, D) for each pass; see `read_places`. Of a pair (B, L, 2D)."""
        if place in self._kept and _are_equal(passes, self._passes):
            return self._kept.pop(place)
        if self._kept:  # their readers asked for other contexts
            self._places = []
            _log.info(
                "the hook points leave out different tokens (max_norm_multiple), so the language"
                " model runs for each of them from here on"
            )
        places = self._places or [place]
        sides = list(dict.fromkeys(side for each in places for side in each.sides))
        read = [dict(zip(sides, x, strict=True)) for x in self._run(sides, passes)]
        self._kept = {each: [_beside(x, each) for x in read] for each in places}
        self._passes = passes
        return self._kept.pop(place)

    def _run(self, places: Sequence[Place], passes: Sequence[Contexts]) -> list[list[Tensor]]:
        """For each pass, the activations at each place."""
        rank, count, _ = self._ranks
        dealt_to = [(self._dealt + number) % count for number in range(len(passes))]
        self._dealt += len(passes)
        own = {
            number: read_places(self._model, places, *passes[number])
            for number, its_rank in enumerate(dealt_to)
            if its_rank == rank
        }
        if count == 1:
            return list(own.values())
        if not self._kinds.keys() >= set(places):
            read = next(iter(own.values()), [])
            kinds = [[(x_BLD.shape[-1], x_BLD.dtype) for x_BLD in read]]
            dist.broadcast_object_list(kinds, src=dealt_to[0])
            self._kinds |= zip(places, kinds[0], strict=True)
        all_read, device = [], input_device(self._model.module)
        for number, (contexts, sender) in enumerate(zip(passes, dealt_to, strict=True)):
            read = own.get(number) or [
                torch.empty(*contexts[0].shape, width, dtype=dtype, device=device)
                for width, dtype in map(self._kinds.__getitem__, places)
            ]
            read = [x_BLD.contiguous() for x_BLD in read]
            for x_BLD in read:
                dist.broadcast(x_BLD.view(torch.uint8), src=sender)
            all_read.append(read)
        return all_read


def _beside(read: dict[Place, Tensor], place: AnyPlace) -> Tensor:
    """What was read at a place; of a pair, both sides."""
    first, *others = (read[side] for side in place.sides)
    return torch.cat([first, *others], -1) if others else first


def _are_equal(passes: Sequence[Contexts], others: Sequence[Contexts]) -> bool:
    return len(passes) == len(others) and all(
        torch.equal(*both)
        for one, other in zip(passes, others, strict=True)
        for both in zip(one, other, strict=True)
    )
