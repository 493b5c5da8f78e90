"""The paper's figures 3 to 5, 10 and 11, and its cosine matrices, from what reproduce_paper.py measured. beta.py draws 8 and 9.

Figures 6 and 7 are single features: `vsae report` makes pages of all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, Normalize

from experiments.pages import LABELS, save_plot

Row = dict[str, Any]
AS_STATED = ("TopK", "equations, beta 1", "code, beta 1")
"""TopK, the vSAE of the paper's equations, and the penalty of its public code in upstream's TopK."""
DRAWN = AS_STATED[:2]
RATIOS = (32, 16, 8, 4)
"""F/k at F = 4D."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""The ticks of figures 10 and 11's logarithmic colour bar."""
COLOURS = ("tab:blue", "tab:red", "tab:orange")


def rows_at(rows: Sequence[Row], model: str, multiple: int, ratio: int) -> list[Row]:
    """The rows of a model at F/D and F/k, one per seed."""
    wanted = (model, multiple, ratio)
    return [row for row in rows if (row["model"], row["multiple"], row["ratio"]) == wanted]


def by_model(rows: Sequence[Row], ratio: int) -> dict[str, list[Row]]:
    """The rows at F/k, by their model, in the order in which models first appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["ratio"] == ratio:
            found.setdefault(row["model"], []).append(row)
    return found


def draw(content: dict[str, Any], folder: Path) -> None:
    """Write the figures that the raw results carry, but for 8 and 9, see beta.py."""
    cells = {
        model: [rows_at(content["rows"], model, 4, ratio) for ratio in RATIOS] for model in DRAWN
    }
    bench, maps = (
        [row for row in content[name] if row["model"] in DRAWN] for name in ("bench", "maps")
    )
    drawn = {"figure_3": figure_3(cells, RATIOS)}
    drawn["figure_10_11"] = figure_10_11([row for row in maps if "map" in row])
    if bench:
        drawn["figure_4_5"] = figure_4_5(bench)
    if apart := [row for row in bench if "scr_by_data_set" in row]:
        drawn["figure_4_by_data_set"] = by_data_set(apart)
    if with_cosines := [row for row in maps if "cosines" in row]:
        drawn["cosines"] = cosine_matrices(with_cosines)
    for name, figure in drawn.items():
        save_plot(figure, folder / f"{name}.png", dpi=75)


def figure_3(cells: dict[str, list[list[Row]]], ratios: Sequence[int]) -> Any:
    """CE score, FVE, cosine and living features against k/F, mean and spread over seeds.

    Arguments:
        cells: the rows of each model at each of the ratios F/k.
    """
    shown = ("frac_recovered", "fve", "cossim", "alive")
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    places = range(len(ratios))
    for axis, name in zip(axes, shown, strict=True):
        for model, colour in zip(cells, COLOURS, strict=False):
            values = np.array([[row[name] for row in rows] for rows in cells[model]])
            axis.errorbar(
                places, values.mean(1), values.std(1), color=colour, marker="o", label=model
            )
        axis.set(
            title=LABELS[name],
            xticks=places,
            xticklabels=[f"1/{r}" for r in ratios],
            xlabel="k/F",
        )
    axes[0].legend()
    return figure


def figure_8_9(largest: dict[str, list[float]], dict_size: int) -> Any:
    """Histograms of the largest activation of each feature that fires, all on the same axes.

    Arguments:
        largest: by the SAE's name.
    """
    highest = float(np.quantile(np.concatenate([*largest.values()]), 0.998))
    bins = np.linspace(0, highest, 60)  # the last bin has what is beyond
    size = (4 * len(largest), 3.2)
    figure, axes = plt.subplots(1, len(largest), figsize=size, sharex=True, sharey=True)
    for axis, (name, own) in zip(axes, largest.items(), strict=True):
        colour = "tab:blue" if "TopK" in name else "tab:orange"
        axis.hist(np.minimum(own, highest), bins=bins, color=colour)
        title = f"{name}: {len(own):,} of {dict_size:,}"
        axis.set(title=title, xlabel="largest activation")
    axes[0].set_ylabel("features")
    return figure


def figure_4_5(bench: list[Row]) -> Any:
    """SCR, TPP, TPP's intended and unintended effects against N: a row for each k/F that was measured.

    Lines are means over seeds, the bands a standard deviation to either side.
    """
    shown = {"scr": "SCR", "tpp": "TPP", "tpp_intended": "intended", "tpp_unintended": "unintended"}
    ratios = [ratio for ratio in RATIOS if any(row["ratio"] == ratio for row in bench)]
    size = (13, 0.4 + 2.8 * len(ratios))
    figure, axes = plt.subplots(len(ratios), 4, figsize=size, sharey="col", squeeze=False)
    for row_axes, ratio in zip(axes, ratios, strict=True):
        for axis, (name, label) in zip(row_axes, shown.items(), strict=True):
            for (model, own), colour in zip(by_model(bench, ratio).items(), COLOURS, strict=False):
                rows = [row[name] for row in own]
                values = np.array([list(row.values()) for row in rows])
                mean, std, places = values.mean(0), values.std(0), range(len(rows[0]))
                axis.plot(places, mean, color=colour, marker=".", label=model)
                axis.fill_between(
                    places, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0
                )
                axis.set(xticks=places, xticklabels=list(rows[0]))
            axis.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
            axis.set_title(f"{label}, k/F = 1/{ratio}")
    for axis in axes[-1]:
        axis.set_xlabel("N features ablated")
    axes[0][3].legend(fontsize=8)
    return figure


def by_data_set(bench: list[Row]) -> Any:
    """SCR, then TPP, of each data set against N: means over seeds, a row for each k/F."""
    panels = [(name, key) for name in ("scr", "tpp") for key in bench[0][f"{name}_by_data_set"]]
    ratios = [ratio for ratio in RATIOS if any(row["ratio"] == ratio for row in bench)]
    size = (3.2 * len(panels), 0.4 + 2.8 * len(ratios))
    figure, axes = plt.subplots(len(ratios), len(panels), figsize=size, squeeze=False)
    for row_axes, ratio in zip(axes, ratios, strict=True):
        for axis, (name, key) in zip(row_axes, panels, strict=True):
            for (model, own), colour in zip(by_model(bench, ratio).items(), COLOURS, strict=False):
                curves = [row[f"{name}_by_data_set"][key] for row in own]
                means = np.mean([list(curve.values()) for curve in curves], axis=0)
                axis.plot(list(curves[0]), means, color=colour, marker=".", label=model)
            data_set, _, pair = key.removesuffix("_results").partition(f"_{name}")
            shown = pair.strip("_").replace("_", ", ") or data_set
            axis.set_title(f"{name.upper()}, k/F = 1/{ratio}\n{shown}", fontsize=8)
            axis.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
    for axis in axes[-1]:
        axis.set_xlabel("N features ablated")
    axes[0][0].legend(fontsize=8)
    return figure


def cosine_matrices(maps: list[Row]) -> Any:
    """Cosines between decoder directions of features on the map, cluster by cluster, seed 0."""
    size = (4.2 * len(maps), 4)
    figure, axes = plt.subplots(1, len(maps), figsize=size, layout="constrained", squeeze=False)
    for axis, row in zip(axes[0], maps, strict=True):
        image = axis.imshow(np.array(row["cosines"]) / 100, vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set(title=row["model"], xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="cosine")
    return figure


def figure_10_11(maps: list[Row]) -> Any:
    """t-SNE of the features: clusters, utilisation, mean activation, cluster utilisation, seed 0.

    A colour, and a bar's height, means the same in every row.
    """
    size = (14, 3.1 * len(maps))
    figure, axes = plt.subplots(len(maps), 4, figsize=size)
    shown = {
        "share of tokens it is on": ("map_utilisation", LogNorm),
        "mean activation": ("map_mean", Normalize),
    }
    scales = {}
    for name, scale in shown.values():
        values = np.concatenate([row[name] for row in maps])
        scales[name] = scale(*np.quantile(values[values > 0], [0.01, 0.99]))
    highest = max(max(row["cluster_utilisation"]) for row in maps)
    for row_axes, row in zip(axes, maps, strict=True):
        x, y = np.array(row["map"]).T
        row_axes[0].scatter(x, y, c=row["map_cluster"], s=5, cmap="tab10")
        row_axes[0].set_title(f"{row['model']}: 10 clusters")
        for axis, (label, (name, _)) in zip(row_axes[1:3], shown.items(), strict=True):
            sizes = 5 if name == "map_utilisation" else 3 + 60 * np.array(row["map_utilisation"])
            points = axis.scatter(x, y, c=row[name], s=sizes, norm=scales[name], cmap="viridis")
            bar = figure.colorbar(points, ax=axis, extend="both")
            if name == "map_utilisation":
                bar.set_ticks(SHARES, labels=[f"{share:g}" for share in SHARES])
                bar.minorticks_off()
            axis.set_title(label)
        for axis in row_axes[:3]:
            axis.set(xticks=[], yticks=[])
        row_axes[3].bar(range(len(row["cluster_sizes"])), row["cluster_utilisation"])
        row_axes[3].set(
            title="share of tokens, cluster means", xlabel="cluster", ylim=(0, 1.05 * highest)
        )
    return figure
