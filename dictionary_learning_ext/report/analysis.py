"""Everything a report says about SAEs of one language model and hook point, measured in one pass.

comparison = analyse([folder, *others], ReportOptions())
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch as t

from ..config.run import ReportOptions
from ..errors import ConfigError, Template
from ..evaluation.folders import OpenedFolders, open_folders
from ..evaluation.metrics import Metric, shown_in
from ..evaluation.tables import labels
from ..features.codes import CodeCollector, agreement_of_codes
from ..features.collector import FeatureStatistics, Sinks, ranking_of
from ..features.directions import (
    LogitLens,
    Ranked,
    decoder_directions,
    nearest_features,
)
from ..features.explanations import Explanations, means_of, not_alike, read_explanations
from ..features.features_of import MeasuredFeatures, measure_features
from ..features.reproducibility import RETURNING, FeatureScores
from ..features.reproducibility_of_folders import (
    ReproducibilityOfFolders,
    comparable_configs,
    reproduce,
)
from ..features.return_score import ReturnScores, caveat_on
from ..run_folder.comparing import grouped_by_setting
from ..run_folder.files import target_of
from ..run_folder.reading import read_config, read_history, read_metrics_if_any
from ..run_folder.sae_names import place_of
from ..run_folder.weights import load_dictionary

logger = logging.getLogger(__name__)

STAR_MARGIN = 0.1
"""An SAE whose FVE is further than this below the highest gets no star."""


@dataclass
class Analysis:
    """One SAE of a report."""

    label: str
    """A short name, unique within the report."""
    folder: Path
    """As it was named: a run folder, or one of an SAE's results."""
    config: dict[str, Any]
    metrics: dict[str, Any]
    """The content of metrics.json; empty if the folder was not evaluated."""
    history: list[dict[str, float | None]]
    """The lines of metrics.jsonl; empty if the file is missing."""
    dictionary: Any
    statistics: FeatureStatistics
    directions_FD: t.Tensor
    neighbours: Ranked
    promoted: Ranked | None
    suppressed: Ranked | None
    ranking: list[int]
    """The live features, the easiest to interpret first."""
    return_scores: ReturnScores | None
    """None for an SAE that has none, see `features.return_score`."""
    explanations: Explanations
    """What `vsae explain` wrote."""
    returning: ReproducibilityOfFolders | None = None
    """This SAE and its other seeds; None if none were given."""

    @property
    def scores(self) -> FeatureScores | None:
        """Which of its features come back in its other seeds."""
        found = self.returning
        return None if found is None else found.measured.scores(found.measured.names[0])


@dataclass(frozen=True)
class Comparison:
    """The SAEs of a report, and what they share."""

    opened: OpenedFolders
    analyses: list[Analysis]
    options: ReportOptions
    sinks: Sinks | None
    """The tokens that the report leaves out; None if there are none."""

    @property
    def tokenizer(self) -> Any:
        """The language model's."""
        assert self.opened.language_model is not None
        return self.opened.language_model.tokenizer


def analyse(
    folders: Sequence[str | Path],
    options: ReportOptions,
    *,
    seeds: Sequence[str | Path] = (),
    on_step: Callable[[str], None] = lambda step: None,
    **where: Any,
) -> Comparison:
    """Measure SAEs, all on the same tokens.

    Arguments:
        folders: different ones, all trained on one language model and hook point.
        seeds: other seeds of these SAEs. Each goes to the folder of its setting, or to the first if none
            has it. Their directions and their activations are compared, but no contexts kept.
        on_step: called with the name of each step before it starts.
        where: model, hook, data, device and the rules that leave out tokens, see
            `evaluation.folders.evaluate_folders`.

    Raises: a UserError that says what to change.
    """
    _require_different(folders)
    opened = open_folders(folders, **where)
    run, inputs = opened.run, opened.inputs
    language_model = inputs.require_language_model(
        "a report shows tokens", "use `vsae eval` and `vsae compare`"
    )
    # What can fail comes before the text, which takes minutes.
    explanations = {name: read_explanations(name, sae) for name, (sae, _) in opened.saes.items()}
    lens = LogitLens(language_model.module) if options.logits else None
    seeds_of = _seeds_of([*map(str, folders)], [*map(str, seeds)])
    returning, coders = _matched(opened, seeds_of, on_step)
    text = "held-out" if options.split == "heldout" else "training"
    on_step(f"reading {options.tokens:,} tokens of {text} text")
    found_of_each, sinks = measure_features(
        [dictionary for dictionary, _ in opened.saes.values()],
        inputs.contexts(run.hook, options.split, options.tokens),
        language_model.tokenizer,
        options.tokens,
        caveats=[caveat_on(one, config, run.model) for one, config in opened.saes.values()],
        others=[coder for folder_coders in coders.values() for coder in folder_coders.values()],
        profile_tokens=1,
        seed=options.seed,
    )
    features = dict(zip(opened.saes, found_of_each, strict=True))
    read = found_of_each[0].statistics.tokens + (sinks.tokens if sinks else 0)
    if read < options.tokens:
        logger.warning("the text ended after %d tokens", read)
    for folder, folder_coders in coders.items():
        others = " and ".join(seeds_of[folder])
        on_step(f"comparing the activations of {folder} with those of {others}")
        scores = features[folder].return_scores
        returning[folder] = _with_codes(returning[folder], folder_coders, scores)
    called = labels({name: config for name, (_, config) in opened.saes.items()})
    analyses = [
        _analysis(
            opened,
            name,
            features[name],
            lens,
            label=called[name],
            explanations=explanations[name],
            returning=returning.get(name),
        )
        for name in opened.saes
    ]
    return Comparison(opened, analyses, options, sinks)


def _matched(
    opened: OpenedFolders, seeds_of: dict[str, list[str]], on_step: Callable[[str], None]
) -> tuple[dict[str, ReproducibilityOfFolders], dict[str, dict[str, CodeCollector]]]:
    """Each folder's features matched with those of its other seeds, by direction; and what collects the
    activations of all of them, by name."""
    returning: dict[str, ReproducibilityOfFolders] = {}
    coders: dict[str, dict[str, CodeCollector]] = {}
    for folder, own in seeds_of.items():
        comparable_configs([folder, *own])
    for folder, own in seeds_of.items():
        on_step(f"matching the features of {folder} with those of {' and '.join(own)}")
        returning[folder] = reproduce([folder, *own])
        loaded = [load_dictionary(one, opened.run.device)[0] for one in own]
        collectors = map(CodeCollector, [opened.saes[folder][0], *loaded])
        names = returning[folder].measured.names
        coders[folder] = dict(zip(names, collectors, strict=True))
    return returning, coders


def _with_codes(
    found: ReproducibilityOfFolders,
    coders: dict[str, CodeCollector],
    return_scores: ReturnScores | None,
) -> ReproducibilityOfFolders:
    """With how the activations agree, and the first SAE's return scores."""
    codes = {name: coder.codes() for name, coder in coders.items()}
    scores = {} if return_scores is None else {found.measured.names[0]: return_scores}
    return replace(found, codes=agreement_of_codes(codes, found.measured), scores=scores)


def _analysis(
    opened: OpenedFolders,
    name: str,
    features: MeasuredFeatures,
    lens: LogitLens | None,
    **known: Any,
) -> Analysis:
    """What a report shows of one SAE, with what is `known` of it."""
    dictionary, config = opened.saes[name]
    directions_FD = decoder_directions(dictionary)
    promoted, suppressed = lens.ranked(directions_FD) if lens else (None, None)
    return Analysis(
        folder=Path(name),
        config=config,
        metrics=read_metrics_if_any(name) or {},
        history=read_history(place_of(name).folder),
        dictionary=dictionary,
        statistics=features.statistics,
        directions_FD=directions_FD,
        neighbours=nearest_features(directions_FD),
        promoted=promoted,
        suppressed=suppressed,
        ranking=ranking_of(features.statistics),
        return_scores=features.return_scores,
        **known,
    )


def _seeds_of(folders: list[str], seeds: list[str]) -> dict[str, list[str]]:
    """The other seeds of each folder that has some."""
    found: dict[str, list[str]] = {}
    configs = {one: read_config(one) for one in (*folders, *seeds)} if seeds else {}
    groups = grouped_by_setting(configs)
    for seed in seeds:
        (alike,) = (group for group in groups if seed in group)
        owner = next((folder for folder in folders if folder in alike), folders[0])
        found.setdefault(owner, []).append(seed)
    return {folder: found[folder] for folder in folders if folder in found}


def _require_different(folders: Sequence[str | Path]) -> None:
    """Raise a ConfigError if a folder is given twice, however it is spelled."""
    places = [target_of(place_of(folder).folder) for folder in folders]
    times = Counter(places)
    if twice := [folder for folder, place in zip(folders, places, strict=True) if times[place] > 1]:
        remedy = Template("remove it from {against}")
        raise ConfigError(f"{twice[0]} is given twice", instead=remedy)


# --- the table at the top of the page


@dataclass(frozen=True)
class HeadlineRow:
    """One metric of every SAE."""

    name: str
    explanation: str
    cells: list[str]
    best: list[bool]
    """Which cells get a star: the best, but none if all are equal or there is no better or worse."""
    notes: list[str] | None = None
    """A small note under each cell."""


def headline(comparison: Comparison) -> list[HeadlineRow]:
    """The rows of the headline table, with a dash for a folder that was not evaluated."""
    analyses = comparison.analyses
    metrics = [_metric(metric, analyses) for metric in shown_in("report")]
    return [
        *metrics[:2],
        *_come_back(analyses),
        *metrics[2:],
        *_explained(analyses),
        _alive(analyses),
    ]


def _row(
    analyses: list[Analysis],
    name: str,
    explanation: str,
    cells: list[str],
    best: str = "",
    notes: list[str] | None = None,
) -> HeadlineRow:
    # An SAE that hardly reconstructs often has few dead features and a stable selection. These mean nothing.
    fve = [-math.inf if (value := one.metrics.get("fve")) is None else value for one in analyses]
    is_good = [value >= max(fve) - STAR_MARGIN and value > -math.inf for value in fve]
    differ = len({*cells} - {"–"}) > 1
    stars = [differ and c == best and good for c, good in zip(cells, is_good, strict=True)]
    return HeadlineRow(name, explanation, cells, stars, notes)


def _metric(metric: Metric, analyses: list[Analysis]) -> HeadlineRow:
    values = [one.metrics.get(metric.key) for one in analyses]
    cells = [metric.text(value, missing="–") for value in values]
    name, explanation = metric.title or metric.label, metric.in_words or metric.definition
    return _row(analyses, name, explanation, cells, metric.text(metric.best(values), missing=""))


def _come_back(analyses: list[Analysis]) -> list[HeadlineRow]:
    if not any(one.returning for one in analyses):
        return []
    shares = [one.returning and one.returning.returns for one in analyses]
    cells = ["–" if share is None else f"{share:.1%}" for share in shares]
    best = f"{max(share for share in shares if share is not None):.1%}"
    explanation = (
        "share of features that another seed finds too: the cosine with their match there is at "
        f"least {RETURNING[0]:g}"
    )
    return [_row(analyses, "Features that come back", explanation, cells, best)]


def _explained(analyses: list[Analysis]) -> list[HeadlineRow]:
    if not any(one.explanations.scores for one in analyses):
        return []
    explained = {one.label: one.explanations for one in analyses}
    n, mean_of = means_of(explained)
    means = [mean_of.get(one.label) for one in analyses]
    why_not = not_alike(explained)
    explanation = (
        f"mean score of the explanations of {n} features, the first in their order; guessing has 0.5"
        + (f"; can't be compared: {why_not}" if why_not else "")
    )
    cells = ["–" if mean is None else f"{mean.value:.2f}" for mean in means]
    notes = ["" if mean is None else f"{mean.low:.2f} to {mean.high:.2f}" for mean in means]
    return [_row(analyses, "Explanations", explanation, cells, notes=notes)]


def _alive(analyses: list[Analysis]) -> HeadlineRow:
    tokens = analyses[0].statistics.tokens
    explanation = f"features selected at least once in these {tokens:,} tokens"
    alive_of = [one.statistics.alive_F for one in analyses]
    cells = [f"{int(alive_F.sum())} of {len(alive_F)}" for alive_F in alive_of]
    return _row(analyses, "Alive", explanation, cells)
