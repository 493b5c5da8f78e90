"""What RESULTS.md says of SAEs against a known truth."""

import statistics
from typing import Any


class TruthFacts:
    """The limits of the section that the page opens with."""

    def __init__(self, content: dict[str, Any]):
        self._rows = content["rows"]

    def mean(self, measure: str, model: str) -> str:
        return f"{self._mean(measure, model):.3f}"

    def _mean(self, measure: str, model: str) -> float:
        return statistics.mean(row[measure] for row in self._rows if row["model"] == model)

    @property
    def noise_finds_less(self) -> bool:
        """Noise and penalty match the truth, and each other, less well than TopK, in every seed."""
        return all(
            max(r[m] for r in self._rows if r["model"] == "noise and penalty")
            < min(r[m] for r in self._rows if r["model"] == "TopK")
            for m in ("true_mcc", "pw_mcc")
        )
