"""The results of a sweep on one self-contained page: tables and figures."""

from typing import Any

import jinja2
import plotly.graph_objects as go

from ..evaluation.metrics import Metric
from ..evaluation.tables import setting_text
from ..features.reproducibility_of_settings import SAME_BATCHES
from ..run_folder.matching import SEEDS
from .groups import RANKED_BY, Group, RunResult, seed_metrics, share_batches, swept


def page(
    title: str,
    results: list[RunResult],
    groups: list[Group],
    best: list[Group],
    metrics: list[Metric],
    missing: str | None = None,
) -> str:
    """The page's HTML.

    Arguments:
        results: all runs; `groups`: the same by setting; `best`: those in the first table.
        metrics: those to show.
        missing: what of the sweep is missing, if anything.
    """
    labels = {metric.key: metric.label for metric in metrics}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning_ext.sweep"), autoescape=True
    )
    names = swept(results)
    figures = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, default_height="26rem")
        for i, figure in enumerate(_figures(results, groups, names, labels))
    ]
    return environment.get_template("sweep.html").render(
        title=title,
        runs=[Group([one]) for one in results],
        groups=groups,
        best=best,
        swept=names,
        settings=[name for name in names if name not in SEEDS],
        has_seeds=any(group.n > 1 for group in groups),
        metrics=metrics,
        seed_metrics=seed_metrics(groups),
        same_batches=SAME_BATCHES if share_batches(groups) else None,
        missing=missing,
        figures=figures,
        setting_text=setting_text,
    )


def _figures(
    results: list[RunResult], groups: list[Group], swept: list[str], labels: dict[str, str]
) -> list[go.Figure]:
    """Metrics against settings, heat maps, and all runs in parallel coordinates."""
    figures = []
    if "k" in swept:
        figures += [_scatter(results, "k", name, labels) for name in ("fve", "frac_recovered")]
    if "beta" in swept:
        figures.append(_scatter(results, "beta", "near_dead_0.1", labels))
    if {"lr", "beta"} <= set(swept):
        by_k: dict[Any, list[Group]] = {}
        for group in groups:
            by_k.setdefault(group.settings.get("k"), []).append(group)
        figures += [_heat_map(by_k[k], k) for k in sorted(by_k, key=lambda k: k or 0)]
    columns = {name: [one["settings"].get(name) for one in results] for name in swept}
    columns |= {name: [one["metrics"].get(name) for one in results] for name in labels}
    numeric = {name: values for name, values in columns.items() if all(map(_is_number, values))}
    if len(numeric) > 1:
        figures.append(_parallel_coordinates(numeric, labels))
    for figure in figures:
        is_parallel = isinstance(figure.data[0], go.Parcoords)  # its labels stand above the plot
        margin = {"t": 110 if is_parallel else 60, "b": 50, "l": 60, "r": 80 if is_parallel else 30}
        figure.update_layout(template="plotly_white", margin=margin)
    return figures


def _scatter(
    results: list[RunResult], setting: str, metric: str, labels: dict[str, str]
) -> go.Figure:
    xs = [one["settings"].get(setting) for one in results]
    figure = go.Figure(
        go.Scatter(
            x=xs,
            y=[one["metrics"].get(metric) for one in results],
            text=[one["run"] for one in results],
            mode="markers",
            marker={"size": 9, "opacity": 0.7, "color": "#0072B2"},
        )
    )
    label = labels[metric]
    figure.update_layout(title=f"{label} against {setting}", xaxis_title=setting, yaxis_title=label)
    if setting == "k":
        ks = sorted({x for x in xs if _is_number(x)})
        figure.update_xaxes(type="log", tickvals=ks, ticktext=[str(k) for k in ks])
    return figure


def _heat_map(groups: list[Group], k: Any) -> go.Figure:
    """The mean description length by lr and beta; the lowest where several settings share both."""
    cells: dict[tuple[Any, Any], float] = {}
    for group in groups:
        place = group.settings.get("lr"), group.settings.get("beta")
        length = group.mean(RANKED_BY)
        if length is not None:
            cells[place] = min(length, cells.get(place, length))
    lrs, betas = ({place[i] for place in cells} for i in (0, 1))
    lrs, betas = (sorted(values, key=lambda v: (v is None, v or 0)) for values in (lrs, betas))
    figure = go.Figure(
        go.Heatmap(
            x=[str(lr) for lr in lrs],
            y=[str(beta) for beta in betas],
            z=[[cells.get((lr, beta)) for lr in lrs] for beta in betas],
            colorscale="Cividis",
            texttemplate="%{z:.1f}",
        )
    )
    figure.update_layout(title=f"description length, k = {k}", xaxis_title="lr", yaxis_title="beta")
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def _parallel_coordinates(columns: dict[str, list[float]], labels: dict[str, str]) -> go.Figure:
    """Every run as a line through its values, coloured by the first column."""
    parallel = go.Parcoords(
        dimensions=[
            {"label": labels.get(name, name), "values": values} for name, values in columns.items()
        ],
        line={"color": next(iter(columns.values())), "colorscale": "Cividis"},
    )
    figure = go.Figure(parallel)
    figure.update_layout(title="All runs (drag along an axis to select a range)")
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
