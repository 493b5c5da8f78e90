"""What RESULTS.md says of the paper and of noise: numbers, and whether a sentence holds.

The template RESULTS.md.j2 reads these. A property that is a bool is the condition of a `claim` there.
"""

import statistics
from typing import Any

from experiments.metrics import labels_of
from experiments.pages import spread, table
from experiments.paper import claims_ablation, paper_claims, selection_churn
from experiments.paper.paper_results import AS_STATED, RATIOS, PaperResults
from experiments.paper.verdicts import HOLDS, KINDS, SLIGHT, cells_of, word

Content = dict[str, Any]
EQUATIONS, CODE = AS_STATED[1:]


class PaperFacts:
    """Section 1."""

    METRICS = (
        "fve",
        "fve_sampled",
        "frac_recovered",
        "near_dead_0.1",
        "near_dead_0.5",
        "stability_rms",
    )

    def __init__(self, content: Content):
        self.raw = PaperResults(content)
        self.setting = content["settings"]["setting"]
        self.legend = paper_claims.legend(self.raw)

    def mean(self, metric: str, model: str, ratio: int) -> str:
        return f"{statistics.mean(self.raw.of(metric, model, 4, ratio)):.3f}"

    def both_ways(self, model: str) -> str:
        """FVE at the mean, and by a sample."""
        return f"{self.mean('fve', model, 8)} / {self.mean('fve_sampled', model, 8)}"

    def near_dead_by_ratio(self, model: str) -> str:
        return ", ".join(self.mean("near_dead_0.1", model, ratio) for ratio in RATIOS)

    @property
    def comparison_table(self) -> str:
        cells = {
            f"{model}, k/F = 1/{ratio}": [
                spread(self.raw.of(metric, model, 4, ratio)) for metric in self.METRICS
            ]
            for ratio in RATIOS
            for model in AS_STATED
        }
        return "\n".join(table("F = 4D", cells, labels_of(self.METRICS)))

    @property
    def claims_table(self) -> str:
        return "\n".join(paper_claims.claims_table(self.raw))

    def _always(self, metric: str, model: str, ratio: int, sign: int) -> bool:
        """Every seed's difference from TopK has this sign."""
        return word([sign * d for d in self.raw.differences(metric, model, 4, ratio)]) == HOLDS

    def _lost(self, metric: str, model: str) -> list[float]:
        """TopK's FVE minus the model's, at k/F = 1/8, seed by seed."""
        pairs = zip(self.raw.of("fve", "TopK", 4, 8), self.raw.of(metric, model, 4, 8), strict=True)
        return [base - own for base, own in pairs]

    @property
    def equations_lose_either_way(self) -> bool:
        return all(
            min(self._lost(metric, f"equations, beta {beta}")) > SLIGHT
            for metric in ("fve", "fve_sampled")
            for beta in ("1", "0.01")
        )

    @property
    def code_keeps(self) -> bool:
        """It loses a fifth at most of what the equations lose in any reading."""
        losses = {
            kind: [
                statistics.mean(self._lost(metric, f"{kind}, beta {beta}"))
                for metric in ("fve", "fve_sampled")
                for beta in ("1", "0.01")
            ]
            for kind in KINDS
        }
        return max(losses["code"]) < min(losses["equations"]) / 5

    @property
    def code_kills_at_small_k(self) -> bool:
        return self._always("near_dead_0.1", CODE, 32, 1)

    @property
    def code_revives_at_large_k(self) -> bool:
        return self._always("near_dead_0.1", CODE, 4, -1)

    @property
    def living_never_fall_so_far(self) -> bool:
        shares = [paper_claims.living_lost(self.raw, kind) for kind in KINDS]
        return all(max(seeds) < 0.7 for cells in shares for seeds in cells.values())

    def _slightly_lower(self, kind: str) -> dict[str, bool]:
        """By k/F and beta: whether every seed's FVE is within what "slightly" means of TopK's."""
        return {
            label: max(map(abs, self.raw.differences("fve", *cell))) < SLIGHT
            for label, cell in cells_of(kind).items()
        }

    @property
    def equations_never_slightly_lower(self) -> bool:
        return not any(self._slightly_lower("equations").values())

    @property
    def code_slightly_lower_below_beta_1(self) -> bool:
        return all(
            ("beta" in label) == is_so for label, is_so in self._slightly_lower("code").items()
        )

    @property
    def code_loses_at_every_k(self) -> bool:
        return all(self._always("fve", CODE, ratio, -1) for ratio in RATIOS)

    @property
    def bench_gains_at_large_n_only(self) -> bool:
        def gains(*ns: str) -> list[bool]:
            of = claims_ablation.mean_of(*ns)
            found = [
                claims_ablation.differences(self.raw, metric, model, of)
                for metric in ("scr", "tpp")
                for model in (EQUATIONS, CODE)
            ]
            return [word(seeds) == HOLDS for cells in found for seeds in cells.values()]

        return any(gains(*claims_ablation.LARGE)) and not any(gains("2", "5"))


class ChurnFacts:
    """Section 3."""

    def __init__(self, content: Content):
        self.rows = content["rows"]
        self.setting = content["settings"]["setting"]
        self.correlations = "\n".join(selection_churn.correlations(self.rows))

    def _mean(self, metric: str, noise_on: str, sigma: float) -> float:
        rows = [r for r in self.rows if (r["noise_on"], r["sigma"]) == (noise_on, sigma)]
        return statistics.mean(row[metric] for row in rows)

    @property
    def as_unstable(self) -> bool:
        """At every sigma the two are within 0.1 of each other."""
        return all(
            abs(
                self._mean("stability_sigma", "values", sigma)
                - self._mean("stability_sigma", "selection", sigma)
            )
            < 0.1
            for sigma in selection_churn.SIGMAS
        )

    @property
    def selection_costs_more(self) -> bool:
        """What noise on the values loses is less than a quarter of what the other two lose."""
        base = self._mean("fve", "TopK", 0.0)
        most = selection_churn.SIGMAS[-1]
        lost = {on: base - self._mean("fve", on, most) for on in selection_churn.NOISE_ON}
        return lost["values"] < min(lost["both"], lost["selection"]) / 4

    @property
    def no_one_curve(self) -> bool:
        """Two runs are equally stable, and far apart in FVE."""
        own = [row for row in self.rows if row["noise_on"] != "TopK"]
        return any(
            abs(one["stability_sigma"] - other["stability_sigma"]) < 0.02
            and abs(one["fve"] - other["fve"]) > 0.2
            for one in own
            for other in own
        )
