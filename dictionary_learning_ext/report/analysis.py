"""Everything a report shows of SAEs at one hook point of one language model, measured in one pass.

comparison = analyse([folder, *others], ReportOptions())
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..codes.codes import Codes
from ..codes.contexts import token_text, visible
from ..codes.sinks import Sinks, sinks_of
from ..codes.table import FeatureTable
from ..config.run import ReportOptions
from ..errors import UserError
from ..evaluation.folders import OpenedFolders, evaluate_folders, open_folders
from ..evaluation.metrics import Number, changes_since, shown_in
from ..evaluation.tables import labels_of, stale_lines, stale_metrics
from ..features.agreement import COME_BACK
from ..features.directions import LogitLens, Ranked, nearest_features
from ..features.reproduce import compare_saes, require_comparable
from ..features.reproducibility import FeatureScores, Numbers, Reproducibility
from ..run_folder.comparing import grouped_by_setting
from ..run_folder.reading import read_history
from ..run_folder.sae_folder import SAEFolder, find_saes

logger = logging.getLogger(__name__)

STAR_MARGIN = 0.1
"""An SAE whose FVE is further than this below the highest gets no star."""


class Vocabulary:
    """The tokens that a report shows, as visible text, numbered in order of first use.

    Most tokens appear in many contexts, so the page's data hold each text once and refer to it by number.
    """

    def __init__(self, tokenizer: Any):
        self.texts: list[str] = []
        self._tokenizer = tokenizer
        self._numbers: dict[int, int] = {}
        self._parts: set[int] = set()

    def number(self, token: int) -> int:
        """The index in `texts` of a token id."""
        if token not in self._numbers:
            self._numbers[token] = len(self.texts)
            self.texts.append(visible(token_text(self._tokenizer, token)))
            if "\ufffd" in self._tokenizer.decode([token]):  # its text is the tokenizer's spelling
                self._parts.add(token)
        return self._numbers[token]

    def text(self, token: int) -> str:
        """The visible text of a token id."""
        return self.texts[self.number(token)]

    def is_fragment(self, token: int) -> bool:
        """Whether a token continues a word, or is part of a character."""
        first = self.text(token)[:1]
        return token in self._parts or (first.isascii() and first.isalnum())


@dataclass(frozen=True)
class Analysis:
    """One SAE of a report. Each property is computed when it is first used."""

    label: str
    """A short name, unique within the report."""
    folder: SAEFolder
    dictionary: Any
    features: FeatureTable
    """Statistics and contexts of the features on the page's text."""
    vocabulary: Vocabulary
    """The tokens of the whole report."""
    lens: LogitLens | None = None
    """None if effects on logits aren't shown."""
    come_back: Reproducibility | None = None
    """How this SAE agrees with its other seeds; None if none were given."""
    metrics_of_seeds: Sequence[dict[str, Any]] = ()
    """The content of metrics.json of this SAE and of its other seeds; empty for one that was not evaluated."""

    @cached_property
    def history(self) -> list[dict[str, float | None]]:
        """The lines of metrics.jsonl; empty if the file is missing."""
        return read_history(self.folder.path)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json; empty if the folder was not evaluated."""
        return self.metrics_of_seeds[0]

    @property
    def codes(self) -> Codes:
        return self.features.codes

    @cached_property
    def neighbours(self) -> Ranked:
        """The features with the nearest directions."""
        return nearest_features(self.codes.directions_FD)

    @cached_property
    def logits(self) -> tuple[Ranked, Ranked] | None:
        """The tokens that each feature promotes most, and those that it suppresses most."""
        return None if self.lens is None else self.lens.ranked(self.codes.directions_FD)

    @cached_property
    def scores(self) -> FeatureScores | None:
        """How each feature is matched in the other seeds."""
        returning = self.come_back
        return None if returning is None else returning.scores(returning.names[0])

    def known(self, metric: str) -> list[float]:
        """A metric's values for this SAE and its other seeds, of those that have it."""
        values = [metrics.get(metric) for metrics in self.metrics_of_seeds]
        return [value for value in values if value is not None]

    def mean(self, metric: str) -> float | None:
        """A metric's mean over the seeds."""
        known = self.known(metric)
        return fmean(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """The SAEs of a report, and what they have in common."""

    opened: OpenedFolders
    analyses: list[Analysis]
    options: ReportOptions
    sinks: Sinks | None
    """The attention sinks that the report leaves out; None if there are none."""

    vocabulary: Vocabulary
    stale: list[str]
    """Warnings of metrics that may not be what an evaluation would give now."""


def analyse(
    folders: Sequence[str | Path | SAEFolder],
    options: ReportOptions,
    *,
    seeds: Sequence[str | Path | SAEFolder] = (),
    on_step: Callable[[str], None] = lambda step: None,
    **where: Any,
) -> Comparison:
    """Measure the SAEs of a report, all on the same tokens.

    Arguments:
        folders: different ones, all trained on one language model and hook point.
        seeds: other seeds of these SAEs. Each belongs to the folder with its setting, or to the first if there is none.
            Copies are compared too, with a warning.
        on_step: called before each step, with its name.
        where: model, hook, data, device, keep and the rules that leave out tokens, see
            `evaluation.folders.evaluate_folders`.

    Raises: a UserError that says what to change.
    """
    shown = find_saes(folders, different=True)
    others = find_saes(seeds, different=True) if seeds else {}
    saes = shown | others
    seeds_of = _seeds_of(shown, others)
    for name, own in seeds_of.items():
        group = [saes[name], *(others[seed] for seed in own)]
        require_comparable(find_saes(group, different=True))
    opened = open_folders([*saes.values()], **where)
    language_model = opened.inputs.require_language_model(
        "a report shows tokens", "use `vsae eval` and `vsae compare`"
    )
    # Do what may fail first: reading the text takes minutes.
    lens = LogitLens(language_model.module) if options.logits else None
    text = "held-out" if options.split == "heldout" else "training"
    tokens = opened.own_tokens if options.tokens is None else options.tokens
    on_step(f"reading {tokens:,} tokens of {text} text, or what is kept of it")
    codes = opened.codes(tokens, split=options.split)
    come_back, known = {}, dict[str, Numbers | None]()
    directions = {name: own.directions_FD for name, own in codes.items()}
    for folder, own in seeds_of.items():
        on_step(f"matching the features of {folder} with those of {' and '.join(own)}")
        of_setting = {name: saes[name] for name in (folder, *own)}
        how = {"known": known, "split": options.split}
        come_back[folder] = compare_saes(of_setting, directions, codes, opened, **how)
    for name, sae in saes.items():
        if sae.metrics and changes_since(sae, sae.metrics):
            on_step(f"evaluating {name} again, as it has changed since")
            saes[name] = _evaluated_again(sae, where)
    metrics = {name: sae.metrics or {} for name, sae in saes.items()}
    reasons = stale_metrics({name: known for name, known in metrics.items() if known}, saes)
    vocabulary = Vocabulary(language_model.tokenizer)
    called = labels_of({name: sae.trained_as for name, sae in shown.items()})
    analyses = [
        Analysis(
            called[name],
            saes[name],
            opened.saes[name],
            FeatureTable(codes[name], seed=options.seed),
            vocabulary,
            lens,
            come_back.get(name),
            [metrics[seed] for seed in (name, *seeds_of.get(name, []))],
        )
        for name in shown
    ]
    sinks = sinks_of(analyses[0].codes.reading, language_model.tokenizer)
    stale = stale_lines(reasons, {name: name for name in reasons})
    return Comparison(opened, analyses, options, sinks, vocabulary, stale)


def _evaluated_again(sae: SAEFolder, where: dict[str, Any]) -> SAEFolder:
    """An SAE after another evaluation at its own settings."""
    own = {key: where[key] for key in ("model", "hook", "device", "device_map") if key in where}
    try:
        evaluate_folders([sae], **own)
    except UserError as error:
        logger.warning("%s", error)
    return replace(sae)  # it reads the new metrics.json


def _seeds_of(
    folders: Mapping[str, SAEFolder], seeds: Mapping[str, SAEFolder]
) -> dict[str, list[str]]:
    """The names of the other seeds of each folder that has some."""
    seeds_of: dict[str, list[str]] = {}
    groups = grouped_by_setting({**folders, **seeds})
    for seed in seeds:
        (group,) = (group for group in groups if seed in group)
        owner = next((folder for folder in folders if folder in group), next(iter(folders)))
        seeds_of.setdefault(owner, []).append(seed)
    return {folder: seeds_of[folder] for folder in folders if folder in seeds_of}


# --- the table at the top of the page


@dataclass(frozen=True)
class HeadlineRow:
    """A row of the headline table: a metric of every SAE."""

    name: str
    explanation: str
    cells: list[str]
    best: list[bool]
    """Which cells are the best and get a star. None do if all are equal, or if neither more nor less is better."""
    notes: list[str] | None = None
    """A small note under each cell."""


def headline(comparison: Comparison) -> list[HeadlineRow]:
    """The rows of the headline table, with a dash for an SAE that was not evaluated."""
    analyses, rows = comparison.analyses, []
    if any(sae.come_back for sae in analyses):
        known = [sae.come_back.numbers() if sae.come_back else {} for sae in analyses]
        rows = [_row(analyses, shown, [own.get(shown.key) for own in known]) for shown in COME_BACK]
    for metric in shown_in("report"):
        values = [sae.mean(metric.key) for sae in analyses]
        rows.append(_row(analyses, metric, values, [sae.known(metric.key) for sae in analyses]))
    tokens = analyses[0].codes.tokens
    explanation = f"features selected at least once in these {tokens:,} tokens"
    alive_of = [sae.codes.count_F > 0 for sae in analyses]
    alive = [f"{int(alive_F.sum())} of {len(alive_F)}" for alive_F in alive_of]
    return [*rows, HeadlineRow("Alive", explanation, alive, [False] * len(alive))]


def _row(
    analyses: list[Analysis],
    number: Number,
    values: list[float | None],
    of_seeds: Sequence[list[float]] = (),
) -> HeadlineRow:
    """The row of a number.

    Arguments:
        values: each SAE's.
        of_seeds: of each SAE, those of its seeds. Their spread is noted.
    """
    spreads = [stdev(known) if len(known) > 1 else 0.0 for known in of_seeds]
    best = number.best(values)
    others = [value for value in values if value is not None and value != best]
    if best is not None and any(abs(best - other) <= max(spreads, default=-1) for other in others):
        best = None  # a difference within the seeds' spread may be chance
    cells, starred = [number.text(value, "–") for value in values], number.text(best, "")
    # An SAE that reconstructs poorly often has few dead features and a stable selection, which mean nothing.
    fve = [-math.inf if (value := sae.mean("fve")) is None else value for sae in analyses]
    is_good = [value >= max(fve) - STAR_MARGIN and value > -math.inf for value in fve]
    differ = len({*cells} - {"–"}) > 1
    stars = [differ and c == starred and good for c, good in zip(cells, is_good, strict=True)]
    notes = [f"± {number.text(spread)}" if spread else "" for spread in spreads]
    name, explanation = number.title or number.label, number.in_words or number.definition
    return HeadlineRow(name, explanation, cells, stars, notes if any(notes) else None)
