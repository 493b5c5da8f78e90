"""From tokens to activations: runs the language model, and says which tokens are left out.

Training, evaluation and reports all read through `ActivationReader`, so one rule holds everywhere.

Shapes: B contexts, L = ctx_len tokens, D = the submodule's width.
"""

from typing import Any, Literal, NamedTuple

from nnsight import LanguageModel
from torch import Tensor

from ..config.checks import require
from ..errors import NonFiniteError
from .interventions import Change, logits_with
from .language_models import Place
from .position_rule import PositionRule, at, norms
from .shared_pass import SharedPass


class Activations(NamedTuple):
    """Activations of some contexts."""

    x_BLD: Tensor
    """In the model's dtype and on its device."""
    wanted_BL: Tensor
    """False at the tokens that are left out. On the CPU."""
    non_finite: Tensor
    """How many wanted tokens have an activation that is NaN or infinite. A number on the model's
    device: reading it makes an accelerator wait."""


class ActivationReader:
    """Reads a language model's activations at a submodule, where its `PositionRule` wants them.

    An activation that is NaN or infinite is an error, unless its token is left out.

    Arguments:
        model: the language model.
        submodule: nnsight's envoy of the module to read.
        io: "in" or "out", the side of the module to read.
        remove_bos, max_norm_multiple: which tokens are left out, see `PositionRule`.
        shared: reads the submodule together with others. Default: on its own.

    Attributes:
        rule: says which tokens are left out.

    Raises: ConfigError if a setting is out of range or the tokenizer has no such token.
    """

    def __init__(
        self,
        model: LanguageModel,
        submodule: Any,
        io: Literal["in", "out"],
        *,
        remove_bos: bool = False,
        max_norm_multiple: float | None = None,
        shared: SharedPass | None = None,
    ):
        require(io in ("in", "out"), "io", io, "in or out, the side of the submodule to read")
        self.rule = PositionRule(
            model.tokenizer, remove_bos=remove_bos, max_norm_multiple=max_norm_multiple
        )
        self._model = model
        self._place = Place(submodule, io)
        self._pass = shared or SharedPass(model, [self._place])

    def read(self, input_ids_BL: Tensor, mask_BL: Tensor, wanted_BL: Tensor) -> Activations:
        """Run the language model as far as the submodule.

        Arguments:
            input_ids_BL: int64.
            mask_BL: 0 at padding.
            wanted_BL: what `rule.by_token` returns, or a subset. Outliers are found among these.

        Raises: NonFiniteError, if `max_norm_multiple` is given. Otherwise see `require_finite`.
        """
        return self.judge(self._pass.read(self._place, input_ids_BL, mask_BL), wanted_BL)

    def judge(self, x_BLD: Tensor, wanted_BL: Tensor) -> Activations:
        """Activations that were read by other means, with outliers among the wanted ones found."""
        norms_BL = norms(x_BLD)
        non_finite = (~at(norms_BL, wanted_BL).isfinite()).sum()
        if self.rule.max_norm_multiple is not None:
            self.require_finite(non_finite)  # a NaN median would leave out every token
        return Activations(x_BLD, self.rule.by_norm(norms_BL, wanted_BL), non_finite)

    def logits_with(self, input_ids_BL: Tensor, mask_BL: Tensor, change: Change) -> Tensor:
        """Run the language model to its end with changed activations, see `interventions`."""
        return logits_with(self._model, *self._place, input_ids_BL, mask_BL, change)

    def require_finite(self, non_finite: Tensor | int) -> None:
        """Raise NonFiniteError unless `non_finite` activations, of one or several reads, are 0."""
        if number := int(non_finite):
            path = self._place.submodule.path.removeprefix(".")
            raise NonFiniteError(
                f"{number} activations of the language model at the {self._place.io}put of {path} are NaN"
                " or infinite",
                expected="finite numbers",
                instead="load the model in float32, or check its weights",
            )
