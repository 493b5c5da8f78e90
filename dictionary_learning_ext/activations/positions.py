"""The rule that says which tokens are used. Training and evaluation follow the same one.

A token that `PositionRule` leaves out is not trained on, not measured, and not changed by any
intervention on the language model. Outliers are tokens whose activation has a far larger norm than others:
mostly attention sinks. They dominate a sum of squares. So an SAE that is trained on them
reconstructs little else, and FVE says little about the other tokens.

Shapes: B contexts, L = ctx_len tokens, N tokens, D = the activations' width.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..config.checks import changed, require
from ..config.run import RunConfig
from ..errors import ConfigError
from ..run_folder.identity import LEAVING_OUT

CONTEXTS_PER_MEDIAN = 32
"""Contexts whose median norm each norm is compared with, whatever the language model's batch size."""


class PositionRule:
    """Leaves out these positions:

    - padding;
    - with `remove_bos`, the tokenizer's beginning-of-text token, wherever it stands. For GPT-NeoX and GPT-2 this
      is the end-of-text token too, which separates documents in packed text;
    - with `max_norm_multiple`, outliers: activations whose norm is over this multiple of the median
      norm of those that are read with them. These are CONTEXTS_PER_MEDIAN contexts; of files, in training, about 4,096
      rows (`StoredRows`); where the language model's loss is measured, a batch of documents (`DocumentLosses`).

    Arguments:
        tokenizer: the tokenizer, or the settings of a cache, which have its bos_token_id. None: it isn't known.

    Raises: ConfigError if a setting is out of range, or the tokenizer has no beginning-of-text token.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        remove_bos: bool = False,
        max_norm_multiple: float | None = None,
    ):
        is_legal = max_norm_multiple is None or max_norm_multiple > 1
        require(is_legal, "max_norm_multiple", max_norm_multiple, "above 1, or none")
        self.settings = {"remove_bos": remove_bos, "max_norm_multiple": max_norm_multiple}
        self.max_norm_multiple = max_norm_multiple
        self.skip_token_id: int | None = None
        if remove_bos:  # only then, as transformers 4 logs an error where there is none
            self.skip_token_id = getattr(tokenizer, "bos_token_id", None)
            if self.skip_token_id is None:
                raise ConfigError(
                    "the tokenizer has no beginning-of-text token, or the activations don't say which"
                    " it is",
                    name="remove_bos",
                    value=True,
                    instead="use remove_bos=False",
                )

    @classmethod
    def of(cls, run: RunConfig, tokenizer: Any) -> "PositionRule":
        """The rule by which a run trains."""
        return cls(tokenizer, **leaving_out(run))

    @classmethod
    def of_measuring(cls, run: RunConfig, tokenizer: Any) -> "PositionRule":
        """The rule by which a run's SAEs are measured. It always leaves out attention sinks."""
        return cls.of(changed(run, max_norm_multiple=run.sink_multiple), tokenizer)

    def by_token(self, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The positions to use according to ids and mask (0 at padding). Outliers are among them."""
        wanted_BL = mask_BL.bool()
        if self.skip_token_id is not None:
            wanted_BL = wanted_BL & (input_ids_BL != self.skip_token_id)
        return wanted_BL

    def by_norm(self, norms_BL: Tensor, wanted_BL: Tensor) -> Tensor:
        """The wanted positions without outliers, on the CPU. If the median is 0, there are no outliers.

        Arguments:
            norms_BL: norms of the activations that share one median, finite at the wanted positions.
            wanted_BL: what `by_token` returns, or a subset, on the CPU. The median is over these positions.
        """
        if self.max_norm_multiple is None:
            return wanted_BL
        norms_N = at(norms_BL, wanted_BL)
        if not len(norms_N):
            return wanted_BL
        median = norms_N.median()
        is_kept_N = (norms_N <= self.max_norm_multiple * median) | (median == 0)
        return wanted_BL.clone().masked_scatter_(wanted_BL, is_kept_N.cpu())

    def without_outliers(
        self, x_BLD: Tensor, wanted_BL: Tensor, sides: int
    ) -> tuple[Tensor, Tensor]:
        """The positions that `by_norm` keeps on every side of activations that share one median norm.

        Returns: the positions, (B, L), on the CPU, and how many of those that were wanted have an activation that is NaN or
            infinite: a number on the activations' device. If there are any, they also spoil the median.
        """
        norms_of = [norms(side) for side in x_BLD.chunk(sides, -1)]
        non_finite = torch.stack([~at(one, wanted_BL).isfinite() for one in norms_of]).sum()
        return torch.stack([self.by_norm(one, wanted_BL) for one in norms_of]).all(0), non_finite


def norms(x_BLD: Tensor) -> Tensor:
    """The norms of activations, (B, L), in float32, or in float64 if the activations are."""
    precision = torch.promote_types(x_BLD.dtype, torch.float32)
    return torch.linalg.vector_norm(x_BLD, dim=-1, dtype=precision)


def at(values_BL: Tensor, wanted_BL: Tensor) -> Tensor:
    """The values at some positions, (N,), in reading order. Does not synchronise with the GPU."""
    place_N = rearrange(wanted_BL, "b l -> (b l)").nonzero().squeeze(1)
    return rearrange(values_BL, "b l -> (b l)")[place_N.to(values_BL.device)]


def leaving_out(run: RunConfig) -> dict[str, Any]:
    """The settings of a run that leave out tokens, by their names."""
    return {name: getattr(run, name) for name in LEAVING_OUT}


def left_out(*, remove_bos: bool = False, max_norm_multiple: float | None = None) -> str:
    """The tokens that a rule leaves out besides padding, in words; empty if there are none."""
    parts = ["beginning-of-text tokens (--remove-bos)"] if remove_bos else []
    if max_norm_multiple is not None:
        parts.append(f"outliers (--max-norm-multiple {max_norm_multiple:g})")
    return " and ".join(parts)
