"""How a claim of the paper is judged: from differences, seed by seed, in each cell of the comparison."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from experiments.paper.paper_results import RATIOS, PaperResults

Cells = dict[str, list[float]]
"""By k/F and beta, one number per seed."""
KINDS = ("equations", "code")
SLIGHT = 0.02
"""What "slightly lower", "minor" and "equal" mean here: an FVE within this of TopK's."""
HOLDS, DOES_NOT, OPEN = "holds", "does not hold", "can't be told"


@dataclass(frozen=True)
class Claim:
    """What the paper says, and for each model our numbers and whether it holds."""

    says: str
    rows: list[tuple[str, str, str]]

    def lines(self) -> list[str]:
        """Of the table: the claim once, then a line for each model."""
        said = [self.says, *[""] * (len(self.rows) - 1)]
        return [
            f"| {says} | {' | '.join(row)} |" for says, row in zip(said, self.rows, strict=True)
        ]


def word(for_claim: list[float]) -> str:
    """Holds if every seed's number is above 0, does not if none is.

    Of five seeds either has a one-sided sign-flip p of 1/32; anything between has more than 0.05.
    """
    held = sum(value > 0 for value in for_claim)
    return HOLDS if held == len(for_claim) else DOES_NOT if held == 0 else OPEN


def judged(for_claim: Cells) -> str:
    """The verdicts, each with the cells that it applies to."""
    cells: dict[str, list[str]] = {}
    for label, values in for_claim.items():
        cells.setdefault(word(values), []).append(label)
    if len(cells) == 1:
        return f"**{next(iter(cells))}**"
    return "; ".join(f"**{verdict}** at {', '.join(labels)}" for verdict, labels in cells.items())


def minus(own: Cells, other: Cells) -> Cells:
    """Cell by cell, seed by seed."""
    return {c: [a - b for a, b in zip(own[c], other[c], strict=True)] for c in own}


def turned(cells: Cells, turn: Callable[[float], float]) -> Cells:
    """Every number turned so that the claim's side is above 0."""
    return {cell: list(map(turn, values)) for cell, values in cells.items()}


def shown(cells: Cells, digits: str = "+.3f") -> str:
    return ", ".join(f"{statistics.mean(v):{digits}} at {label}" for label, v in cells.items())


def cells_of(kind: str) -> dict[str, tuple[str, int, int]]:
    """By label, the (model, F/D, F/k) of a kind of vSAE at F = 4D: every k/F, every beta."""
    at_every_k = {f"1/{ratio}": (f"{kind}, beta 1", 4, ratio) for ratio in RATIOS}
    weaker = {f"1/8, beta {beta}": (f"{kind}, beta {beta}", 4, 8) for beta in ("0.1", "0.01")}
    return at_every_k | weaker


def against_top_k(
    raw: PaperResults, metric: str, turn: Callable[[float], float]
) -> list[tuple[str, str, str]]:
    """The vSAEs' differences from TopK, by k/F and beta; `turn` makes the claim's side positive."""
    rows = []
    for kind in KINDS:
        cells = {label: raw.differences(metric, *cell) for label, cell in cells_of(kind).items()}
        rows.append((kind, shown(cells), judged(turned(cells, turn))))
    return rows
