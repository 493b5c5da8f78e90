"""What RESULTS.md says of the study: numbers, and whether a sentence holds."""

import statistics
from typing import Any

from dictionary_learning_ext.evaluation.tables import markdown_table
from experiments.metrics import LABELS
from experiments.reproducibility import decisions, stronger_noise
from experiments.reproducibility.decisions import CONFIRM_PAIRS, PRIMARY, Row, means, parts_of
from experiments.reproducibility.settings import (
    ARMS,
    BOTH,
    CONFIRM,
    NOISE,
    PENALTY,
    RIVAL,
    TOP_K,
)

SMOLLM2 = "SmolLM2-135M-Instruct (from 4-bit weights, reading the embedded model's novels)"


class StudyFacts:
    """The section that the page opens with."""

    def __init__(self, content: dict[str, Any]):
        self.settings = len(CONFIRM)
        self.chosen = decisions.chosen(content)
        self.rival = decisions.best_rival(content)
        self.verdicts = decisions.verdicts(content, BOTH)
        self.p = decisions.corrected(self.verdicts)
        rivals = decisions.verdicts(content, RIVAL)
        p = decisions.corrected(rivals)
        self.rival_passes = [n for n in CONFIRM if decisions.passes(rivals[n], p[n])]
        """Where the best rival passes by the tests of the arm that they were written for."""
        self._rows: dict[str, list[Row]] = {n: parts_of(content, "confirm", n) for n in CONFIRM}
        self._length = parts_of(content, "length", "length")
        self._content = content
        self._follow_up = stronger_noise.searched(content)

    @property
    def whole(self) -> list[str]:
        """The settings whose pairs are all there."""
        return [n for n, own in self.verdicts.items() if own and own.pairs == len(CONFIRM_PAIRS)]

    @property
    def passed(self) -> list[str]:
        return [n for n in self.whole if not self._why_not(n)]

    @property
    def missed(self) -> list[str]:
        """The settings where a test failed, whatever is still to be measured."""
        own = self.verdicts
        return [n for n in self.whole if not decisions.passes(own[n], self.p[n])]

    @property
    def missing(self) -> list[str]:
        """The settings that lack pairs."""
        return [n for n in CONFIRM if n not in self.whole]

    @property
    def table(self) -> str:
        """Three rows a setting that is whole, and then of the long runs."""
        found: list[list[str]] = []
        for name in self.whole:
            why = self._why_not(name)
            verdict = f"misses: {why}" if why else "**passes**"
            found += self._three_rows(name, f"{verdict}, p {self.p[name]:.3f}", self._rows[name])
        if self._length:
            first = next(iter(CONFIRM))
            found += self._three_rows(first, "16,000 steps, two pairs; no test", self._length)
        return markdown_table(["", "", *ARMS], found).rstrip("\n")

    def _three_rows(self, name: str, verdict: str, rows: list[Row]) -> list[list[str]]:
        return [
            [name, "PW-MCC less null", *self._each(rows, PRIMARY, 3)],
            [verdict, "returning", *self._each(rows, "returning_0.7", 2)],
            ["", "FVE", *self._each(rows, "fve", 4)],
        ]

    def _why_not(self, name: str) -> str:
        """What fails, in TopK and in both, and what was not measured; empty if it passes."""
        own = self.verdicts[name]
        if own is None:
            return "not run"
        found = [] if self.p[name] <= decisions.LEVEL else ["the gain"]
        for m in decisions.NO_WORSE:
            if m not in own.no_worse:
                found.append(f"{LABELS[m]} not measured")
            elif own.no_worse[m] > decisions.LEVEL:
                found.append(f"{LABELS[m]} {self._two(name, m)}")
        return ", ".join(found)

    def _each(self, rows: list[Row], measure: str, digits: int) -> list[str]:
        """The arms' means; a dash is an arm that was not run."""
        return [
            f"{self._mean(rows, arm, measure):.{digits}f}" if means(rows, arm, measure) else "–"
            for arm in ARMS
        ]

    @property
    def revived(self) -> list[str]:
        """The whole settings where noise and penalty leave clearly fewer features near-dead, with the shares."""
        return [
            f"{name} ({self._two(name, 'near_dead_0.1')})"
            for name in self.whole
            if self._risen(name, "near_dead_0.1") < -0.02
        ]

    def _two(self, name: str, measure: str) -> str:
        """The means of TopK and of both."""
        rows = self._rows[name]
        return " / ".join(f"{self._mean(rows, arm, measure):.3f}" for arm in (TOP_K, BOTH))

    @property
    def within_risen(self) -> str:
        """By how much more at most the nearest directions of one SAE agree with noise and penalty than in TopK,
        at a setting that is whole."""
        return f"{max(self._risen(n, 'within') for n in self.whole):.3f}"

    @property
    def gains(self) -> str:
        """Of the primary measure, both over TopK: the smallest and the largest of a setting's means."""
        gains = [self._risen(n, PRIMARY) for n in self.whole]
        return f"{min(gains):.3f} to {max(gains):.3f}"

    def _risen(self, name: str, measure: str) -> float:
        """What both have more than TopK."""
        rows = self._rows[name]
        return self._mean(rows, BOTH, measure) - self._mean(rows, TOP_K, measure)

    @property
    def models(self) -> str:
        """The language models whose settings are whole."""
        names = {"embedded": "the embedded one (4 layers)", "SmolLM2-135M": SMOLLM2}
        return " and ".join(names[m] for m in dict.fromkeys(n.split(",")[0] for n in self.whole))

    def _mean(self, rows: list[Row], arm: str, measure: str) -> float:
        return statistics.mean(means(rows, arm, measure))

    @property
    def every_pair_gains(self) -> bool:
        """Over TopK and over the penalty alone, at every setting that is whole."""
        over = [own.over for n, own in self.verdicts.items() if own and n in self.whole]
        return bool(over) and all(min(ds) > 0 for each in over for ds in each.values())

    @property
    def noise_gains_most(self) -> bool:
        """The noise alone has more of it than the penalty alone, at every setting that is whole."""
        return all(
            self._mean(self._rows[n], NOISE, PRIMARY) > self._mean(self._rows[n], PENALTY, PRIMARY)
            for n in self.whole
        )

    @property
    def with_rival(self) -> list[str]:
        """The settings where the best rival has all its pairs too."""
        pairs = len(CONFIRM_PAIRS)
        return [n for n in self.whole if len(means(self._rows[n], RIVAL, PRIMARY)) == pairs]

    @property
    def rival_ahead(self) -> list[str]:
        """Where it has more of the primary measure than noise and penalty, in every pair."""
        return [n for n in self.with_rival if all(d > 0 for d in self._rival_over(n))]

    @property
    def rival_behind(self) -> list[str]:
        """Where it has less of it, in every pair."""
        return [n for n in self.with_rival if all(d < 0 for d in self._rival_over(n))]

    def _rival_over(self, name: str) -> list[float]:
        return decisions.paired(self._rows[name], RIVAL, BOTH, PRIMARY)

    @property
    def rival_sentence(self) -> str:
        """Where the rival is ahead and where behind; empty before it has run."""
        mixed = [n for n in self.with_rival if n not in (*self.rival_ahead, *self.rival_behind)]
        where = {
            "Ahead in every pair": self.rival_ahead,
            "Behind in every pair": self.rival_behind,
            "It depends on the pair": mixed,
        }
        return " ".join(f"{how}: {'; '.join(names)}." for how, names in where.items() if names)

    @property
    def rival_fve_lost(self) -> str:
        """The largest mean loss of FVE against TopK."""
        lost = [self._lost(n, RIVAL) for n in self.with_rival]
        return f"{max(lost):.4f}"

    @property
    def rival_has_less_fve(self) -> list[str]:
        """Where its mean FVE is below that of noise and penalty."""
        return [n for n in self.with_rival if self._lost(n, RIVAL) > self._lost(n, BOTH)]

    @property
    def follow_up_choice(self) -> str:
        """What the follow-up's rule chooses."""
        return stronger_noise.chosen(self._content) or "none"

    @property
    def follow_up_is_again(self) -> bool:
        """Whether that is the setting that the study had chosen."""
        return stronger_noise.is_again(self._content)

    @property
    def longest(self) -> str:
        """The follow-up's candidate with the highest primary measure, of those whose noise lasts longest."""
        last = max(options["until"] for options in stronger_noise.CANDIDATES.values())
        names = [n for n, o in stronger_noise.CANDIDATES.items() if o["until"] == last]
        return max(names, key=lambda name: self._mean(self._follow_up, name, PRIMARY))

    @property
    def longest_is_ahead(self) -> bool:
        """Of the rival in the primary measure, and behind it in FVE."""
        own, rival = (
            [self._mean(self._follow_up, arm, measure) for measure in (PRIMARY, "fve")]
            for arm in (self.longest, RIVAL)
        )
        return own[0] > rival[0] and own[1] < rival[1]

    def follow_up(self, arm: str) -> str:
        """An arm's primary measure and FVE there."""
        primary, fve = (self._mean(self._follow_up, arm, m) for m in (PRIMARY, "fve"))
        return f"{primary:.3f} / {fve:.4f}"

    @property
    def probes(self) -> str:
        """sae_probes, both less TopK: the smallest and the largest of a setting's means; empty if unmeasured."""
        found = [
            self._risen(name, "sae_probes")
            for name, rows in self._rows.items()
            if means(rows, BOTH, "sae_probes")
        ]
        return f"{min(found):+.4f} to {max(found):+.4f}" if found else ""

    @property
    def times_as_many_return(self) -> str:
        """Returning features, both over TopK: the smallest and the largest ratio of a setting's means."""
        ratios = [
            self._mean(self._rows[n], BOTH, "returning_0.7")
            / self._mean(self._rows[n], TOP_K, "returning_0.7")
            for n in self.whole
        ]
        ends = dict.fromkeys(f"{ratio:.1f}" for ratio in (min(ratios), max(ratios)))
        return " to ".join(ends)

    @property
    def fve_lost(self) -> str:
        """The largest mean loss of FVE."""
        return f"{max(self._lost(n, BOTH) for n in self.whole):.4f}"

    def _lost(self, name: str, arm: str) -> float:
        """FVE that an arm has less than TopK."""
        rows = self._rows[name]
        return self._mean(rows, TOP_K, "fve") - self._mean(rows, arm, "fve")

    @property
    def length_sentence(self) -> str:
        """Whether the gain is there four times as long; empty before that has run."""
        if not self._length:
            return ""
        long, short = self._gain(self._length), self._gain(self._rows[next(iter(CONFIRM))])
        pairs = len(means(self._length, BOTH, PRIMARY))
        meaning = (
            "the gain stays, so faster convergence alone doesn't explain it"
            if long >= short
            else "a part of the gain is faster convergence"
        )
        return (
            f"The gain over TopK is {long:.3f} after 16,000 steps ({pairs} pairs) and {short:.3f} after 4,000, in PW-MCC "
            f"less null: {meaning}."
        )

    def _gain(self, rows: list[Row]) -> float:
        return self._mean(rows, BOTH, PRIMARY) - self._mean(rows, TOP_K, PRIMARY)
