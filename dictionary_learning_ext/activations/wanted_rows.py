"""Which rows of stored contexts are wanted, and whether all of these are finite.

Shapes: N contexts, L = ctx_len tokens, D = the width of a row.
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, NonFiniteError, Setting
from .position_rule import PositionRule, at, norms
from .stored import Part, Piece, StoredActivations

ROWS_AT_ONCE = 4096
"""Rows that are judged together, about: `PositionRule` compares each norm with their median."""


def activations_of(piece: Piece) -> Tensor:
    """A copy of a piece's activations, (N, L, D), in the dtype of the disk."""
    copy = torch.from_numpy(np.array(piece.x_NLD))
    return copy.view(torch.bfloat16) if copy.dtype == torch.uint16 else copy


def judged(
    piece: Piece, rule: PositionRule, part: Part, hook: str
) -> tuple[Tensor, Tensor, Tensor]:
    """A piece's activations, token ids (0 where there are none) and which of them are wanted.

    Raises: NonFiniteError if a wanted activation is NaN or infinite.
    """
    x_NLD = activations_of(piece)
    if piece.ids_NL is None:
        ids_NL = torch.zeros(x_NLD.shape[:2], dtype=torch.int64)
    else:
        ids_NL = torch.from_numpy(np.array(piece.ids_NL, dtype=np.int64))
    wanted_NL = rule.by_token(ids_NL, ids_NL >= 0)
    norms_NL = norms(x_NLD)
    if number := int((~at(norms_NL, wanted_NL).isfinite()).sum()):
        if piece.ids_NL is None:
            raise NonFiniteError(
                f"{part.path}: NaN or infinite numbers in {number} or more of its rows; expected"
                " finite ones; remove these rows"
            )
        raise NonFiniteError(
            f"{number} activations in {part.path} at {hook} are NaN or infinite",
            expected="finite numbers",
            instead=("cache them again with ", Setting("lm_dtype", "float32")),
        )
    return x_NLD, ids_NL, rule.by_norm(norms_NL, wanted_NL)


def rule_of(
    stored: StoredActivations, *, remove_bos: bool, max_norm_multiple: float | None
) -> PositionRule:
    """Which of the stored tokens are left out. Raises ConfigError if that can't be known."""
    if remove_bos and stored.manifest is None:
        raise ConfigError(
            f"{stored.folder} doesn't say which token that is",
            name="remove_bos",
            value=True,
            instead=("use ", Setting("remove_bos", False)),
        )
    bos = None if stored.manifest is None else stored.manifest.settings.bos_token_id
    return PositionRule(
        SimpleNamespace(bos_token_id=bos),
        remove_bos=remove_bos,
        max_norm_multiple=max_norm_multiple,
    )
