"""What RESULTS.md says of the vSAEs and baselines: numbers, and whether a sentence holds.

The template RESULTS.md.j2 reads these. A property that is a bool is the condition of a `claim` there.
"""

import statistics
from functools import cached_property
from typing import Any

from experiments.better_vsae import (
    baselines,
    full_size,
    search_and_confirm,
    success_criteria,
)
from experiments.better_vsae.candidates import CANDIDATES
from experiments.metrics import labels_of
from experiments.pages import table

Content = dict[str, Any]


class FullSizeFacts:
    """Section 2."""

    BOTH = "both, sigma 1, beta 0.01"
    COMPARED = ("TopK", "point, KL 0.01", "selection 0.1, KL 0.01")
    METRICS = ("fve", "near_dead_0.5", "agreement", "excess", "stability_rms")

    def __init__(self, content: Content):
        # dispersion is 1 - the cosine of nearest directions
        self.rows = [
            row | {"excess": row["agreement"] + row["dispersion"] - 1} for row in content["rows"]
        ]
        self.seeds = len({row["seed"] for row in self.rows})
        page = "\n".join(full_size.tables(content))
        self.page = page.replace("](full_size.png)", "](results/full_size.png)")

    def _mean(self, metric: str, model: str, k: int) -> str:
        return f"{statistics.mean(full_size.values(self.rows, metric, model, k)):.3f}"

    @property
    def equations_fve(self) -> str:
        return " and ".join(
            f"{self._mean('fve', self.BOTH, k)} / {self._mean('fve_sampled', self.BOTH, k)}"
            for k in full_size.KS
        )

    @property
    def preset_table(self) -> str:
        cells = {
            f"{model}, k = {k}": [self._mean(metric, model, k) for metric in self.METRICS]
            for k in full_size.KS
            for model in self.COMPARED
        }
        return "\n".join(table("SmolLM2-135M", cells, labels_of(self.METRICS)))


class BaselineFacts:
    """Section 4."""

    def __init__(self, content: Content):
        self.rows = content["rows"]
        self.page = "\n".join(baselines.tables(content))
        self.models = list(dict.fromkeys(row["model"] for row in self.rows))

    def _of(self, metric: str, model: str) -> list[float]:
        return [row[metric] for row in self.rows if row["model"] == model]

    def _l0(self, model: str) -> float:
        return statistics.mean(self._of("l0", model))

    def fve(self, model: str) -> str:
        return f"{statistics.mean(self._of('fve', model)):.3f}"

    def _starting(self, *kinds: str) -> list[str]:
        return [model for model in self.models if model.startswith(kinds)]

    @property
    def batch_top_k_is_best(self) -> bool:
        near = [model for model in self.models if abs(self._l0(model) - baselines.K) < 2]
        best = max(near, key=lambda model: statistics.mean(self._of("fve", model)))
        return best == "BatchTopK" and "TopK" in near

    @property
    def no_k_is_elsewhere(self) -> bool:
        without_k = self._starting("JumpReLU", "ReLU", "purely", "VAEase")
        return all(abs(self._l0(model) - baselines.K) > 2 for model in without_k)

    @property
    def jump_relu_misses(self) -> bool:
        return all(self._l0(model) > 2 * baselines.K for model in self._starting("JumpReLU"))

    @property
    def once_is_nearer(self) -> bool:
        once, twice = (self._of("l0", model) for model in self._starting("JumpReLU"))
        return max(once) < min(twice)

    @property
    def jump_relu_l0s(self) -> tuple[str, ...]:
        """With its threshold applied once, and as upstream trains it."""
        return tuple(f"{self._l0(model):.0f}" for model in self._starting("JumpReLU"))

    @property
    def vaease_depends_on_gamma(self) -> bool:
        one, other = (self._of("l0", f"VAEase, gamma from {g}, lr 0.005") for g in ("0.1", "1"))
        return max(other) < min(one) or max(one) < min(other)

    @property
    def pure_is_dense(self) -> bool:
        return all(min(self._of("l0", model)) == baselines.F for model in self._starting("purely"))


class SearchFacts:
    """Section 5."""

    def __init__(self, content: Content):
        self.rows = content["rows"]
        lines = search_and_confirm.details(self.rows)
        self.page = "\n".join("#" + line if line.startswith("## ") else line for line in lines)

    @cached_property
    def confirmed(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Of each size: the pick, and what the tests say."""
        return success_criteria.confirmed(self.rows)

    @cached_property
    def _found(self) -> dict[str, dict[str, Any]]:
        return {size: found for size, (_, found) in self.confirmed.items()}

    @property
    def reached(self) -> list[str]:
        return [s for s, found in self._found.items() if success_criteria.is_reached(found)]

    def conclusion(self, found: dict[str, Any]) -> str:
        return success_criteria.conclusion(found)

    def margin(self, metric: str) -> str:
        return f"{success_criteria.MEASURES[metric].margin:g}"

    def _over(self, metric: str, other: str) -> list[float]:
        """By size, the mean of sampled minus the other, signed so that more is better."""
        return [statistics.mean(found[metric]["over"][other]) for found in self._found.values()]

    def over(self, metric: str, other: str) -> str:
        return ", ".join(f"{value:+.3f}" for value in self._over(metric, other))

    @cached_property
    def _searched(self) -> dict[str, dict[str, dict[str, float]]]:
        """By size and model, the search's means."""
        searched = [row for row in self.rows if row["stage"] == "search"]
        return {
            size: success_criteria.means_of([row for row in searched if row["size"] == size])
            for size in self.confirmed
        }

    def searched_stability(self, model: str) -> str:
        values = [means[model]["stability_rms"] for means in self._searched.values()]
        return ", ".join(f"{value:.3f}" for value in values)

    @property
    def excess_lines(self) -> list[str]:
        """How far agreement is the dictionary's own, size by size."""
        lines = []
        for size, found in self._found.items():
            over = {model: statistics.mean(v) for model, v in found["excess"]["over"].items()}
            says = (
                f"p = {found['excess']['better']:.4f}, the larger of both"
                if min(over.values()) > 0
                else "nothing is left of the gain in agreement"
            )
            lines.append(
                f"- {size}: agreement less the cosine of nearest directions within one dictionary, "
                f"minus TopK's {over['TopK']:+.3f}, minus point's {over['point']:+.3f} ({says})."
            )
        return lines

    @property
    def less_stable_than_point(self) -> bool:
        over = self._over("stability_rms", "point")
        return len(over) == 3 and max(over) < 0

    @property
    def relu_explains_stability(self) -> bool:
        """Without its ReLU TopK is more stable than with it, and than the pick."""
        return all(
            means["TopK without ReLU"]["stability_rms"]
            > max(means[model]["stability_rms"] for model in ("TopK", self.confirmed[size][0]))
            for size, means in self._searched.items()
        )

    @property
    def size_matching_changes_nothing(self) -> bool:
        return search_and_confirm.size_matching_leaves_scr(self.rows)

    @property
    def scr_can_not_be_told(self) -> bool:
        return all(
            found["scr"]["better"] > success_criteria.LEVEL for found in self._found.values()
        )

    @property
    def picks_differ(self) -> bool:
        first, *others = [CANDIDATES[model]["beta"] for model, _ in self.confirmed.values()]
        return all(beta != first for beta in others)
