"""Reading activations at a hook point, and leaving out the tokens that a rule excludes.

Whatever is read from a language model or from files, the same `PositionRule` leaves tokens out.

Shapes: B contexts, L = ctx_len tokens, N tokens, D = the width of an activation.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .hook_points import AnyPlace, Change, hooked, input_device
from .language_models import CausalLM
from .passes import SharedPasses
from .positions import PositionRule


def drawn_seed(*what: object) -> int:
    """A 63-bit seed that follows from the arguments, by a hash."""
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ContextBatch(NamedTuple):
    """Some contexts of tokens, with their activations at a hook point."""

    input_ids_BL: Tensor
    """Token ids, int64, -1 at padding. All 0 if the ids aren't known."""
    wanted_BL: Tensor
    """False at padding and at tokens that are left out."""
    x_BLD: Tensor
    """Activations in float32; those of `read_contexts` have the dtype of the file. Of a pair of hook points (B, L, 2D)."""
    is_sink_BL: Tensor
    """True at tokens that are left out because of their norm."""

    @property
    def wanted_ND(self) -> Tensor:
        """The activations of the wanted tokens, (N, D)."""
        return self.x_BLD[self.wanted_BL.to(self.x_BLD.device)]


class ActivationReader:
    """Reads a language model's activations at one place, and leaves out the tokens that a rule excludes.

    An activation that is NaN or infinite is an error, unless its token is left out.

    Arguments:
        shared: the forward passes that several places share. Default: forward passes of its own.
    """

    def __init__(
        self,
        model: CausalLM,
        place: AnyPlace,
        rule: PositionRule,
        shared: SharedPasses | None = None,
    ):
        self.place, self.rule = place, rule
        self._model = model.module
        self.forward_passes = shared or SharedPasses(model, [place])

    def run(self, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Run the language model up to the place.

        Arguments:
            input_ids_BL: int64.
            mask_BL: 0 at padding.

        Returns: the activations, (B, L, D), in the model's dtype and on its device.
        """
        return self.forward_passes.read(self.place, [(input_ids_BL, mask_BL)])[0]

    def without_outliers(self, x_BLD: Tensor, wanted_BL: Tensor) -> tuple[Tensor, Tensor]:
        """What the rule's `without_outliers` returns. Reading its number synchronises with the GPU.

        Arguments:
            wanted_BL: what `rule.by_token` returns, or a subset.

        Raises: NonFiniteError if the rule has a `max_norm_multiple`; otherwise the caller calls
            `require_finite`.
        """
        sides = len(self.place.sides)
        kept_BL, non_finite = self.rule.without_outliers(x_BLD, wanted_BL, sides)
        if self.rule.max_norm_multiple is not None:
            self.require_finite(non_finite)  # a NaN median would leave out every token
        return kept_BL, non_finite

    @torch.no_grad()
    def logits_with(self, input_ids_BL: Tensor, mask_BL: Tensor, change: Change) -> Tensor:
        """Run the language model to its end with changed activations at the place, see `hooked`.

        Arguments:
            input_ids_BL: int64. Padding must be on the right: the model counts positions from the left.
            mask_BL: 0 at padding.

        Returns: the logits, (B, L, V) of V tokens in the vocabulary, in the model's dtype.
        """
        device = input_device(self._model)
        with hooked(self.place, change):
            return self._model(
                input_ids=input_ids_BL.to(device),
                attention_mask=mask_BL.to(device),
                use_cache=False,
            ).logits

    def require_finite(self, non_finite: Tensor | int) -> None:
        """Raise NonFiniteError if any activations are NaN or infinite.

        Arguments:
            non_finite: how many are; may be a sum over several reads.
        """
        if number := int(non_finite):
            raise NonFiniteError(
                f"{number} activations of the language model at {self.place} are NaN or infinite",
                expected="finite numbers",
                instead="load the model in float32, or check its weights",
            )
