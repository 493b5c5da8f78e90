"""What reproduce_paper.py measured, by model, F/D and F/k."""

from typing import Any

AS_STATED = ("TopK", "equations, beta 1", "code, beta 1")
"""TopK, and the paper's two vSAEs: of its equations, and of its public code."""
RATIOS = (32, 16, 8, 4)
BENCHED = (8,)  # F/k of SCR and TPP, F = 4D: the paper's k = 256


class PaperResults:
    """The raw results, by model, F/D and F/k."""

    def __init__(self, content: dict[str, Any]):
        self.rows, self.benched, self.maps = content["rows"], content["bench"], content["maps"]

    def of(self, metric: str, model: str, multiple: int, ratio: int) -> list[float]:
        """One number per seed."""
        return [row[metric] for row in self._of(self.rows, model, multiple, ratio)]

    def bench(self, model: str, multiple: int, ratio: int) -> list[dict[str, Any]]:
        """SAE Bench's metrics, one row per seed."""
        return self._of(self.benched, model, multiple, ratio)

    def differences(self, metric: str, model: str, multiple: int, ratio: int) -> list[float]:
        """Of the model minus TopK, seed by seed."""
        pairs = zip(
            self.of(metric, model, multiple, ratio),
            self.of(metric, "TopK", multiple, ratio),
            strict=True,
        )
        return [own - other for own, other in pairs]

    def mapped(self, metric: str, model: str) -> list[Any]:
        """A metric of the maps, one per seed."""
        return [row[metric] for row in self.maps if row["model"] == model]

    @staticmethod
    def _of(rows: list[dict[str, Any]], model: str, multiple: int, ratio: int) -> list[Any]:
        wanted = (model, multiple, ratio)
        return [row for row in rows if (row["model"], row["multiple"], row["ratio"]) == wanted]
