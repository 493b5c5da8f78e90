"""What commands and pages say of features that come back: tables, a sentence, JSON and CSV."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..evaluation.metrics import Number
from ..evaluation.tables import text_table
from .agreement import (
    AS_DIRECTION,
    CODE_MEASURES,
    DIRECTION_MEASURES,
    IN_FUNCTION,
    NEAR_DEAD_KEY,
    RETURNING_COSINES,
    SHOWN,
)
from .columns import FeaturesOfSAE, write_numbers
from .reproducibility import Numbers, Reproducibility

HEADER = tuple(measure.label for measure in SHOWN)
"""The columns of `cells`."""
RANDOM_TOKENS = "random tokens"
"""The name of their row."""
_SAME_L0 = 1.05
"""The sentence names the L0 of SAEs that differ by more than this factor."""


def cells(numbers: Mapping[str, float | None], missing: str = "-") -> list[str]:
    """Numbers by the keys of SHOWN, as cells under HEADER."""
    return [measure.text(numbers[measure.key], missing) for measure in SHOWN]


def with_random_tokens(
    rows: Iterable[tuple[Reproducibility, Sequence[Sequence[str]]]], missing: str = "-"
) -> list[list[str]]:
    """The rows of each setting, and below them one of its random tokens. Settings that have the same share it."""
    groups, lines = [*rows], list[list[str]]()
    several = len(_different(result for result, _ in groups)) > 1
    for chance, alike in groupby(groups, lambda group: group[0].random_tokens):
        lines += [[*line] for _, own in alike for line in own]
        if chance is not None:
            name = f"{RANDOM_TOKENS}, L0 {chance['l0']:.0f}" if several else RANDOM_TOKENS
            lines.append([name, *cells(chance, missing)])
    return lines


def _different(results: Iterable[Reproducibility]) -> list[Numbers]:
    """What comes back of random tokens, each once."""
    known = [one for result in results if (one := result.random_tokens) is not None]
    return [one for place, one in enumerate(known) if one not in known[:place]]


def short_table(results: Mapping[str, Reproducibility]) -> str:
    """A table with a row for each setting, by its name, and a sentence about it."""
    rows = with_random_tokens(
        (result, [[name, *cells(result.numbers())]]) for name, result in results.items()
    )
    table = text_table(["", *HEADER], rows, shutil.get_terminal_size().columns)
    parts = [table, *_tokens_of(results), sentence_of(results)]
    if not any(result.tokens for result in results.values()):
        parts.append(
            "What comes back of random tokens isn't known, nor what features do: no tokens were read."
        )
    return "\n\n".join(parts)


def _tokens_of(results: Mapping[str, Reproducibility]) -> list[str]:
    """A line about the tokens on which these were measured, if there are any."""
    tokens = dict.fromkeys(f"{one.tokens:,}" for one in results.values() if one.tokens)
    return [f"On {_listed([*tokens])} held-out tokens."] if tokens else []


def reproducibility_table(results: Mapping[str, Reproducibility], everything: bool = False) -> str:
    """Which features come back in each setting: tables that fit the terminal, and a sentence.

    Arguments:
        results: of each setting, by its title.
        everything: show every measure, and each SAE.
    """
    parts = []
    if any(len({len(sae.unit_FD) for sae in one.saes.values()}) > 1 for one in results.values()):
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
    return "\n\n".join([*parts, sentence_of(results)])


def _every_measure(result: Reproducibility) -> list[str]:
    """The tables of a setting."""
    width, names = shutil.get_terminal_size().columns, result.names
    n_pairs, means = len(result.pairs), result.means()
    mean = f"mean of {n_pairs} pairs" if n_pairs > 1 else "one pair"
    within = [[name, f"{sae.within:.4f}"] for name, sae in result.saes.items()]
    rows = with_random_tokens([(result, [[name, *cells(result.numbers(name))] for name in names])])
    tables = [
        text_table(["", *HEADER], rows, width),
        text_table(["directions", mean], _cells(DIRECTION_MEASURES, means)),
        text_table(["", "within"], within),
    ]
    if result.tokens:
        head = [f"on {result.tokens:,} held-out tokens", mean]
        tables.append(text_table(head, _cells(CODE_MEASURES, means)))
    return tables


def _cells(measures: Sequence[Number], values: Mapping[str, float | None]) -> list[list[str]]:
    return [[measure.label, measure.text(values[measure.key])] for measure in measures]


def sentence_of(results: Mapping[str, Reproducibility]) -> str:
    """A sentence about what comes back between the seeds of each setting, by its title, in lines of 80 characters."""
    saes = {title: result.numbers() for title, result in results.items()}
    chance = [one for one in _different(results.values()) if one["fve"] is not None]
    random = max(result.random_share for result in results.values())
    sentence = answer(saes, chance, random)
    return textwrap.fill(sentence, 80, break_long_words=False, break_on_hyphens=False)


def answer(saes: Mapping[str, Numbers], chance: Sequence[Numbers] = (), random: float = 0.0) -> str:
    """Sentences about how much comes back. What isn't known of all is left out.

    Arguments:
        saes: each one's numbers, by its name.
        chance: the numbers of random tokens.
        random: the share of random directions that come back, which is said if there are no random tokens.
    """
    first, *others = saes
    back, sentences = [saes[name]["in_function_fve"] for name in saes], list[str]()
    if None not in back:
        explained = [
            f"{first} features that come back explain {_explained(back[0])} of the variance",
            *(f"{name}'s {_explained(fve)}" for name, fve in zip(others, back[1:], strict=True)),
        ]
        if chance:
            by_chance = [_explained(one["in_function_fve"]) for one in chance]
            explained.append(f"{RANDOM_TOKENS}' {_listed(by_chance)}")
        sentences.append(", ".join(explained))
    direction, *function = _shares(saes[first])
    said = f"{direction} of {first} features come back {AS_DIRECTION}"
    said += "".join(f" and {share} {IN_FUNCTION}" for share in function)
    said += "".join(f", of {name} features {_listed(_shares(saes[name]))}" for name in others)
    fve = [numbers["fve"] for numbers in saes.values()]
    if None not in fve:
        said = f"At FVE {_listed([f'{value:.3f}' for value in fve])}, {said}"
    sentences.append(said)
    l0 = [value for numbers in saes.values() if (value := numbers.get("l0")) is not None]
    if len(l0) == len(saes) and max(l0) > _SAME_L0 * min(l0):
        kept = _listed([f"{value:.1f}" for value in l0])
        sentences.append(
            f"Their L0 differs ({kept} features per token): only rows of one L0 can be compared"
        )
    by_chance = [
        f"{_listed(_shares(one))} would, at FVE {one['fve']:.2f}"
        + (f" and L0 {one['l0']:.0f}" if len(chance) > 1 else "")
        for one in chance
    ]
    sentences.append(
        f"Of dictionaries of random tokens' activations, {'; '.join(by_chance)}"
        if chance
        else f"Of random directions, {random:.0%} would"
    )
    return f"{'. '.join(sentences)}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _explained(fve: float | None) -> str:
    """An FVE as a share of the variance. A reconstruction may be worse than the mean: it explains nothing."""
    assert fve is not None
    return "none" if fve < 0 else f"{fve:.0%}"


def _shares(numbers: Numbers) -> list[str]:
    """The shares that come back as a direction and in what they do, of those that are known."""
    shares = (numbers["as_direction"], numbers["in_function"])
    return [f"{share:.0%}" for share in shares if share is not None]


def json_content(results: Mapping[str, Reproducibility], notes: Sequence[str]) -> dict[str, Any]:
    """The content of `vsae reproduce --json`: warnings and every measure, without those of single features.

    Arguments: what `reproduce_settings` returns.
    """
    settings = {title: _content_of(result) for title, result in results.items()}
    return {"warnings": notes, "settings": settings}


def _content_of(result: Reproducibility) -> dict[str, Any]:
    """The part of a setting."""
    return {
        "warnings": result.notes,
        "saes": {
            name: {
                "fve": numbers["fve"],
                "within": result.saes[name].within,
                "as_direction": {
                    least: result.as_direction(name, least) for least in RETURNING_COSINES
                },
                "in_function_fve": numbers["in_function_fve"],
                "in_function": numbers["in_function"],
                "near_dead": numbers[NEAR_DEAD_KEY],
            }
            for name, numbers in ((name, result.numbers(name)) for name in result.names)
        },
        "pairs": [{"saes": list(names), **pair.measures} for names, pair in result.pairs.items()],
        "mean": result.means(),
        "tokens": result.tokens,
        "random": result.random_share,
        "random_tokens": result.random_tokens,
    }


def write_features(results: Iterable[Reproducibility], path: str | Path) -> None:
    """Write a CSV file with a row for each feature of each SAE, see columns.py. Raises CheckpointError if it can't be
    written."""
    saes = [
        (name, FeaturesOfSAE(sae.codes, result.scores(name)))
        for result in results
        for name, sae in result.saes.items()
    ]
    write_numbers(Path(path), saes, "several")
