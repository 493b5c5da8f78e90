"""What a metric is: its name, its definition, its formula and how tables show it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .totals import Totals

Place = Literal["compare", "report", "sweep", "bench"]
PLACES: tuple[Place, ...] = ("compare", "report", "sweep", "bench")


@dataclass(frozen=True)
class Metric:
    """One row. `value` computes it from the totals; None where it does not apply."""

    key: str
    """Its name in metrics.json."""
    definition: str
    label: str
    """The head of its column."""
    value: Callable[[Totals], float | None]
    """Raises NotMeasured where these totals don't define it."""
    better: Literal["higher", "lower"] | None = None
    digits: int = 4
    """Decimals shown of a number below 10."""
    shown_in: tuple[Place, ...] = PLACES
    is_of_truth: bool = False
    """Whether it compares with the truth, which is known of synthetic activations only. `vsae compare`
    has no column of it otherwise."""
    title: str = ""
    """Its name where a newcomer reads it; the label if there is none."""
    in_words: str = ""
    """What it means, there; the definition if there is none."""

    def text(self, value: float | None, missing: str = "-") -> str:
        """A value of it, as tables show it."""
        if value is None:
            return missing
        return f"{value:.{min(self.digits, 1) if abs(value) >= 10 else self.digits}f}"

    def best(self, values: list[float | None]) -> float | None:
        """The best of some values; None if neither more nor less of it is better."""
        known = [value for value in values if value is not None]
        if self.better is None or not known:
            return None
        return max(known) if self.better == "higher" else min(known)
