"""The paper's figures 3, 4 and 5 for SAEs of one L0, from SAE Bench's results. Needs [saebench]."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dictionary_learning_ext.config.architectures import Look
from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.sae_bench.adapter import looks
from dictionary_learning_ext.sae_bench.results import BenchResults, curve, our_name, rows_of

_PANELS = {
    "CE loss score": "CE loss score",
    our_name(METRICS["fve"]): "fraction of variance explained",
    "cosine": "cosine similarity",
    our_name(METRICS["near_dead_0.1"]): "near-dead features (< 0.1)",
}
_SCR = {"scr": "spurious correlation removal (SCR)"}
_TPP = {
    "total_metric": "TPP: intended - unintended",
    "intended_diff_only": "accuracy lost on the intended class",
    "unintended_diff_only": "accuracy lost on the others",
}
_TOP_K = Look("TopK", "green", "^")  # as in SAE Bench's plots
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def write_figures(outcome: BenchResults, dashed: Collection[str], folder: Path) -> None:
    """Draw the figures from core, SCR and TPP.

    Arguments:
        dashed: labels of SAEs whose curves are dashed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(_STYLE):
        for name, figure in {
            "figure_3_reconstruction.png": _reconstruction(outcome),
            "figure_4_scr.png": _curves(outcome, "scr", _SCR, dashed),
            "figure_5_tpp.png": _curves(outcome, "tpp", _TPP, dashed),
        }.items():
            figure.savefig(folder / name, dpi=150)
            plt.close(figure)


def _reconstruction(outcome: BenchResults) -> Any:
    """Reconstruction and dead features: a bar for each SAE."""
    found = {label: rows_of(own) for label, own in outcome.results.items() if "core" in own}
    rows = {label: metrics for label, metrics in found.items() if label != "identity"}
    colours = [_look(outcome, label)["color"] for label in rows]
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(13, 3.6), layout="constrained")
    for ax, (name, title) in zip(axes, _PANELS.items(), strict=True):
        ax.bar(list(rows), [metrics[name] for metrics in rows.values()], color=colours)
        ax.tick_params(axis="x", labelrotation=30)
        plt.setp(ax.get_xticklabels(), ha="right")
        ax.set_title(title)
    l0s = sorted({round(metrics["L0"]) for metrics in rows.values()})
    figure.suptitle(f"L0 = {', '.join(map(str, l0s))}")
    return figure


def _curves(
    outcome: BenchResults, evaluation: str, panels: dict[str, str], dashed: Collection[str]
) -> Any:
    """SCR or TPP by number of ablated features."""
    found = {label: own[evaluation] for label, own in outcome.results.items() if evaluation in own}
    width = 7 if len(panels) == 1 else 15
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 3.8), layout="constrained", squeeze=False
    )
    ns = sorted({n for result in found.values() for n in result["eval_config"]["n_values"]})
    for ax, (which, title) in zip(axes[0], panels.items(), strict=True):
        for label, result in found.items():
            points = curve(result, which)
            look = _look(outcome, label) | ({"linestyle": "--"} if label in dashed else {})
            ax.plot(list(points), list(points.values()), label=label, **look)
        ax.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
        ax.set_xscale("log")
        ax.set_xticks(ns, [str(n) for n in ns])
        ax.minorticks_off()
        ax.set_xlabel("N, features ablated")
        ax.set_title(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, handlelength=4)
    return figure


def _look(outcome: BenchResults, label: str) -> dict[str, Any]:
    """How an SAE is drawn: colour and marker by variant."""
    result = next(iter(outcome.results[label].values()))
    architecture = result["sae_cfg_dict"]["architecture"]
    look = looks().get(architecture, _TOP_K)
    is_bound = architecture in ("random", "identity")
    return {"color": look.colour, "marker": look.marker, "linestyle": ":" if is_bound else "-"}
