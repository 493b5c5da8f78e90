"""Everything a report says about SAEs of one language model and hook point, measured in one pass.

analyses = analyse([folder, *others], ReportOptions())
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as t

from ..config.run import ReportOptions
from ..config.synthetic_models import is_synthetic
from ..errors import ActivationsError, ConfigError, Setting
from ..evaluation.folders import OpenedFolders, open_folders
from ..features.collector import FeatureCollector, FeatureStatistics
from ..features.directions import (
    LogitLens,
    Ranked,
    alignment,
    decoder_directions,
    nearest_features,
)
from ..features.geometry import Geometry, GeometryError, comparable_features, geometry
from ..features.reproducibility_of_folders import measured
from ..features.synthesis import Synthesis, synthesise
from ..run_folder.reading import read_history, read_metrics_if_any
from .returning import FeatureScores, Returning
from .sinks import SinkFinder, Sinks

logger = logging.getLogger(__name__)

LEAST_SELECTIONS = 8
"""A feature selected fewer times than this fires on too few tokens to say what it fires on."""


@dataclass
class Analysis:
    """One SAE of a report."""

    label: str
    """A short name, unique within the report."""
    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    """The content of metrics.json; empty if the folder was not evaluated."""
    history: list[dict[str, float | None]]
    """The lines of metrics.jsonl; empty if the file is missing."""
    dictionary: Any
    statistics: FeatureStatistics
    directions_FD: t.Tensor
    alignment_F: t.Tensor
    neighbours: Ranked
    promoted: Ranked | None
    suppressed: Ranked | None
    syntheses: dict[int, Synthesis]
    ranking: list[int]
    """The live features, the easiest to interpret first."""
    geometry: Geometry | None = None
    scores: FeatureScores | None = None
    """Which of its features come back in its other seeds; None if there are none to compare with."""


@dataclass(frozen=True)
class Comparison:
    """The SAEs of a report, and what they share."""

    opened: OpenedFolders
    analyses: list[Analysis]
    options: ReportOptions
    no_map: str | None
    """Why there is no map; None if there is one."""
    sinks: Sinks | None
    """The tokens that the report leaves out; None if there are none."""
    returning: Returning | None = None
    """Which features of the first SAE come back in its other seeds; None if none are given."""

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
    """Measure run folders, all on the same tokens.

    Arguments:
        folders: different run folders, all trained on one language model and hook point.
        seeds: other seeds of the first folder's SAE. Only their decoder directions are read.
        on_step: called with the name of each step before it starts.
        where: model, hook, data, device and the rules that leave out tokens, see
            `evaluation.folders.evaluate_folders`.

    Raises: a UserError that says what to change.
    """
    labels = labels_of(folders)
    opened = open_folders(folders, **where)
    run, language_model = opened.run, opened.language_model
    if is_synthetic(run.model):
        raise ActivationsError(
            "a report shows tokens, and synthetic activations have none",
            name="model",
            value=run.model,
            instead="use `vsae eval` and `vsae compare`",
        )
    if language_model is None:
        raise ActivationsError(
            "a report shows tokens, and this folder doesn't say which language model's",
            name="activations",
            value=run.activations,
            instead="use `vsae eval` and `vsae compare`",
        )
    # What can fail comes before the text, which takes minutes.
    lens = LogitLens(language_model) if options.logits else None
    returning = None
    if seeds:
        on_step(f"matching the features of {1 + len(seeds)} seeds")
        returning = Returning(measured([folders[0], *seeds]))
    collectors = {
        name: FeatureCollector(
            dictionary, options.tokens, profile_tokens=options.map_tokens, seed=options.seed
        )
        for name, (dictionary, _) in opened.saes.items()
    }
    finder = SinkFinder(language_model.tokenizer)
    text = "held-out" if options.split == "heldout" else "training"
    on_step(f"reading {options.tokens:,} tokens of {text} text")
    for batch in opened.inputs.contexts(run.hook, options.split, options.tokens):
        batch = finder.without_sinks(batch)
        for collector in collectors.values():
            collector.add(batch)
    statistics_of = {name: collector.statistics() for name, collector in collectors.items()}
    read = finder.tokens + next(iter(statistics_of.values())).tokens
    if read < options.tokens:
        logger.warning("the text ended after %d tokens", read)
    analyses = []
    for (name, (dictionary, config)), label in zip(opened.saes.items(), labels, strict=True):
        statistics = statistics_of[name]
        ranking = ranking_of(statistics)
        if options.synthesise and ranking:
            on_step(f"{label}: synthesising tokens for {options.synthesise} features")
        syntheses = synthesise(
            dictionary,
            language_model,
            opened.hook_point,
            ranking[: options.synthesise],
            seed=options.seed,
        )
        directions_FD = decoder_directions(dictionary)
        promoted, suppressed = lens.ranked(directions_FD) if lens else (None, None)
        analyses.append(
            Analysis(
                label=label,
                folder=Path(name),
                config=config,
                metrics=read_metrics_if_any(Path(name)) or {},
                history=read_history(Path(name)),
                dictionary=dictionary,
                statistics=statistics,
                directions_FD=directions_FD,
                alignment_F=alignment(dictionary),
                neighbours=nearest_features(directions_FD),
                promoted=promoted,
                suppressed=suppressed,
                syntheses={one.feature: one for one in syntheses},
                ranking=ranking,
            )
        )
    if returning is not None:
        analyses[0].scores = returning.scores
    no_map = _add_geometry(analyses, options, on_step)
    return Comparison(opened, analyses, options, no_map, finder.sinks(), returning)


def labels_of(folders: Sequence[str | Path]) -> list[str]:
    """The folders' names, or their whole paths where two have the same name.

    Raises: ConfigError if a folder is given twice.
    """
    paths = [Path(folder) for folder in folders]
    resolved = Counter(path.resolve() for path in paths)
    if twice := [path for path in paths if resolved[path.resolve()] > 1]:
        remedy = ("remove it from ", Setting("against"))
        raise ConfigError(f"{twice[0]} is given twice", instead=remedy)
    names = Counter(path.resolve().name for path in paths)
    return [path.resolve().name if names[path.resolve().name] == 1 else str(path) for path in paths]


def _add_geometry(
    analyses: list[Analysis], options: ReportOptions, on_step: Callable[[str], None]
) -> str | None:
    """Set each analysis's geometry; return why that was not possible, or None."""
    try:
        chosen = comparable_features(
            [one.statistics.profiles_NF for one in analyses], options.map_features, options.seed
        )
        for one, features in zip(analyses, chosen, strict=True):
            on_step(f"{one.label}: mapping {len(features)} features")
            one.geometry = geometry(
                one.statistics.profiles_NF,
                one.directions_FD.numpy(),
                features,
                space=options.map_space,
                seed=options.seed,
            )
    except GeometryError as error:
        return error.as_typed
    return None


def ranking_of(statistics: FeatureStatistics) -> list[int]:
    """The live features, those that fire most consistently on one and the same token first.

    A feature that fires on one token is the easiest to interpret. Those selected too rarely to tell
    come last. Ties are broken by frequency: the closer to three tokens in a thousand, the earlier.
    """
    kinds = (statistics.top, statistics.sampled)
    tokens_FT = t.cat([kind.ids_FTW[:, :, kind.at] for kind in kinds], 1)
    frequency = statistics.frequency_F.tolist()
    is_rare = (statistics.count_F < LEAST_SELECTIONS).tolist()

    def key(feature: int) -> tuple[bool, float, float, int]:
        there = [token for token in tokens_FT[feature].tolist() if token >= 0]
        agreement = Counter(there).most_common(1)[0][1] / len(there)
        distance = abs(math.log(frequency[feature] / 0.003))
        return is_rare[feature], -agreement, distance, feature

    return sorted(statistics.alive_F.nonzero().flatten().tolist(), key=key)
