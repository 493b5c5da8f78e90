"""The paper's figures 3, 4 and 5 for a set of SAEs, as PNG."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..evaluation.metrics import METRICS
from ..run_folder.writing import writing
from .adapter import looks
from .bench_results import BenchResults
from .comparison_table import curve, our_name, rows_of

_PANELS = {
    "CE loss score": "CE loss score",
    our_name(METRICS["fve"]): "fraction of variance explained",
    "cosine": "cosine similarity",
    our_name(METRICS["near_dead_0.1"]): "near-dead features (< 0.1)",
}
_TPP = {
    "total_metric": "TPP: intended - unintended",
    "intended_diff_only": "accuracy lost on the intended class",
    "unintended_diff_only": "accuracy lost on the others",
}
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def write_figures(outcome: BenchResults, folder: str | Path) -> list[Path]:
    """Draw every figure for which there are results; return the files.

    Raises: CheckpointError if they can't be written.
    """
    folder = Path(folder)
    written = []
    with plt.rc_context(_STYLE), writing(folder):
        for name, draw in {
            "figure_3_reconstruction.png": _figure_3,
            "figure_4_scr.png": _figure_4,
            "figure_5_tpp.png": _figure_5,
        }.items():
            figure = draw(outcome)
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(folder / name, dpi=150)
                plt.close(figure)
                written.append(folder / name)
    return written


def _figure_3(outcome: BenchResults) -> Any:
    """Reconstruction and dead features: a line per architecture over L0, or bars if all share it."""
    rows = {label: rows_of(found) for label, found in outcome.results.items() if "core" in found}
    rows = {label: metrics for label, metrics in rows.items() if "identity" not in label}
    if not rows:
        return None
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(13, 3.6), layout="constrained")
    l0s = sorted({round(metrics["L0"]) for metrics in rows.values()})
    for ax, (name, title) in zip(axes, _PANELS.items(), strict=True):
        if len(l0s) == 1:
            labels = list(rows)
            colours = [_look(outcome, label)["color"] for label in labels]
            ax.bar(labels, [rows[label][name] for label in labels], color=colours)
            ax.tick_params(axis="x", labelrotation=30)
            plt.setp(ax.get_xticklabels(), ha="right")
        else:
            for look, points in _lines(outcome, rows, name).items():
                ax.plot(*zip(*points, strict=True), **dict(look))
            ax.set_xscale("log", base=2)
            ax.set_xticks(l0s, [str(l0) for l0 in l0s])
            ax.set_xlabel("L0")
        ax.set_title(title)
    if len(l0s) > 1:
        axes[0].legend(fontsize=7)
    figure.suptitle(f"L0 = {l0s[0]}" if len(l0s) == 1 else "by L0")
    return figure


def _lines(outcome: BenchResults, rows: dict[str, dict[str, float]], name: str) -> dict[Any, list]:
    """The points (L0, metric) of each architecture."""
    lines: dict[Any, list] = {}
    for label, metrics in rows.items():
        look = _look(outcome, label)
        key = (("color", look["color"]), ("marker", look["marker"]), ("label", look["name"]))
        lines.setdefault(key, []).append((round(metrics["L0"]), metrics[name]))
    return {key: sorted(points) for key, points in lines.items()}


def _figure_4(outcome: BenchResults) -> Any:
    """SCR by number of ablated features."""
    return _curves(outcome, "scr", {"scr": "spurious correlation removal (SCR)"})


def _figure_5(outcome: BenchResults) -> Any:
    """TPP by number of ablated features: total, intended and unintended."""
    return _curves(outcome, "tpp", _TPP)


def _curves(outcome: BenchResults, evaluation: str, panels: dict[str, str]) -> Any:
    found = {label: r[evaluation] for label, r in outcome.results.items() if evaluation in r}
    if not found:
        return None
    width = 7 if len(panels) == 1 else 15
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 3.8), layout="constrained", squeeze=False
    )
    for ax, (which, title) in zip(axes[0], panels.items(), strict=True):
        for label, result in found.items():
            points = curve(result, which)
            look = _look(outcome, label)
            ax.plot(
                list(points),
                list(points.values()),
                color=look["color"],
                marker=look["marker"],
                linestyle=look["linestyle"],
                label=label,
            )
        ns = sorted({n for result in found.values() for n in result["eval_config"]["n_values"]})
        ax.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
        ax.set_xscale("log")
        ax.set_xticks(ns, [str(n) for n in ns])
        ax.minorticks_off()
        ax.set_xlabel("N, features ablated")
        ax.set_title(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, handlelength=4)
    return figure


def _look(outcome: BenchResults, label: str) -> dict[str, str]:
    """How an SAE is drawn: colour and marker by variant; a size-matched control is dashed."""
    from sae_bench.sae_bench_utils.graphing_utils import TRAINER_COLORS, TRAINER_MARKERS

    result = next(iter(outcome.results[label].values()))
    architecture = result["sae_cfg_dict"]["architecture"]
    known = looks().get(architecture)
    is_control = label in outcome.matched.values()
    is_bound = architecture in ("random", "identity")
    return {
        "name": known.label if known else architecture,
        "color": known.colour if known else TRAINER_COLORS.get(architecture, "green"),
        "marker": known.marker if known else TRAINER_MARKERS.get(architecture, "^"),
        "linestyle": "--" if is_control else ":" if is_bound else "-",
    }
