"""What sigma, beta, noise_on and kl_scope do: the guide's plots, from the committed raw results.

    python -m experiments.settings_plots

Nothing is trained. A plot varies one setting, and shows each seed as a dot and their mean as a line; dashed
is TopK of the same runs. docs/science.md has three of the plots, experiments/RESULTS.md the dates and the other settings.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import raw_results
from experiments.pages import save_plot
from experiments.paper.reproduced_figures import rows_at
from experiments.raw_results import RESULTS

IMAGES = Path(__file__).parents[1] / "docs" / "img"
RATIO = "noise_to_signal"
COLOURS = ("#3b6fb6", "#d1603d", "#5a9e6f")

Row = dict[str, Any]
Points = dict[float, list[Row]]
"""The rows of each value of the setting, one for each seed."""


@dataclass(frozen=True)
class SettingPlot:
    """One plot: curves of some metrics over the values of one setting."""

    name: str
    """The setting, and the file's name."""
    axis: str
    metrics: dict[str, str]
    """A panel for each: the metric's key and the label of its axis."""
    curves: Callable[[], dict[str, Points]]
    values: tuple[str, ...] = ()
    """The labels of the values 0, 1, …, if they aren't numbers."""
    top_k: Callable[[], dict[str, list[Row]]] = dict
    """TopK's rows, by the curve that they are to be compared with: a dashed line each."""


def read(name: str) -> Row:
    return raw_results.read(RESULTS / f"{name}.json")


def search(size: str, models: dict[float, str]) -> Points:
    """Rows of the search in better_vsae.json, by the setting's value."""
    rows = [r for r in read("better_vsae")["rows"] if (r["stage"], r["size"]) == ("search", size)]
    return {value: [r for r in rows if r["model"] == model] for value, model in models.items()}


def noise_by_place() -> dict[str, Points]:
    """Noise that stays, of each noise_on: by the noise_to_signal of a sigma, its mean over seeds."""
    by_sigma: dict[str, dict[float, list[Row]]] = {}
    for row in read("selection_churn")["rows"]:
        if row["noise_on"] != "TopK":
            of_place = by_sigma.setdefault(row["noise_on"], {})
            of_place.setdefault(row["sigma"], []).append(row)
    return {
        place: {statistics.mean(row[RATIO] for row in rows): rows for rows in of_sigma.values()}
        for place, of_sigma in by_sigma.items()
    }


def noise_by_level() -> dict[str, Points]:
    """Noise on the selection: of runs in which it stays, and of runs in which it fades away."""
    faded = {0.01: "selection 0.01", 0.03: "selection 0.03", 0.1: "selection 0.1"}
    return {
        "it stays": noise_by_place()["selection"],
        "it fades away": search("F = 4D, k/F = 1/32", faded),
    }


def top_k_by_level() -> dict[str, list[Row]]:
    return {
        "it stays": top_k_of_churn(),
        "it fades away": search("F = 4D, k/F = 1/32", {0.0: "TopK"})[0.0],
    }


def top_k_of_churn() -> list[Row]:
    return [row for row in read("selection_churn")["rows"] if row["noise_on"] == "TopK"]


def beta() -> dict[str, Points]:
    """The KL on the selected features, beside selection noise of 0.03 that fades away."""
    models = {0.0: "selection 0.03"} | {b: f"selection 0.03, KL {b:g}" for b in (0.01, 0.03, 0.1)}
    widest = models | {0.3: "selection 0.03, KL 0.3"}
    return {
        "k/F = 1/8": search("F = 4D, k/F = 1/8", models),
        "k/F = 1/32": search("F = 4D, k/F = 1/32", widest),
    }


def kl_scope() -> dict[str, Points]:
    """TopK, and the paper's code with beta = 1 and its KL on all or on the selected features."""
    models = ("TopK", "code, beta 1", "code, KL on selected, beta 1")
    rows = read("reproduce_paper")["rows"]
    return {
        f"F = {multiple}D, k/F = 1/{ratio}": {
            i: rows_at(rows, model, multiple, ratio) for i, model in enumerate(models)
        }
        for multiple, ratio in ((4, 8), (16, 32))
    }


FVE, NEAR_DEAD = {"fve": "FVE"}, {"near_dead_0.5": "near-dead < 0.5"}
PLOTS = (
    SettingPlot(
        "sigma",
        RATIO,
        FVE | {"near_dead_0.1": "near-dead < 0.1"},
        noise_by_level,
        top_k=top_k_by_level,
    ),
    SettingPlot(
        "noise_on",
        RATIO,
        FVE | {"near_dead_0.1": "near-dead < 0.1"},
        noise_by_place,
        top_k=lambda: {"both": top_k_of_churn()},
    ),
    SettingPlot(
        "beta",
        "beta",
        FVE | NEAR_DEAD | {"agreement": "agreement of seeds"},
        beta,
    ),
    SettingPlot(
        "kl_scope",
        "",
        FVE | {"near_dead_0.1": "near-dead < 0.1"} | NEAR_DEAD,
        kl_scope,
        values=("TopK", "all", "selected"),
    ),
)


def draw(plot: SettingPlot, path: Path) -> None:
    import matplotlib.pyplot as plt

    curves, baselines, n = plot.curves(), plot.top_k(), len(plot.metrics)
    alone = len(baselines) == 1
    figure, axes = plt.subplots(1, n, figsize=(3.3 * n, 3.0), squeeze=False)
    for axis, (metric, label) in zip(axes[0], plot.metrics.items(), strict=True):
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            places = sorted(points)
            means = [statistics.mean(row[metric] for row in points[at]) for at in places]
            form = "D" if plot.values else "-"
            axis.plot(places, means, form, color=colour, label=name)
            if name in baselines:
                level = statistics.mean(row[metric] for row in baselines[name])
                axis.axhline(level, linestyle="--", linewidth=1, color="grey" if alone else colour)
            dots = [(at, row[metric]) for at in places for row in points[at]]
            axis.plot(*zip(*dots, strict=True), ".", color=colour, markersize=5, alpha=0.6)
        axis.set(xlabel=plot.axis, ylabel=label)
        if plot.values:
            axis.set_xticks(range(len(plot.values)), plot.values)
            axis.margins(x=0.15)
        elif plot.axis == RATIO:
            axis.set_xscale("log")
        else:
            axis.set_xscale("symlog", linthresh=0.01)
            ticks = sorted({at for points in curves.values() for at in points})
            axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
            axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0][0].legend(title="noise on" if plot.name == "noise_on" else None, fontsize=8)
    save_plot(figure, path, dpi=110)


def main() -> None:
    for plot in PLOTS:
        path = IMAGES / f"{plot.name}.png"
        draw(plot, path)
        print(path)


if __name__ == "__main__":
    main()
