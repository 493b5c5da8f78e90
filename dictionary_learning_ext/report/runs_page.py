"""Tables of many runs: the index page of a folder, and a sweep's results as text, CSV files and a page."""

import io
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plotly.graph_objects as go

from ..config.checks import did_you_mean, require
from ..errors import CheckpointError
from ..evaluation.metrics import METRICS, Metric, Number, shown_in
from ..evaluation.tables import labels_of, setting_text, stale_lines, stale_metrics, text_table
from ..features.agreement import COME_BACK, SHOWN
from ..run_folder.comparing import measurements
from ..run_folder.files import (
    INDEX,
    REPORT_PAGE,
    SWEEP_PAGE,
    SWEEP_SETTINGS,
    SWEEP_TABLE,
    page_at,
    require_writable,
    write_rows,
    write_text,
)
from ..run_folder.identity import differences
from ..run_folder.sae_folder import SEEDS
from .html import as_data, page_html
from .many_runs import (
    RANKED_BY,
    SAME_BATCHES,
    SAME_FVE,
    Group,
    RunResult,
    best_of_each_k,
    differing,
    grouped,
    most_returning_of_each_k,
    read_all_in,
    with_seed_scores,
)

logger = logging.getLogger(__name__)

_OUT = "out"


@dataclass(frozen=True)
class RunsTable:
    """A table of a page. Its first column names the row."""

    title: str
    head: list[str]
    rows: list[list[str]]
    links: list[str | None] | None = None
    """The report of each row, if it has one."""


def write_index(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write a page about the run folders in `folder`, by default its index.html. Returns the page's path.

    A run folder that is damaged or not finished is left out of the table, and named below it.

    Raises: ConfigError for a page in another library's folder; CheckpointError if it can't be written.
    """
    folder = Path(folder)
    out = folder / INDEX if out is None else page_at(out, INDEX)
    require_writable(out, _OUT)
    results, left_out = read_all_in(folder)
    settings = differences(*(run.settings for run in results))
    shown, columns, warnings = _with_measured_settings(results, settings)
    warnings += _stale(results)
    metrics = shown_in("compare")
    tables = [_runs_table("", shown, columns, metrics, out)]
    ours = [run for run in results if run.sae.is_run]
    if seeds := with_seed_scores([group for group in grouped(ours) if group.n > 1]):
        names = [name for name in settings if name not in SEEDS]
        tables.append(_settings_table("Settings with several seeds", seeds, names, metrics))
    n = "1 sparse autoencoder" if len(results) == 1 else f"{len(results)} sparse autoencoders"
    page = _page(
        folder.resolve().name,
        f"{n}, with the settings that differ and the metrics. Click a name to open its report.",
        tables,
        metrics,
        seeds,
        warnings=warnings,
        notes=[f"Not in the table: {', '.join(left_out)}."] if left_out else [],
        missing=[
            shlex.join(["vsae", "report", str(run.sae.path)])
            for run in results
            if not (run.sae.path / REPORT_PAGE).is_file()
        ],
        together=_link(folder / REPORT_PAGE, out) if (folder / REPORT_PAGE).is_file() else None,
    )
    write_text(out, page, _OUT)
    return out


def _with_measured_settings(
    results: list[RunResult], settings: list[str]
) -> tuple[list[RunResult], list[str], list[str]]:
    """The results with those settings of their measurements that differ added; all settings that differ; and a warning if the
    measurements do."""
    measured = measurements({run.name: run.metrics for run in results if run.metrics})
    differ = differences(*measured.values())
    more, shown = [name for name in differ if name not in settings], []
    for run in results:
        more_settings = {name: measured.get(run.name, {}).get(name) for name in more}
        shown.append(replace(run, settings=run.settings | more_settings))
    conditions = f"under different conditions ({', '.join(differ)})"
    warning = f"These metrics were measured {conditions}, so they can't be compared."
    return shown, [*settings, *more], [warning] if differ else []


def _stale(results: list[RunResult]) -> list[str]:
    """Warnings of metrics that may not be what an evaluation would give now."""
    measured = {run.sae.name: run.metrics for run in results if run.metrics}
    reasons = stale_metrics(measured, {run.sae.name: run.sae for run in results})
    return stale_lines(reasons, {run.sae.name: run.name for run in results})


def show_sweep(
    results: list[RunResult],
    folder: Path,
    missing: str | None = None,
    width: int | None = None,
    metric: Mapping[str, str] | None = None,
) -> str:
    """Write a sweep's results into `folder` as CSV files and a page; return the tables as text.

    Encodes held-out text with the SAEs of settings that have several seeds, to compare what they do. Warns if the results
    can't be written, e.g. in a read-only folder.

    Arguments:
        missing: a sentence about what the sweep lacks, if anything.
        width: the terminal's.
        metric: the name and the goal of the metric that ranks the settings, as a sweep's file has them. Default: the description
            length, the lowest.
    """
    ranked_by, highest = ranking(metric)
    names, metrics = differing(results), shown_in("sweep")
    warnings = [*([f"{missing}."] if missing else []), *_stale(results)]
    groups = with_seed_scores(grouped(results), encode=True)
    best, settings = (
        best_of_each_k(groups, ranked_by.key, highest=highest),
        [name for name in names if name not in SEEDS],
    )
    has_seeds = _have_seeds(groups)
    ranked_in = ["hook", "k"] if "hook" in settings else ["k"]
    each_k = f"for each {' and '.join(ranked_in)}"
    settings_table = _settings_table("All settings", groups, settings, metrics)
    page = folder / SWEEP_PAGE
    tables = [_settings_table(f"Best {each_k}", best, settings, metrics)] if best else []
    tables += [settings_table] if has_seeds else []
    tables.append(_runs_table("All runs", results, names, metrics, page))
    how_many = "1 run" if len(results) == 1 else f"{len(results)} runs"
    lede = (
        f"{how_many}. The best setting has the {'highest' if highest else 'lowest'} {ranked_by.label}. "
        + (
            "It is comparable between different k: a larger k explains more variance but pays for every feature that it "
            "selects. "
            if ranked_by.key == RANKED_BY
            else ""
        )
    ) + (
        "Metrics are the mean ± the standard deviation over n seeds."
        if has_seeds
        else "Each setting was run with one seed (n = 1), so a small difference may be chance."
    )
    figures = _figures(results, names, metrics)
    title = folder.resolve().name
    files = {
        folder / SWEEP_TABLE: _runs_csv(results, names, metrics),
        folder / SWEEP_SETTINGS: _settings_csv(groups, settings, metrics),
        page: _page(title, lede, tables, metrics, groups, warnings=warnings, figures=figures),
    }
    first = len(settings) + has_seeds
    k_first = [*ranked_in, *(name for name in settings if name not in ranked_in)]
    lines = [
        text_table(settings_table.head, settings_table.rows, width, max(1, first)),
        *_notes(groups),
        "",
        *warnings,
        *_best_lines(
            best, k_first, f"{each_k}, out of {len(results)} runs", ranked_by, highest=highest
        ),
        *_most_returning_lines(most_returning_of_each_k(groups), k_first, each_k),
    ]
    try:
        for path, text in files.items():
            write_text(path, text)
    except CheckpointError as error:
        logger.warning("the results are shown and not written: %s", error)
        return "\n".join(lines)
    return "\n".join([*lines, "", f"Wrote {', '.join(map(str, files))}."])


def ranking(metric: Mapping[str, str] | None) -> tuple[Metric, bool]:
    """The metric by which a sweep's settings are ranked, and whether the highest is the best. Warns of one that is not of a final
    evaluation.

    Raises: ConfigError for an eval/NAME that evaluations don't have.
    """
    if metric is not None:
        if (key := metric["name"].removeprefix("eval/")) in METRICS:
            return METRICS[key], metric["goal"] == "maximize"
        known = [f"eval/{name}" for name in METRICS]
        expected = f"eval/fve or another of docs/metrics.md{did_you_mean(metric['name'], known)}"
        require(key == metric["name"], "metric", metric["name"], expected)
        logger.warning(
            "metric %s: not one of a final evaluation (eval/fve and others, see docs/metrics.md); ranked by the %s instead",
            *(metric["name"], METRICS[RANKED_BY].label),
        )
    return METRICS[RANKED_BY], False


def _best_lines(
    best: list[Group], settings: list[str], each_k: str, ranked_by: Metric, *, highest: bool
) -> list[str]:
    """Two lines for the best setting of each k: its mean, and the names of its runs."""
    if not best:
        return [f"{ranked_by.label} was not measured, so the runs are not ranked."]
    seeds = "(mean ± standard deviation over n seeds)"
    lines = [f"{'Highest' if highest else 'Lowest'} mean {ranked_by.label} {each_k} {seeds}:"]
    for group in best:
        shown = _settings_text(group, settings)
        lines.append(f"  {shown}: {group.text(ranked_by)} (n = {group.n})")
        lines.append(f"    {', '.join(run.name for run in group.runs)}")
    return lines


def _most_returning_lines(groups: list[Group], settings: list[str], each_k: str) -> list[str]:
    """A line for each k: the setting whose features come back most."""
    if not groups:
        return []
    lines = [
        "Settings whose features come back most in another seed, among those within "
        f"{SAME_FVE} of the best FVE {each_k}:"
    ]
    fve = METRICS["fve"]
    for group in groups:
        assert group.scores is not None
        shares = ", ".join(f"{group.scores.text(m)} {m.label}" for m in _known_shares(groups))
        shown = _settings_text(group, settings)
        lines.append(f"  {shown}: {shares}, {fve.label} {group.text(fve)} (n = {group.n})")
    return lines


def _settings_text(group: Group, names: list[str]) -> str:
    return ", ".join(f"{name}={setting_text(group.settings.get(name))}" for name in names)


def _runs_table(
    title: str, results: list[RunResult], settings: list[str], metrics: list[Metric], page: Path
) -> RunsTable:
    """A row for each run, linked to its report as seen from `page`."""
    names = labels_of({run.name: {n: run.settings.get(n) for n in settings} for run in results})
    rows = [
        [
            names[run.name],
            *(setting_text(run.settings.get(name)) for name in settings),
            *(metric.text(run.metrics.get(metric.key)) for metric in metrics),
        ]
        for run in results
    ]
    reports = [run.sae.path / REPORT_PAGE for run in results]
    links = [_link(report, page) if report.is_file() else None for report in reports]
    return RunsTable(title, ["run", *settings, *(metric.label for metric in metrics)], rows, links)


def _settings_table(
    title: str, groups: list[Group], settings: list[str], metrics: list[Metric]
) -> RunsTable:
    """A row for each setting. If any has several seeds, also their number and what comes back between them."""
    agreement = _known_shares(groups)
    n = ["n"] if _have_seeds(groups) else []
    rows = [
        [
            *(setting_text(group.settings.get(name)) for name in settings),
            *(str(group.n) for _ in n),
            *map(group.text, metrics),
            *(group.scores.text(measure) if group.scores else "-" for measure in agreement),
        ]
        for group in groups
    ]
    return RunsTable(
        title, [*settings, *n, *(column.label for column in (*metrics, *agreement))], rows
    )


def _have_seeds(groups: list[Group]) -> bool:
    """Whether any setting was run with several seeds."""
    return any(group.n > 1 for group in groups)


def _known_shares(groups: list[Group]) -> list[Number]:
    """The shares of returning features that were measured for any setting."""
    scores = [group.scores.values for group in groups if group.scores is not None]
    return [
        measure
        for measure in COME_BACK
        if any(values[measure.key] is not None for values in scores)
    ]


def _notes(groups: list[Group]) -> list[str]:
    """Footnotes about what comes back: of random tokens, and whether seeds that were compared saw the same batches."""
    scores = [group.scores for group in groups if group.scores is not None]
    notes = [SAME_BATCHES + "."] if any(score.share_batches for score in scores) else []
    for group in groups:
        if group.scores is None or (chance := group.scores.random_tokens) is None:
            continue
        k, l0 = group.settings.get("k"), group.mean("l0")
        sizes = [setting_text(group.settings.get(name)) for name in ("hook", "dict_size")]
        where = f"{sizes[0]}, dict_size={sizes[1]}, k={l0 if k is None else k:.0f}"
        shares = ", ".join(f"{m.text(chance[m.key])} {m.label}" for m in SHOWN)
        notes.append(f"Random tokens, untrained, at {where}: {shares}.")
    return [*dict.fromkeys(notes)]


def _runs_csv(results: list[RunResult], names: list[str], metrics: list[Metric]) -> str:
    """A row for each run, with the unrounded metrics."""
    keys = [metric.key for metric in metrics]
    rows = [[r.name, *map(r.settings.get, names), *map(r.metrics.get, keys)] for r in results]
    return _csv(["run", *names, *keys], rows)


def _settings_csv(groups: list[Group], names: list[str], metrics: list[Metric]) -> str:
    """A row for each setting: the mean and standard deviation of each metric over the seeds, and what comes back between
    them."""
    keys, shares = ([m.key for m in shown] for shown in (metrics, _known_shares(groups)))
    rows = [
        [
            *map(group.settings.get, names),
            group.n,
            *(value for key in keys for value in (group.mean(key), group.spread(key))),
            *(group.scores.values[key] if group.scores else None for key in shares),
        ]
        for group in groups
    ]
    columns = [f"{key}_{what}" for key in keys for what in ("mean", "sd")]
    return _csv([*names, "n", *columns, *shares], rows)


def _csv(header: list[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    write_rows(text, [header, *rows], "\n")
    return text.getvalue()


def _page(
    title: str,
    lede: str,
    tables: list[RunsTable],
    metrics: list[Metric],
    groups: list[Group],
    *,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    figures: Sequence[Any] = (),
    missing: Sequence[str] = (),
    together: str | None = None,
) -> str:
    """The HTML of a page of tables, with the definitions of their columns below.

    Arguments:
        figures: Plotly's.
        missing: the commands that write the missing reports.
        together: the address of a report of several of the SAEs.
    """
    terms = [
        (f"{m.label} ({m.better} is better)" if m.better else m.label, m.in_words or m.definition)
        for m in (*metrics, *_known_shares(groups))
    ]
    return page_html(
        "runs.html",
        ("dom.js", "runs.js") if figures else (),
        title=title,
        lede=lede,
        tables=tables,
        terms=terms,
        figures=as_data(figures) if figures else "",
        warnings=warnings,
        notes=[*notes, *_notes(groups)],
        missing=missing,
        together=together,
    )


def _link(page: Path, out: Path) -> str:
    """The address of a page as seen from another."""
    return quote(Path(os.path.relpath(page, out.parent)).as_posix())


def _figures(results: list[RunResult], names: list[str], metrics: list[Metric]) -> list[Any]:
    """Plotly's figures: FVE and the loss added against k."""
    labels = {metric.key: metric.label for metric in metrics}
    figures: list[go.Figure] = []
    for key in ("fve", "loss_added") if "k" in names else ():
        ks = [run.settings.get("k") for run in results]
        points = go.Scatter(
            x=ks,
            y=[run.metrics.get(key) for run in results],
            text=[run.name for run in results],
            mode="markers",
            marker={"size": 9, "opacity": 0.7, "color": "#0072B2"},
        )
        figure = go.Figure(points)
        figure.update_layout(title=f"{labels[key]} against k", yaxis_title=labels[key])
        ticks = sorted({k for k in ks if isinstance(k, int)})
        figure.update_xaxes(title="k", type="log", tickvals=ticks, ticktext=list(map(str, ticks)))
        figure.update_layout(template="plotly_white")
        figures.append(figure)
    return [json.loads(str(figure.to_json())) for figure in figures]
