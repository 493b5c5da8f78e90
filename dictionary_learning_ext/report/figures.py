"""The report's figures as PNG, in Okabe and Ito's colours."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..config.names import LONGEST
from ..errors import Setting
from ..evaluation.metrics import shown_in
from ..evaluation.tables import file_names
from ..features.geometry import Geometry
from ..features.reproducibility import RETURNING
from ..run_folder.files import HELD_OUT, replacing
from .analysis import Analysis, Comparison

OUT = Setting("out")
"""What is named where a report can't be written."""
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CLUSTERS = (*SERIES, "#999999", "#F0E442", "#0072B2", "#D55E00")
CURVES = {
    "fve": ("Variance explained (FVE)", "Of one batch. 1 is a perfect reconstruction."),
    **{
        f"{HELD_OUT}{each.key}": (f"{each.label}, held out", "Of the same tokens each time.")
        for each in shown_in("training")
    },
    "l2_loss": (
        "Squared error\n(a vSAE's: with noise)",
        "Of the training step, per token, in training units.",
    ),
    "alive_in_batch": (
        "Features used",
        "Share of features selected at least once in the batch.",
    ),
    "kl_loss": ("KL (nats per token)", "To the prior. Variational SAEs only."),
}
"""What is shown of metrics.jsonl, in the order of the charts: a title and an explanation."""
_SYMBOLS = "osD^PvX*hp"
_LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}


def write_figures(comparison: Comparison, folder: Path) -> None:
    """Write every figure for which there is data.

    training (metrics.jsonl), use (selection frequency and maximum activation, the paper's figures
    8 and 9), returning (with --seeds), map_<label> (its figures 10 and 11), and cosines.
    """
    analyses = comparison.analyses
    with matplotlib.rc_context(_STYLE):
        figures: dict[str, Figure | None] = {
            "training": _training(analyses),
            "use": _use(analyses),
            "returning": _returning(analyses),
            "cosines": _cosines(analyses),
        }
        names = file_names(analysis.label for analysis in analyses)
        for analysis in analyses:
            if analysis.geometry is not None:
                figures[f"map_{names[analysis.label]}"] = _map(analysis, analysis.geometry)
        for name, figure in figures.items():
            if figure is not None:
                with replacing(folder / f"{name}.png", OUT) as temporary:
                    figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})  # pyright: ignore


def _panels(n: int, size: tuple[float, float] = (3.2, 2.6)) -> tuple[Figure, list[Any]]:
    """A figure with n panels of a size, two in a row."""
    columns = min(n, 2)
    rows = -(-n // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for unused in axes[n:]:
        unused.axis("off")
    return figure, axes


def _line(index: int) -> dict[str, Any]:
    """Of an SAE: no two of the first 36 have one colour and one dash."""
    return {"color": SERIES[index % 6], "linestyle": _LINES[(index + index // 6) % 6]}


def _label(text: str) -> str:
    """A legend leaves out what begins with an underscore, as a folder's name may."""
    return f" {text}" if text.startswith("_") else text


def _add_legend(figure: Figure, ax: Any, columns: int) -> None:
    """Below all panels, where names of any length cover none. The figure grows by it."""
    handles, labels = ax.get_legend_handles_labels()
    columns = columns if max(map(len, labels)) <= LONGEST else 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * rows + 0.1)
    place: Any = {"loc": "outside lower left", "ncols": columns}
    figure.legend(handles, labels, frameon=False, fontsize=7, **place)


def _training(analyses: list[Analysis]) -> Figure | None:
    there = [name for name in CURVES if any(name in line for a in analyses for line in a.history)]
    if not there:
        return None
    figure, axes = _panels(len(there))
    for name, ax in zip(there, axes, strict=False):
        for index, one in enumerate(analyses):
            lines = [line for line in one.history if name in line]
            steps = [line["step"] for line in lines]
            ax.plot(steps, [line[name] for line in lines], label=_label(one.label), **_line(index))
        ax.set(title=CURVES[name][0], xlabel="step")
        if name.endswith("loss"):
            ax.set_yscale("log")
    _add_legend(figure, axes[0], 2)
    return figure


def _use(analyses: list[Analysis]) -> Figure | None:
    if not any(bool(one.statistics.alive_F.any()) for one in analyses):
        return None
    figure, axes = _panels(2)
    statistics = [one.statistics for one in analyses]
    shown = (
        [one.frequency_F[one.alive_F].log10().numpy() for one in statistics],
        [one.max_F[one.alive_F].abs().numpy() for one in statistics],
    )
    for ax, values in zip(axes, shown, strict=True):
        edges = np.histogram_bin_edges(np.concatenate(values), 40)  # counts can be compared
        for index, (one, of_sae) in enumerate(zip(analyses, values, strict=True)):
            label = f"{one.label} ({float(one.statistics.alive_F.double().mean()):.1%} live)"
            ax.hist(of_sae, bins=edges, histtype="step", label=_label(label), **_line(index))
    axes[0].set(xlabel="log10 share of tokens that select a feature", ylabel="features")
    axes[1].set(xlabel="largest activation (magnitude)", ylabel="features", yscale="log")
    _add_legend(figure, axes[1], 2)
    return figure


def _returning(analyses: list[Analysis]) -> Figure | None:
    if not any(one.returning for one in analyses):
        return None
    figure, (ax,) = _panels(1, (4.2, 3.0))
    for index, one in enumerate(analyses):
        if one.returning and one.scores:
            label, line = _label(f"{one.label}: {one.returning.returns:.0%} return"), _line(index)
            bins: Any = {"bins": 40, "range": (0, 1), "histtype": "step"}
            ax.hist(one.scores.match_F, label=label, **bins, **line)
            ax.axvline(one.scores.null, linewidth=0.8, **line)
    ax.axvline(RETURNING[0], color="black", linewidth=0.8)
    ax.set(xlabel="match in other seeds", ylabel="features", xlim=(0, 1))
    _add_legend(figure, ax, 1)
    return figure


def _map(analysis: Analysis, found: Geometry) -> Figure:
    """The four panels of the paper's figures 10 and 11."""
    figure, axes = _panels(4, (3.6, 3.2))
    frequency = analysis.statistics.frequency_F[found.features].numpy()
    mean = analysis.statistics.mean_F[found.features].numpy()
    for cluster in range(1, int(found.cluster.max()) + 1):
        xy = found.map_xy[found.cluster == cluster].T
        axes[0].scatter(*xy, s=9, color=CLUSTERS[cluster - 1], marker=_SYMBOLS[cluster - 1])
    for ax, values, title in (
        (axes[1], np.log10(frequency), "log10 share of tokens that select it"),
        (axes[2], mean, "mean activation where selected"),
    ):
        points = ax.scatter(*found.map_xy.T, s=9, c=values, cmap="cividis")
        figure.colorbar(points, ax=ax)
        ax.set_title(title)
    axes[0].set_title(f"{analysis.label}: clusters")
    for ax in axes[:3]:
        ax.set(xticks=[], yticks=[])
    size = np.bincount(found.cluster)[1:]
    use = np.bincount(found.cluster, weights=frequency)[1:]
    at = 1 + np.arange(len(size))
    hatched: Any = {"fill": False, "hatch": "///", "edgecolor": SERIES[1]}
    axes[3].bar(at - 0.2, size / size.sum(), 0.4, label="features", color=SERIES[0])
    axes[3].bar(at + 0.2, use / use.sum(), 0.4, label="selections", **hatched)
    axes[3].set(title="each cluster's share", xlabel="cluster", xticks=at)
    axes[3].legend(frameon=False, fontsize=7)
    return figure


def _cosines(analyses: list[Analysis]) -> Figure | None:
    maps = [one.geometry for one in analyses if one.geometry is not None]  # of all, or of none
    if not maps:
        return None
    figure, (ax,) = _panels(1, (4.2, 3.0))
    for index, (one, found) in enumerate(zip(analyses, maps, strict=True)):
        mean, low, high = found.dispersion
        label = _label(f"{one.label}: dispersion {mean:.3f} [{low:.3f}, {high:.3f}]")
        ax.stairs(found.cosine_counts, found.cosine_edges, label=label, **_line(index))
    ax.set(xlabel="cosine of two decoder directions", ylabel="pairs", yscale="log")
    _add_legend(figure, ax, 1)
    return figure
