"""One forward pass of a language model for several hook points."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from nnsight import LanguageModel
from torch import Tensor

from .language_models import Place, read_places

_log = logging.getLogger(__name__)


class SharedPass:
    """Reads the activations at several places, which ask for the same contexts in turn.

    The first to ask runs the model for all. What the others have not asked for yet is kept, of one
    batch of contexts. Places that don't ask for the same contexts stop sharing, which is logged.

    Arguments:
        model: the language model.
        places: where it is read.
    """

    def __init__(self, model: LanguageModel, places: Sequence[Place]):
        self._model = model
        self._places = list(places)
        self._kept: dict[Place, Tensor] = {}
        self._contexts: tuple[Tensor, Tensor] | None = None  # that _kept was read at

    def read(self, place: Place, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The activations at one of the places, (B, L, D); see `read_places`."""
        if place in self._kept and self._is_of(input_ids_BL, mask_BL):
            return self._kept.pop(place)
        if self._kept:  # their places went another way
            self._places = []
            _log.info(
                "the hook points leave out different tokens (max_norm_multiple), so the language"
                " model runs for each of them from here on"
            )
        places = self._places or [place]
        read = read_places(self._model, places, input_ids_BL, mask_BL)
        self._kept = dict(zip(places, read, strict=True))
        self._contexts = input_ids_BL, mask_BL
        return self._kept.pop(place)

    def _is_of(self, input_ids_BL: Tensor, mask_BL: Tensor) -> bool:
        if self._contexts is None:
            return False
        return input_ids_BL.equal(self._contexts[0]) and mask_BL.equal(self._contexts[1])


def in_step(parts: Iterable[Iterator[object]]) -> None:
    """Run several iterators to their ends, a step of each in turn."""
    for _ in zip_longest(*parts):
        pass
