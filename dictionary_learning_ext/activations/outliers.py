"""Tokens whose activation has a norm far above the others': attention sinks, mostly.

They dominate a sum of squares, so an SAE that is trained on them reconstructs little else, and FVE
says little about the other tokens.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

FAR = 20.0
"""How many times the median a norm must be to be worth a warning."""
_GROUPS = 3


class Outliers(NamedTuple):
    """The tokens over FAR times the median, among those of one fill."""

    number: int
    tokens: int
    """Read in all."""
    largest: float
    """Norm."""
    median: float
    where: str
    """Which they are, in words."""

    def __str__(self) -> str:
        ratio, largest, median = map(
            _shown, (self.largest / self.median, self.largest, self.median)
        )
        return (
            f"Some activations are far larger than the rest: the largest norm is {ratio} times the "
            f"median ({largest} against {median}). {self.number:,} of {self.tokens:,} tokens are above "
            f"{FAR:g} times the median: {self.where}. They dominate the loss and FVE. Add "
            "--max-norm-multiple 10 to leave them out (the preset recommended does)."
        )


def _shown(number: float) -> str:
    """With at most four digits, but for those before the point: 23,000, 166.9, 0.12."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


class NormRecord:
    """The norms of the rows of a fill, each with its token and its position in its context."""

    def __init__(self):
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, rows_ND: Tensor, input_ids_N: Tensor, positions_N: Tensor) -> None:
        """Note some rows. An accelerator need not wait."""
        precision = torch.promote_types(rows_ND.dtype, torch.float32)
        norms_N = torch.linalg.vector_norm(rows_ND, dim=-1, dtype=precision)
        self._parts.append((norms_N, input_ids_N, positions_N))

    def outliers(self, tokenizer: Any) -> Outliers | None:
        """Those over FAR times the median; None if there are none."""
        if not self._parts:
            return None
        norms_N, input_ids_N, positions_N = map(torch.cat, zip(*self._parts, strict=True))
        norms_N = norms_N.cpu()
        median = float(norms_N.median())
        is_far_N = norms_N > FAR * median
        number = int(is_far_N.sum())
        if not number or not median:
            return None
        at_position = Counter(positions_N.tolist())
        far = list(zip(positions_N[is_far_N].tolist(), input_ids_N[is_far_N].tolist(), strict=True))
        words = where(far, at_position, tokenizer)
        return Outliers(number, len(norms_N), float(norms_N.max()), median, words)


def where(far: list[tuple[int, int]], at_position: Counter[int], tokenizer: Any) -> str:
    """The positions and tokens that account for most of the outliers, the most frequent first.

    Arguments:
        far: each outlier's position in its context and its token id.
        at_position: how many tokens were read at each position.
    """
    parts = []
    while far and len(parts) < _GROUPS:
        position, n_there = Counter(position for position, _ in far).most_common(1)[0]
        token, n_such = Counter(token for _, token in far).most_common(1)[0]
        if n_there >= n_such:
            is_always = n_there >= 0.9 * at_position[position]
            parts.append(f"position {position} of {'each context' if is_always else 'contexts'}")
            far = [each for each in far if each[0] != position]
        else:
            parts.append(f"token {tokenizer.decode([token])!r}")
            far = [each for each in far if each[1] != token]
    return ", ".join(parts) + (f" and {len(far):,} others" if far else "")
