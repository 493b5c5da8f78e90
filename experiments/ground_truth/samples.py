"""How fast are a synthetic model's samples drawn, against SAELens, and are they distributed alike?

    python -m experiments.ground_truth.samples bench     # about 15 minutes
    python -m experiments.ground_truth.samples tables    # write the page's tables again

On SynthSAEBench-16k's configuration, with one thread, in turns. All samples that are timed are compared: how often each
of the features fires, and each pair of the most frequent ones, which are the trees' roots and their children.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch as t

from experiments.ground_truth.synthetic import BENCH_16K, Sampler, SyntheticModel
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import header, page_by_cpu, write_for_this_cpu
from experiments.stages import Page, Stages

PAIRS = 256
BATCHES = {"SAELens": 10, "ours": 100}
"""How many batches of 1,024 samples each draws in a turn."""
BATCH = 1024
LEAST = 25
"""Expected firings in the smaller number of samples; rarer ones aren't normally distributed, and not compared."""
Draw = Callable[[int], tuple[t.Tensor, Callable[[], t.Tensor]]]
"""From the number of the first sample: the samples, which are timed, and what gives their firings."""


class Counted:
    """What is counted over the samples of one sampler."""

    def __init__(self, draw: Draw, features: int):
        self._draw = draw
        self.n = 0
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.fires_T = t.zeros(features, dtype=t.float64)
        self.both_PP = t.zeros(PAIRS, PAIRS, dtype=t.float64)
        self.squares = self.magnitudes = 0.0

    def turn(self, batches: int) -> None:
        """Draw that many batches, in the time that is counted; then count what is in them."""
        seconds = cpu_seconds = 0.0
        for _ in range(batches):
            began, worked = time.perf_counter(), time.process_time()
            x_BD, firings = self._draw(self.n)
            seconds += time.perf_counter() - began
            cpu_seconds += time.process_time() - worked
            firing_BT = firings()
            self.n += len(x_BD)
            fires_BT = (firing_BT > 0).float()
            self.fires_T += fires_BT.sum(0)
            self.both_PP += fires_BT[:, :PAIRS].T @ fires_BT[:, :PAIRS]
            self.squares += float(x_BD.square().sum())
            self.magnitudes += float(firing_BT.sum())
        self.seconds.append(seconds / (batches * BATCH))
        self.cpu_seconds.append(cpu_seconds / (batches * BATCH))

    def result(self) -> dict[str, Any]:
        return {
            "samples": self.n,
            "a second, by turn": [round(1 / each) for each in self.seconds],
            "a second of the CPU, by turn": [round(1 / each) for each in self.cpu_seconds],
            "l0": float(self.fires_T.sum()) / self.n,
            "mean_squared_norm": self.squares / self.n,
            "mean_magnitude": self.magnitudes / float(self.fires_T.sum()),
        }


def deviations(one: t.Tensor, n_one: int, other: t.Tensor, n_other: int) -> t.Tensor:
    """How many standard errors the shares of two counts of the same events differ by, without the rare events."""
    share = (one + other) / (n_one + n_other)
    error = (share * (1 - share) * (1 / n_one + 1 / n_other)).sqrt()
    return ((one / n_one - other / n_other) / error)[share * min(n_one, n_other) >= LEAST]


def measure(arguments: argparse.Namespace) -> None:
    t.set_num_threads(1)
    model = SyntheticModel.of(BENCH_16K).drawn
    sampler = Sampler(model)
    features = len(sampler.vectors_TD)

    def saelens(_: int) -> tuple[t.Tensor, Callable[[], t.Tensor]]:
        x_BD, firing_BT = model.sample_with_features(BATCH)
        return x_BD, lambda: firing_BT

    def ours(first: int) -> tuple[t.Tensor, Callable[[], t.Tensor]]:
        numbers = range(first, first + BATCH)
        x_BD, _ = sampler.rows(0, numbers)  # as training does
        return x_BD, lambda: sampler.rows(0, numbers, with_firing=True)[1]

    t.manual_seed(0)
    counted = {"SAELens": Counted(saelens, features), "ours": Counted(ours, features)}
    for _ in range(arguments.turns):
        for name, own in counted.items():
            own.turn(BATCHES[name])
    theirs, mine = counted.values()
    upper = tuple(t.triu_indices(PAIRS, PAIRS, 1))
    compared = {
        "features": deviations(mine.fires_T, mine.n, theirs.fires_T, theirs.n),
        f"pairs of the first {PAIRS} features": deviations(
            mine.both_PP[upper], mine.n, theirs.both_PP[upper], theirs.n
        ),
    }
    content = {
        "header": header(
            f"synthetic:bench-16k, batches of {BATCH:,}, beside other work", "sae-lens", "numba"
        ),
        "samplers": {name: own.result() for name, own in counted.items()},
        "deviations": {
            name: {
                "compared": len(z),
                "std": float(z.std()),
                "above_3": float((z.abs() > 3).double().mean()),
                "largest": float(z.abs().max()),
            }
            for name, z in compared.items()
        },
    }
    write_for_this_cpu(RESULTS / "benchmark_synthetic.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    samplers = content["samplers"]
    speeds = {
        name: [found["a second, by turn"], found["a second of the CPU, by turn"]]
        for name, found in samplers.items()
    }
    rows = {
        name: [
            *(f"{statistics.median(each):,.0f} ({min(each):,} to {max(each):,})" for each in own),
            f"{samplers[name]['samples']:,}",
            f"{samplers[name]['l0']:.3f}",
            f"{samplers[name]['mean_magnitude']:.4f}",
            f"{samplers[name]['mean_squared_norm']:.2f}",
        ]
        for name, own in speeds.items()
    }
    ratios = [
        statistics.median(mine / theirs for mine, theirs in zip(*turns, strict=True))
        for turns in zip(speeds["ours"], speeds["SAELens"], strict=True)
    ]
    columns = ["samples a second: median (turns)", "the same of this process's CPU time"]
    columns += ["samples", "fire at once", "mean magnitude", "E‖x‖²"]
    deviation_rows = {
        name: [
            f"{z['compared']:,}",
            f"{z['std']:.3f}",
            f"{z['above_3']:.2%}",
            f"{z['largest']:.1f}",
        ]
        for name, z in content["deviations"].items()
    }
    return [
        content["header"],
        "",
        *table("", rows, columns),
        "",
        f"Ratio of a turn, median: {ratios[0]:.0f}, and {ratios[1]:.0f} in CPU time.",
        "",
        "The shares of samples in which they fire: the difference in standard errors. Where the distributions are equal,"
        " the standard deviation is 1, and 0.27% are above 3.",
        "",
        *table("", deviation_rows, ["compared", "standard deviation", "above 3", "largest"]),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=10)


STAGES = Stages(
    "ground_truth.samples",
    {"bench": measure},
    {"benchmark_synthetic": Page(page_by_cpu(tables))},
    options,
)

if __name__ == "__main__":
    STAGES.run()
