"""How much of a difference between two SAEs is noise of the evaluation itself.

An evaluation repeated with another seed draws its texts again and trains its probes again. The seeds
are the same for every SAE, so the differences of two SAEs are taken seed by seed. As all seeds draw
from the same texts, what is found is a lower bound of the noise.
"""

from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t as student_t

CONFIDENCE = 0.95


class Spread(NamedTuple):
    """A metric of one SAE over the seeds of an evaluation."""

    mean: float
    deviation: float | None
    """The standard deviation; None for a single seed."""


class Gap(NamedTuple):
    """A metric of one SAE less that of another, averaged over the seeds of an evaluation."""

    mean: float
    smallest: float | None
    """The smallest difference that is larger than the noise: half the 95% confidence interval's width,
    by Student's t over the seeds' differences. None for a single seed."""
    depends_on_seeds: bool = True
    """Whether another seed gave another value of either SAE."""

    @property
    def is_noise(self) -> bool:
        """Whether the difference may be the evaluation's noise."""
        return (
            self.smallest is not None and self.depends_on_seeds and abs(self.mean) <= self.smallest
        )


def spread(values: list[float]) -> Spread:
    """The mean and the standard deviation of a metric over seeds."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def difference(these: dict[int, float], others: dict[int, float]) -> Gap | None:
    """What one SAE has more than another of a metric, given by seed; None if they share no seed."""
    both = sorted(these.keys() & others.keys())
    if not both:
        return None
    gaps = [these[seed] - others[seed] for seed in both]
    if len(both) == 1:
        return Gap(gaps[0], None)
    if all(len({of_seed[seed] for seed in both}) == 1 for of_seed in (these, others)):
        return Gap(gaps[0], 0.0, depends_on_seeds=False)
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1))
    return Gap(mean(gaps), quantile * stdev(gaps) / len(gaps) ** 0.5)
