"""What came out of a sweep: a table, the best of each k, and one page of figures."""

import logging
from pathlib import Path
from typing import Any

from ..errors import ConfigError, first_line
from ..run_folder.names import CONFIG, SWEEP_PAGE, SWEEP_TABLE
from ..run_folder.reading import read_config, read_metrics_if_any
from ..run_folder.writing import write_text

logger = logging.getLogger(__name__)

Row = dict[str, Any]
FIGURES = {
    "fve": "FVE",
    "frac_recovered": "CE recovered",
    "near_dead_0.1": "near-dead < 0.1",
    "near_dead_0.5": "near-dead < 0.5",
    "description_length": "description length",
}
METRIC = "description_length"
_NEVER_SHOWN = ("save_dir", "overwrite", "wandb", "wandb_project", "wandb_artifacts", "device")


def from_folder(folder: Path) -> list[Row]:
    """The settings and figures of every finished run in a folder; others are named in a warning.

    Raises: ConfigError if there is none.
    """
    rows, unfinished = [], []
    for one in sorted(path.parent for path in folder.glob(f"*/{CONFIG}")):
        figures = read_metrics_if_any(one)
        if figures is None:
            unfinished.append(one.name)
            continue
        settings = read_config(one)["run"]["settings"]
        rows.append({"run": one.name, "settings": settings, "figures": figures})
    if unfinished:
        logger.warning("without results, and left out: %s", ", ".join(unfinished))
    if not rows:
        raise ConfigError(f"{folder}: no finished run there; give a folder that vsae sweep wrote")
    return rows


def from_wandb(sweep: str) -> list[Row]:
    """The same from wandb's server. Raises ConfigError if it can't be read."""
    import wandb

    try:
        runs = list(wandb.Api().sweep(sweep).runs)
        rows = [
            {
                "run": run.name,
                "settings": dict(run.config),
                "figures": {
                    name.removeprefix("eval/"): value
                    for name, value in dict(run.summary).items()
                    if name.startswith("eval/")
                },
            }
            for run in runs
            if run.state == "finished"
        ]
    except Exception as error:  # of many kinds: login, network, no such sweep
        raise ConfigError(
            f"--of-wandb {sweep}: can't be read ({first_line(error)}); expected ENTITY/PROJECT/SWEEP, and "
            "`wandb login`"
        ) from error
    if not rows:
        raise ConfigError(f"--of-wandb {sweep}: none of its {len(runs)} runs is finished")
    return rows


def swept(rows: list[Row]) -> list[str]:
    """The settings in which the runs differ."""
    names = {name for row in rows for name in row["settings"]} - set(_NEVER_SHOWN)
    return sorted(n for n in names if len({repr(row["settings"].get(n)) for row in rows}) > 1)


def best_of_each_k(rows: list[Row]) -> list[Row]:
    """The run of the shortest description for each k."""
    best: dict[Any, Row] = {}
    for row in rows:
        k = row["settings"].get("k")
        length = row["figures"].get(METRIC)
        if length is not None and (k not in best or length < best[k]["figures"][METRIC]):
            best[k] = row
    return sorted(best.values(), key=lambda row: row["settings"].get("k") or 0)


def show(rows: list[Row], folder: Path) -> str:
    """Write results.csv and results.html into `folder`; the table as text, and the best of each k."""
    import csv
    import io

    names = swept(rows)
    header = ["run", *names, *FIGURES]
    cells = [
        [row["run"], *(row["settings"].get(n) for n in names), *map(row["figures"].get, FIGURES)]
        for row in rows
    ]
    text = io.StringIO()
    csv.writer(text).writerows([header, *cells])
    write_text(folder / SWEEP_TABLE, text.getvalue())
    write_text(folder / SWEEP_PAGE, _page(rows, names, folder.name))
    lines = _aligned([[*names, *FIGURES.values()], *(row[1:] for row in cells)])
    best = best_of_each_k(rows)
    lines += ["", f"The shortest description (nats per token) of each k, of {len(rows)} runs:"]
    lines += [f"  k={row['settings'].get('k')}: {row['run']}" for row in best]
    lines += ["", f"In {folder}: results.csv, and results.html to look at."]
    return "\n".join(lines)


def _aligned(rows: list[list[Any]]) -> list[str]:
    shown = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in shown]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _page(rows: list[Row], names: list[str], title: str) -> str:
    """One self-contained page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning_ext.sweep"), autoescape=True
    )
    figures = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, default_height="26rem")
        for i, figure in enumerate(_figures(rows, names))
    ]
    best = best_of_each_k(rows)
    return environment.get_template("sweep.html").render(
        title=title, rows=rows, names=names, columns=FIGURES, best=best, figures=figures
    )


def _figures(rows: list[Row], names: list[str]) -> list[Any]:
    import plotly.graph_objects as go

    def value(row: Row, name: str) -> Any:
        return row["figures"].get(name) if name in FIGURES else row["settings"].get(name)

    def scatter(x: str, y: str) -> Any:
        figure = go.Figure(
            go.Scatter(
                x=[value(row, x) for row in rows],
                y=[value(row, y) for row in rows],
                text=[row["run"] for row in rows],
                mode="markers",
                marker={"size": 9, "opacity": 0.7, "color": "#0072B2"},
            )
        )
        figure.update_layout(
            title=f"{FIGURES.get(y, y)} against {x}", xaxis_title=x, yaxis_title=FIGURES.get(y, y)
        )
        if x == "k":
            ks = sorted({value(row, x) for row in rows if _is_number(value(row, x))})
            figure.update_xaxes(type="log", tickvals=ks, ticktext=[str(k) for k in ks])
        return figure

    found = [scatter("k", "fve"), scatter("k", "frac_recovered")] if "k" in names else []
    if "beta" in names:
        found.append(scatter("beta", "near_dead_0.1"))
    if {"lr", "beta"} <= set(names):
        for k in sorted({row["settings"].get("k") for row in rows}, key=lambda k: k or 0):
            found.append(_heat_map([row for row in rows if row["settings"].get("k") == k], k))
    numeric = [n for n in [*names, *FIGURES] if all(_is_number(value(row, n)) for row in rows)]
    if len(numeric) > 1:
        parallel = go.Parcoords(
            dimensions=[
                {"label": FIGURES.get(n, n), "values": [value(row, n) for row in rows]}
                for n in numeric
            ],
            line={"color": [value(row, numeric[0]) for row in rows], "colorscale": "Cividis"},
        )
        figure = go.Figure(parallel)
        figure.update_layout(title="All runs; drag along an axis to choose some")
        found.append(figure)
    for figure in found:
        is_parallel = isinstance(figure.data[0], go.Parcoords)  # its labels stand above the plot
        margin = {"t": 110 if is_parallel else 60, "b": 50, "l": 60, "r": 80 if is_parallel else 30}
        figure.update_layout(template="plotly_white", margin=margin)
    return found


def _heat_map(rows: list[Row], k: Any) -> Any:
    """The description length by lr and beta; the best where several runs share both."""
    import plotly.graph_objects as go

    cells: dict[tuple[Any, Any], float] = {}
    for row in rows:
        place = row["settings"].get("lr"), row["settings"].get("beta")
        length = row["figures"].get(METRIC)
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
