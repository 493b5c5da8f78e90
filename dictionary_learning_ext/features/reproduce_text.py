"""What commands and pages say of features that come back: tables, a sentence, JSON and CSV."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.tables import text_table
from .agreement import CODE_MEASURES, SHOWN
from .columns import FeaturesOfSAE, write_numbers
from .reproduce import ReturningFeatures, SettingsCompared
from .reproducibility import AS_DIRECTION, DIRECTION_MEASURES, IN_FUNCTION, Measure

HEADER = tuple(measure.label for measure in SHOWN)
"""The columns of `row`."""


def row(result: ReturningFeatures, name: str | None = None, missing: str = "-") -> list[str]:
    """An SAE's cells in a table with these HEADER columns. Default: the mean over SAEs."""
    return cells(result.numbers(name), missing)


def cells(numbers: Mapping[str, float | None], missing: str = "-") -> list[str]:
    """Numbers by the keys of SHOWN, as cells under HEADER."""
    return [measure.text(numbers[measure.key], missing) for measure in SHOWN]


def short_table(results: Mapping[str, ReturningFeatures]) -> str:
    """A table with a row for each setting, by its name, and a sentence about it."""
    rows = [[name, *row(result)] for name, result in results.items()]
    table = text_table(["features that come back", *HEADER], rows)
    return f"{table}\n\n{sentence_of([*results.values()], [*results])}"


def reproducibility_table(
    results: Mapping[str, ReturningFeatures], everything: bool = False
) -> str:
    """Which features come back in each setting: tables that fit the terminal, and a sentence.

    Arguments:
        results: of each setting, by its title.
        everything: show every measure, and each SAE.
    """
    parts = []
    pairs = [pair for result in results.values() for pair in result.measured.pairs.values()]
    if any(len(pair.match_F) != pair.n_others for pair in pairs):
        parts.append(
            "These SAEs differ in size. Features of the larger one without a match in the\n"
            "smaller one don't come back; PW-MCC and its null leave them out."
        )
    if not everything:
        return "\n\n".join([*parts, short_table(results), "--all shows every measure."])
    for title, result in results.items():
        parts += [title, *_every_measure(result)] if len(results) > 1 else _every_measure(result)
    parts.append(
        "within: mean cosine to the nearest feature of the same SAE. docs/metrics.md\n"
        "defines the other measures."
    )
    return "\n\n".join([*parts, sentence_of([*results.values()], [*results])])


def _every_measure(result: ReturningFeatures) -> list[str]:
    """The tables of a setting."""
    width, names = shutil.get_terminal_size().columns, result.measured.names
    n_pairs = len(result.measured.pairs)
    mean = f"mean of {n_pairs} pairs" if n_pairs > 1 else "one pair"
    within = [[name, f"{value:.4f}"] for name, value in result.measured.within.items()]
    tables = [
        text_table(["", *HEADER], [[name, *row(result, name)] for name in names], width),
        text_table(["directions", mean], _cells(DIRECTION_MEASURES, result.measured.means())),
        text_table(["", "within"], within),
    ]
    if result.codes is not None:
        head = [f"on {result.codes.tokens:,} held-out tokens", mean]
        tables.append(text_table(head, _cells(CODE_MEASURES, result.codes.means())))
    return tables


def _cells(measures: Sequence[Measure], values: Mapping[str, float | None]) -> list[list[str]]:
    return [[measure.label, measure.text(values[measure.key])] for measure in measures]


def sentence_of(results: Sequence[ReturningFeatures], names: Sequence[str] | None = None) -> str:
    """A sentence about what comes back between the seeds of each setting, in lines of 80 characters.

    Arguments:
        names: of the settings. Default: their architectures, or the short names of their first folders.
    """
    if names is None:
        names = [result.title for result in results]
        if len(set(names)) < len(names):
            names = [result.measured.names[0] for result in results]
    saes = [
        (name, result.as_direction(), result.in_function(), result.mean_fve)
        for name, result in zip(names, results, strict=True)
    ]
    sentence = answer(saes, max(result.measured.random_share for result in results))
    return textwrap.fill(sentence, 80, break_long_words=False, break_on_hyphens=False)


def answer(saes: Sequence[tuple[str, float, float | None, float | None]], random: float) -> str:
    """A sentence about how many features come back.

    Arguments:
        saes: each one's name, the shares of its features that come back as a direction and in what they do, and its FVE;
            None for what isn't known.
        random: the share of random directions that come back.
    """
    (name, direction, function, _), *others = saes
    sentence = f"{direction:.0%} of {name} features come back {AS_DIRECTION}"
    sentence += "" if function is None else f" and {function:.0%} {IN_FUNCTION}"
    for name, direction, function, _ in others:
        also = "" if function is None else f" and {function:.0%}"
        sentence += f", of {name} features {direction:.0%}{also}"
    fve = [value for *_, value in saes if value is not None]
    if len(fve) == len(saes):
        sentence = f"At FVE {' and '.join(f'{value:.3f}' for value in fve)}, {sentence}"
    return f"{sentence}. Of random directions, {random:.0%} would."


def json_content(results: SettingsCompared) -> dict[str, Any]:
    """The content of `vsae reproduce --json`: warnings and every measure, without those of single features."""
    settings = {title: _content_of(result) for title, result in results.found.items()}
    return {"warnings": results.notes, "settings": settings}


def _content_of(result: ReturningFeatures) -> dict[str, Any]:
    """The part of a setting."""
    measured = result.measured
    return {
        "warnings": result.notes,
        "saes": {
            name: {
                "fve": result.fve[name],
                "within": measured.within[name],
                "as_direction": measured.as_direction(name),
                "in_function_fve": result.returning_fve(name),
                "in_function": result.in_function(name),
                "near_dead": result.near_dead(name),
            }
            for name in measured.names
        },
        "pairs": [{"saes": list(names), **pair} for names, pair in result.pairs.items()],
        "mean": result.means(),
        "tokens": 0 if result.codes is None else result.codes.tokens,
        "random": measured.random_share,
    }


def write_features(results: Iterable[ReturningFeatures], path: str | Path) -> None:
    """Write a CSV file with a row for each feature of each SAE, see columns.py. Raises CheckpointError if it can't be
    written."""
    saes = []
    for result in results:
        codes = result.codes
        for name in result.measured.names:
            scores = result.measured.scores(name)
            numbers = FeaturesOfSAE(
                codes and codes.codes[name], scores, codes and codes.correlation_SF(name)
            )
            saes.append((name, numbers))
    write_numbers(Path(path), saes, "several")
