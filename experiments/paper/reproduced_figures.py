"""The paper's figures 3 to 5 and 8 to 11, from what reproduce_paper.py measured.

Figures 6 and 7 are single features: `vsae report` makes pages of all of them.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.pages import LABELS, save_plot

Row = dict[str, Any]
AS_STATED = ("TopK", "equations, beta 1", "code, beta 1")
"""TopK, and the paper's two vSAEs: of its equations, and of its public code."""
RATIOS = (32, 16, 8, 4)
"""F/k at F = 4D."""
COLOURS = dict(zip(AS_STATED, ("tab:blue", "tab:red", "tab:orange"), strict=True))


def rows_at(rows: Sequence[Row], model: str, multiple: int, ratio: int) -> list[Row]:
    """The rows of a model at F/D and F/k, one per seed."""
    wanted = (model, multiple, ratio)
    return [row for row in rows if (row["model"], row["multiple"], row["ratio"]) == wanted]


def draw(content: dict[str, Any], folder: Path) -> None:
    """Write the figures that the raw results carry."""
    drawn = {"figure_3": figure_3(content), "figure_8_9": figure_8_9(content["maps"])}
    drawn["figure_10_11"] = figure_10_11([row for row in content["maps"] if "map" in row])
    if content["bench"]:
        drawn["figure_4_5"] = figure_4_5(content)
    for name, figure in drawn.items():
        save_plot(figure, folder / f"{name}.png", dpi=75)


def figure_3(content: dict[str, Any]) -> Any:
    """CE score, FVE, cosine and living features against k/F, mean and spread over seeds."""
    shown = ("frac_recovered", "fve", "cossim", "alive")
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    for axis, name in zip(axes, shown, strict=True):
        for model in AS_STATED:
            at = [rows_at(content["rows"], model, 4, ratio) for ratio in RATIOS]
            values = np.array([[row[name] for row in rows] for rows in at])
            axis.errorbar(
                range(4),
                values.mean(1),
                values.std(1),
                color=COLOURS[model],
                marker="o",
                label=model,
            )
        axis.set(
            title=LABELS[name],
            xticks=range(4),
            xticklabels=[f"1/{r}" for r in RATIOS],
            xlabel="k/F",
        )
    axes[0].legend()
    return figure


def figure_4_5(content: dict[str, Any]) -> Any:
    """SCR, TPP, TPP's intended and unintended effects against N, at k/F = 1/8."""
    shown = {"scr": "SCR", "tpp": "TPP", "tpp_intended": "intended", "tpp_unintended": "unintended"}
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    for axis, (name, label) in zip(axes, shown.items(), strict=True):
        for model in AS_STATED:
            rows = [row[name] for row in rows_at(content["bench"], model, 4, 8)]
            means = [statistics.mean(row[n] for row in rows) for n in rows[0]]
            axis.plot(range(len(means)), means, color=COLOURS[model], marker=".", label=model)
            axis.set(xticks=range(len(means)), xticklabels=list(rows[0]), xlabel="N ablated")
        axis.set(title=label)
    axes[0].legend(fontsize=7)
    return figure


def figure_8_9(maps: list[Row]) -> Any:
    """Histograms of the largest activation of each living feature, seed 0."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3))
    for axis, model in zip(axes, AS_STATED, strict=True):
        row = next(row for row in maps if row["model"] == model)
        axis.hist(row["largest"], bins=40, color=COLOURS[model])
        axis.set(title=f"{model}: {len(row['largest'])} features", xlabel="largest activation")
    return figure


def figure_10_11(maps: list[Row]) -> Any:
    """t-SNE of the features: clusters, utilisation, mean activation, cluster utilisation, seed 0."""
    figure, axes = plt.subplots(len(maps), 4, figsize=(13, 3.1 * len(maps)))
    for row_axes, row in zip(axes, maps, strict=True):
        x, y = np.array(row["map"]).T
        used = np.array(row["map_utilisation"])
        shown = {
            "clusters": (row["map_cluster"], 5, "tab10"),
            "utilisation": (np.log10(used), 5, "viridis"),
            "mean activation": (row["map_mean"], 3 + 60 * used, "viridis"),
        }
        for axis, (label, (colour, size, palette)) in zip(row_axes[:3], shown.items(), strict=True):
            axis.scatter(x, y, c=colour, s=size, cmap=palette)
            axis.set(title=f"{row['model']}: {label}", xticks=[], yticks=[])
        row_axes[3].bar(range(len(row["cluster_sizes"])), row["cluster_utilisation"])
        row_axes[3].set(title="cluster utilisation", xlabel="cluster")
    return figure
