"""From tokens to activations: runs the language model, and says which tokens are left out.

Training, evaluation and reports all read through `ActivationReader`, so its rules hold everywhere.

Shapes: B contexts, L = ctx_len tokens, N wanted tokens (not left out), D = the submodule's width.
"""

from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from nnsight import LanguageModel
from torch import Tensor

from ..config.checks import require
from ..errors import ConfigError, NonFiniteError
from .language_models import read_submodule


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
    """Reads a language model's activations at a submodule. These tokens are left out:

    - padding;
    - with `remove_bos`, the tokenizer's beginning-of-text token, wherever it stands. Where that is
      the end-of-text token too (GPT-NeoX, GPT-2), it is the separator of packed text;
    - with `max_norm_multiple`, outliers: tokens whose activation has a norm over this multiple of
      the median norm of the tokens read together.

    An activation that is NaN or infinite is an error, unless its token is left out.

    Arguments:
        model: the language model.
        submodule: nnsight's envoy of the module to read.
        io: "in" or "out", the side of the module to read.

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
    ):
        require(io in ("in", "out"), "io", io, "in or out, the side of the submodule to read")
        if max_norm_multiple is not None:
            expected = "above 1 (10 leaves out attention sinks)"
            require(max_norm_multiple > 1, "max_norm_multiple", max_norm_multiple, expected)
        tokenizer: Any = model.tokenizer
        if remove_bos and tokenizer.bos_token_id is None:
            raise ConfigError(
                "remove_bos=True: the tokenizer has no beginning-of-text token; use"
                " remove_bos=False (to leave out attention sinks: max_norm_multiple=10)"
            )
        self._model = model
        self._submodule = submodule
        self._io: Literal["in", "out"] = io
        self._skip_token_id = tokenizer.bos_token_id if remove_bos else None
        self._max_norm_multiple = max_norm_multiple

    def wanted(self, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The tokens to keep, judged by ids and mask only. Outliers are still included."""
        wanted_BL = mask_BL.bool()
        if self._skip_token_id is not None:
            wanted_BL &= input_ids_BL != self._skip_token_id
        return wanted_BL

    def read(self, input_ids_BL: Tensor, mask_BL: Tensor, wanted_BL: Tensor) -> Activations:
        """Run the language model as far as the submodule.

        Arguments:
            input_ids_BL: int64.
            mask_BL: 0 at padding.
            wanted_BL: the result of `wanted`, or a subset. Outliers are found among these.

        Raises: NonFiniteError, if `max_norm_multiple` is given. Otherwise see `require_finite`.
        """
        x_BLD = read_submodule(self._model, self._submodule, self._io, input_ids_BL, mask_BL)
        precision = torch.promote_types(x_BLD.dtype, torch.float32)
        norms_BL = torch.linalg.vector_norm(x_BLD, dim=-1, dtype=precision)
        place_N = rearrange(wanted_BL, "b l -> (b l)").nonzero().squeeze(1)
        norms_N = rearrange(norms_BL, "b l -> (b l)")[place_N.to(norms_BL.device)]
        non_finite = (~norms_N.isfinite()).sum()
        if self._max_norm_multiple is not None and len(place_N):
            self.require_finite(non_finite)  # a NaN median would leave out every token
            is_kept_N = norms_N <= self._max_norm_multiple * norms_N.median()
            wanted_BL = wanted_BL.clone().masked_scatter_(wanted_BL, is_kept_N.cpu())
        return Activations(x_BLD, wanted_BL, non_finite)

    def require_finite(self, non_finite: Tensor | int) -> None:
        """Raise NonFiniteError unless `non_finite` activations, of one or several reads, are 0."""
        if number := int(non_finite):
            path = self._submodule.path.removeprefix(".")
            raise NonFiniteError(
                f"{number} activations of the language model at the {self._io}put of {path} are NaN"
                " or infinite: expected finite numbers; load the model in float32 (vsae train"
                " --dtype float32) or check its weights"
            )
