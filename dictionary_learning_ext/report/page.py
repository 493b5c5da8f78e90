"""The report: one self-contained HTML page about what SAEs learned, with its data beside it.

The page contains its data and plotly, compressed and base64-encoded. So text of a corpus can't end a script or be parsed as
markup, and a page with thousands of features stays small.
"""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from ..codes.table import LEAST_SELECTIONS
from ..config.run import ReportOptions, RunConfig
from ..evaluation.metrics import shown_in
from ..evaluation.tables import differing_settings, file_names, setting_text, titles
from ..features.columns import write_columns
from ..features.reproduce_text import HEADER, cells, sentence_of, with_random_tokens
from ..features.reproducibility import Reproducibility
from ..run_folder.comparing import measurements
from ..run_folder.files import (
    HELD_OUT_PREFIX,
    REPORT_PAGE,
    locked,
    page_at,
    report_files,
    require_writable,
    write_text,
)
from ..run_folder.identity import differences
from ..run_folder.sae_folder import SAEFolder, find_sae
from .analysis import STAR_MARGIN, Analysis, Comparison, Vocabulary, analyse, headline
from .feature_pages import COLUMNS, cards, columns, page, rounded
from .html import as_data, page_html

_OUT = "out"
_CURVES = {
    "fve": ("Variance explained (FVE)", "Of 256 tokens of a batch. 1 is a perfect reconstruction."),
    **{
        f"{HELD_OUT_PREFIX}{metric.key}": (
            f"{metric.label}, held out",
            "Of the same tokens each time.",
        )
        for metric in shown_in("training")
    },
    "l2_loss": (
        "Squared error\n(a vSAE's: with noise)",
        "Per token, of 256 tokens of a batch, in training units.",
    ),
    "alive_in_batch": (
        "Features used",
        "Share of features selected at least once in 256 tokens of a batch: 256 L0 / F at most.",
    ),
    "kl_loss": ("KL (nats per token)", "To the prior. Variational SAEs only."),
}
"""The title and explanation of each training chart, by its key in metrics.jsonl, in their order."""


def write_report(
    folder: str | Path | SAEFolder,
    against: Sequence[str | Path | SAEFolder] = (),
    out: str | Path | None = None,
    *,
    seeds: Sequence[str | Path | SAEFolder] = (),
    options: ReportOptions | None = None,
    keep: bool = True,
    on_step: Callable[[str], None] = lambda step: None,
    **where: Any,
) -> Path:
    """Write the report of an SAE, beside other SAEs if given. Returns the page's path.

    The CSV files of its features go to a folder beside the page, NAME_files.

    Arguments:
        folder: the name of the SAE that the report is about: a run folder, or another library's SAE, see
            run_folder/sae_names.py.
        against: other SAEs of the same language model and hook point.
        seeds: other seeds of `folder`'s SAE. The page then shows which of its features come back.
        out: the page, x.html, or a folder for report.html. Default: the SAE's folder of results, see `SAEFolder.results`.
        keep: read and keep the SAEs' codes, see `OpenedFolders`.
        where: model, hook, data, device and the rules that leave out tokens, see
            `evaluation.folders.evaluate_folders`.

    Raises: a UserError that says what to change, before anything is measured if `out` can't be written or another process
    writes to it.
    """
    sae = find_sae(folder)  # fails before a folder of data is created for a missing run
    others = [find_sae(seed) for seed in seeds]
    usual = sae.results / REPORT_PAGE
    out = usual if out is None else page_at(out, REPORT_PAGE)
    files = report_files(out)
    require_writable(out, _OUT)
    with locked(files, _OUT):
        comparison = analyse(
            [sae, *against],
            options or ReportOptions(),
            seeds=others,
            keep=keep,
            on_step=on_step,
            **where,
        )
        on_step("writing the page")
        saes = [_sae(analysis, comparison) for analysis in comparison.analyses]
        flags = {"out": None if out == usual else out, **where}
        content = _render(comparison, saes, flags, [seed.name for seed in others])
        for sae, name in zip(saes, file_names(sae["label"] for sae in saes).values(), strict=True):
            _write_data(files / f"features_{name}.csv", sae["columns"], comparison.vocabulary)
        write_text(out, content, _OUT)  # last: if the page exists, so does the rest
    return out


def _render(
    comparison: Comparison,
    saes: list[dict[str, Any]],
    flags: dict[str, Any],
    seeds: Sequence[str],
) -> str:
    """The page's HTML.

    Arguments:
        saes: each SAE's part of the page's data, see `_sae`.
        flags: of `vsae report`, other than the folders and options.
        seeds: the names of the SAEs' other seeds.
    """
    payload = {
        "saes": saes,
        "columns": [
            {"key": c.key, "title": c.label, "show": c.show, "fact": c.fact, "is_extra": c.is_extra}
            for c in COLUMNS
        ],
        "tokens": comparison.vocabulary.texts,
        "least": LEAST_SELECTIONS,
        "curves": [(name, *texts) for name, texts in _CURVES.items()],
    }
    measured = {sae.label: sae.metrics for sae in comparison.analyses if sae.metrics}
    return page_html(
        REPORT_PAGE,
        ("dom.js", "charts.js", "features.js", "start.js"),
        analyses=comparison.analyses,
        comparison=comparison,
        run=comparison.opened.run,
        hook=comparison.opened.hook_point,
        rows=headline(comparison),
        star_margin=STAR_MARGIN,
        answer=_answer(known) if (known := _by_title(comparison.analyses)) else None,
        differing=_differing(comparison.analyses),
        measured_as=differences(*measurements(measured).values()),
        cards=cards(comparison),
        has_history=any(sae.history for sae in comparison.analyses),
        settings=_settings(comparison),
        commands=_commands(comparison, flags, seeds),
        come_back=_come_back(comparison.analyses),
        versions=comparison.analyses[0].folder.config.get("run", {}).get("versions", {}),
        n_tokens=comparison.analyses[0].codes.tokens,
        date=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        data=as_data(payload),
    )


def _answer(known: Mapping[str, Reproducibility]) -> tuple[str, str]:
    """The page's headline, on what comes back, and the rest of what `sentence_of` says of it.

    Features of one token's kind come back without much training, so the headline says where they are most of it.
    """
    first, _, rest = " ".join(sentence_of(known).split()).partition(". ")
    shares = {
        title: fmean(found.one_token(name) or 0.0 for name in found.names)
        for title, found in known.items()
    }
    most = [f"{share:.0%} of {title}'s" for title, share in shares.items() if share > 1 / 2]
    headline = f"{first.rstrip('.')}."
    if most:
        headline += f" Most of these features stand for one token each: {', '.join(most)}."
    return headline, rest


def _differing(analyses: Sequence[Analysis]) -> list[tuple[str, list[str]]]:
    """The training settings in which the SAEs differ, and each SAE's values."""
    settings = {sae.label: sae.folder.trained_as for sae in analyses}
    return [
        (name, [setting_text(trained.get(name)) for trained in settings.values()])
        for name in differing_settings(settings)
    ]


def _come_back(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """The section about SAEs and their other seeds: warnings, a table's label, head and rows, and of each SAE
    the share of one token's kind."""
    known = _by_title(analyses)
    times = Counter(name for found in known.values() for name in found.names)
    rows, one_token, notes = [], [], []
    for title, found in known.items():
        called = {n: n if times[n] == 1 else f"{title}: {n}" for n in found.names}
        rows.append((found, [[called[name], *cells(found.numbers(name), "–")] for name in called]))
        one_token += [(called[name], found.one_token(name)) for name in called]
        notes += found.notes
    shown = [(name, own) for name, *own in with_random_tokens(rows, "–")]
    table = ("What comes back of each SAE", ["SAE", *HEADER], shown)
    return {"notes": notes, "table": table, "one_token": one_token}


def _by_title(analyses: Sequence[Analysis]) -> dict[str, Reproducibility]:
    """What comes back of each SAE that has other seeds, by the title of its setting."""
    called = titles({sae.label: sae.folder for sae in analyses})
    return {called[sae.label]: sae.come_back for sae in analyses if sae.come_back}


def _sae(analysis: Analysis, comparison: Comparison) -> dict[str, Any]:
    """One SAE's part of the page's data."""
    shown = sorted(analysis.features.ranking[: comparison.options.pages])
    content: dict[str, Any] = {
        "label": analysis.label,
        "columns": columns(analysis),
        "pages": {feature: page(analysis, feature) for feature in shown},
        "history": [
            {name: value if name == "step" else rounded(value) for name, value in line.items()}
            for line in analysis.history
        ],
    }
    if (scores := analysis.scores) is not None:
        content["seeds"] = {"of": scores.of, "random": rounded(scores.random)}
    return content


def _settings(comparison: Comparison) -> list[tuple[str, list[str], bool]]:
    """Each setting of the runs: its name, each SAE's value, and whether the values differ."""
    per_sae = [
        sae.settings | {"norm_factor": sae.config["trainer"].get("norm_factor")}
        for sae in (analysis.folder for analysis in comparison.analyses)
    ]
    rows = []
    for name in dict.fromkeys(name for settings in per_sae for name in settings):
        values = [setting_text(settings.get(name)) for settings in per_sae]
        if any(settings.get(name) is not None for settings in per_sae):
            rows.append((name, values, len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row[2])


def _commands(comparison: Comparison, flags: dict[str, Any], seeds: Sequence[str]) -> list[str]:
    """The commands that train these SAEs again, and write this report again."""
    saes = [analysis.folder for analysis in comparison.analyses]
    folders = [sae.name for sae in saes]
    defaults = asdict(ReportOptions()) | {"device": RunConfig.device}
    given = [
        part
        for name, value in (asdict(comparison.options) | flags).items()
        if value != defaults.get(name)
        for part in ("--" + name.replace("_", "-"), str(value))
    ]
    others = {"--against": folders[1:], "--seeds": seeds}
    beside = [word for flag, given_to in others.items() if given_to for word in (flag, *given_to)]
    trained = [str(sae.path) for sae in saes if sae.is_run]
    again = [
        ["vsae", "train", "--config", folder, "--save-dir", f"{folder}_again"] for folder in trained
    ]
    report = ["vsae", "report", folders[0], *beside, *given]
    return [shlex.join(command) for command in [*again, report]]


def _write_data(path: Path, values_of: dict[str, list[Any]], vocabulary: Vocabulary) -> None:
    """Write the CSV file of an SAE's features. Columns of tokens come last, as text."""
    shown = {column.key: column.show for column in COLUMNS}
    words = {
        key: [" | ".join(vocabulary.texts[i] for i in row) for row in values]
        for key, values in values_of.items()
        if shown[key] == "tokens"
    }
    numbers = {key: values for key, values in values_of.items() if key not in words}
    write_columns(path, {"feature": range(len(values_of["count"])), **numbers, **words}, _OUT)
