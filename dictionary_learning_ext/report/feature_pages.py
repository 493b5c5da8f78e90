"""The features of one SAE as plain lists: the page's table, the page of each feature, and example cards.

Most tokens appear in many contexts. So each is stored once, in a list that all SAEs of a report
share (`Vocabulary`), and referred to by its number there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch as t

from ..features.collector import LEAST_SELECTIONS
from ..features.contexts import (
    FeatureContexts,
    contexts_of,
    plain,
    token_text,
    top_tokens,
    visible,
)
from ..features.directions import Ranked, alignment
from ..features.explanations import Explanation
from ..features.return_score import FIFTH_NAMES, FIFTHS
from .analysis import Analysis, Comparison

_CARDS = 9
_CARDS_LOST = 2
"""Of these, features that don't come back, or are the least likely to."""
_LOST = 0.5
"""A feature with a lower match is an example of these."""
_CHIPS = 3
_KINDS = (1, 3)
"""The most tokens of a feature that fires on one, and of one that fires on a few."""


class Vocabulary:
    """The tokens that a report shows, as visible text, numbered in order of first use."""

    def __init__(self, tokenizer: Any):
        self.texts: list[str] = []
        self._tokenizer = tokenizer
        self._numbers: dict[int, int] = {}
        self._parts: set[int] = set()

    def number(self, token: int) -> int:
        """The place in `texts` of a token id."""
        if token not in self._numbers:
            self._numbers[token] = len(self.texts)
            self.texts.append(visible(token_text(self._tokenizer, token)))
            if "\ufffd" in self._tokenizer.decode([token]):  # its text is the tokenizer's spelling
                self._parts.add(token)
        return self._numbers[token]

    def text(self, token: int) -> str:
        """A token id as visible text."""
        return self.texts[self.number(token)]

    def is_fragment(self, token: int) -> bool:
        """Whether a token continues a word, or is part of a character."""
        first = self.text(token)[:1]
        return token in self._parts or (first.isascii() and first.isalnum())


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Rounded to significant digits; None if not finite, which JSON can't represent."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


Show = Literal["number", "percent", "whole", "share of seeds", "text", "tokens"]
"""How a column's values are written; tokens are numbers in the vocabulary."""


@dataclass(frozen=True)
class Column:
    """What a report says of every feature, wherever it says it: in the table, which can be sorted and searched by
    it, among the facts of a feature's page, and in the CSV file."""

    key: str
    values: Callable[[Analysis, Vocabulary], list[Any] | None]
    """Of each feature (F); None for an SAE that has none."""
    title: str = ""
    """The head in the table, which leaves it out if there is none."""
    show: Show = "number"
    fact: str = ""
    """What the feature's page calls it. Left out there if there is none."""
    is_extra: bool = False
    """Whether narrow screens leave it out of the table."""


def _rounded_all(values: t.Tensor | np.ndarray, digits: int = 4) -> list[float | None]:
    return [rounded(value, digits) for value in values.tolist()]


def _known_in_order(analysis: Analysis, known: Mapping[int, Any]) -> list[Any]:
    """Something of each feature; None of those of which it is not known."""
    return [known.get(feature) for feature in range(len(analysis.statistics.count_F))]


def _fires_on(analysis: Analysis, vocabulary: Vocabulary) -> list[list[int]]:
    top = analysis.statistics.top
    features = range(len(top.value_FT))
    return [[vocabulary.number(i) for i in top_tokens(top, feature)] for feature in features]


def _promoted(analysis: Analysis, vocabulary: Vocabulary) -> list[list[int]]:
    features = range(len(analysis.statistics.count_F))
    return [
        [vocabulary.number(i) for i in _promotes(analysis, feature, vocabulary)]
        for feature in features
    ]


def _explained(analysis: Analysis, of: Callable[[Explanation], Any]) -> list[Any] | None:
    """Something of each feature's explanation."""
    found = analysis.explanations
    return _known_in_order(analysis, {n: of(one) for n, one in found.items()}) if found else None


COLUMNS = (
    Column("fires_on", _fires_on, "fires on", "tokens"),
    Column(
        "explanation", lambda one, _: _explained(one, lambda each: each.text), "explanation", "text"
    ),
    Column(
        "explanation_score",
        lambda one, _: _explained(one, lambda each: each.score and rounded(each.score.value)),
        "explained",
    ),
    Column("promotes", _promoted, "promotes", "tokens", is_extra=True),
    Column(
        "rank",
        lambda one, _: _known_in_order(one, {feature: n for n, feature in enumerate(one.ranking)}),
    ),
    Column(
        "frequency",
        lambda one, _: _rounded_all(one.statistics.frequency_F),
        "selected",
        "percent",
        "of tokens select it",
    ),
    Column(
        "max",
        lambda one, _: _rounded_all(one.statistics.max_F),
        "max",
        fact="largest activation",
        is_extra=True,
    ),
    Column(
        "mean",
        lambda one, _: _rounded_all(one.statistics.mean_F),
        "mean",
        fact="mean when selected",
        is_extra=True,
    ),
    Column(
        "alignment",
        lambda one, _: _rounded_all(alignment(one.dictionary), 3),
        "enc·dec",
        fact="encoder·decoder cosine",
        is_extra=True,
    ),
    Column(
        "neighbour",
        lambda one, _: _rounded_all(one.neighbours.values_Fn[:, 0], 3),
        "nearest",
        is_extra=True,
    ),
    Column(
        "score",
        lambda one, _: (
            one.return_scores and [round(s, 2) for s in one.return_scores.score_F.tolist()]
        ),
        "score",
        "whole",
        "return score, of 100",
    ),
    Column("fifth", lambda one, _: one.return_scores and one.return_scores.fifth_F.tolist()),
    Column(
        "returns",
        lambda one, _: one.scores and one.scores.returns_F.tolist(),
        "returns",
        "share of seeds",
        "seeds it comes back in",
    ),
    Column(
        "match",
        lambda one, _: one.scores and _rounded_all(one.scores.match_F),
        "match",
        fact="mean match there",
        is_extra=True,
    ),
)
"""In the order of the table and of the facts. The CSV file has those of tokens last."""


def columns(analysis: Analysis, vocabulary: Vocabulary) -> dict[str, list[Any]]:
    """The columns that an SAE has: for each, a list with one entry per feature (F)."""
    found = {each.key: each.values(analysis, vocabulary) for each in COLUMNS}
    return {key: values for key, values in found.items() if values is not None}


def page(analysis: Analysis, feature: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a feature's page shows in addition to its row of the table."""
    statistics = analysis.statistics
    counts = statistics.histogram_FH[feature].numpy()
    content: dict[str, Any] = {
        "histogram": np.trim_zeros(counts, "b").tolist(),
        "width": float(statistics.bin_width_F[feature]),
        "negative": int(statistics.negative_F[feature]),
        "top": _contexts(statistics.top, feature, vocabulary),
        "sampled": _contexts(statistics.sampled, feature, vocabulary),
        "near": [
            [other, rounded(cosine, 3)] for other, cosine in _pairs(analysis.neighbours, feature)
        ],
    }
    for name in ("promoted", "suppressed"):
        ranked = getattr(analysis, name)
        if ranked is not None:
            content[name] = [
                [vocabulary.number(token), rounded(logit, 3)]
                for token, logit in _pairs(ranked, feature)
            ]
    if feature in analysis.explanations:
        content["explained"] = analysis.explanations[feature].words
    return content


def _contexts(contexts: FeatureContexts, feature: int, vocabulary: Vocabulary) -> list[list[Any]]:
    """For each context: [activation, number, place of the token, tokens, [place, activation, …]]."""
    found = []
    for each in contexts_of(contexts, feature):
        active = [
            part
            for place, activation in enumerate(each.activations)
            if activation != 0
            for part in (place, rounded(activation, 3))
        ]
        tokens = [vocabulary.number(token) for token in each.ids]
        found.append([rounded(each.activation), each.context, each.at, tokens, active])
    return found


def _pairs(ranked: Ranked, feature: int) -> list[tuple[int, float]]:
    indices, values = ranked.indices_Fn[feature], ranked.values_Fn[feature]
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def _promotes(analysis: Analysis, feature: int, vocabulary: Vocabulary) -> list[int]:
    """The tokens that a feature promotes most; none where most of them are parts of words or characters,
    which say nothing to a reader."""
    if analysis.promoted is None:
        return []
    tokens = analysis.promoted.indices_Fn[feature, :4].tolist()
    whole = [token for token in tokens if not vocabulary.is_fragment(token)]
    return tokens if 2 * len(whole) > len(tokens) else []


# --- example features: some that come back and some that don't, or those that most likely will and won't


def cards(comparison: Comparison, vocabulary: Vocabulary) -> list[tuple[str, list[dict[str, Any]]]]:
    """Example features, as `_card` makes them, in groups with a heading, no two with the same most frequent token.

    They are of the first SAE whose seeds are known: some that come back in all of them, and some that come
    back in none. Without seeds, of the SAE with the highest FVE: some of the top fifth of the return score,
    and some of the lowest.
    """
    known = [one for one in comparison.analyses if one.scores is not None]
    analysis = known[0] if known else max(comparison.analyses, key=_fve)
    statistics = analysis.statistics
    fires_on: dict[int, list[str]] = {}
    for feature in analysis.ranking[: comparison.options.pages]:
        tokens = top_tokens(statistics.sampled, feature, None)
        if int(statistics.count_F[feature]) >= LEAST_SELECTIONS and _is_word(tokens[0], vocabulary):
            fires_on[feature] = [vocabulary.text(token) for token in tokens]
    (back, share_back), (lost, share_lost) = _groups(analysis, list(fires_on))
    n_lost = min(_CARDS_LOST, len(share_lost))
    groups = [(back, share_back, _CARDS - n_lost), (lost, share_lost, n_lost)]
    taken: set[str] = set()
    found = []
    for heading, features, n in groups:
        # Explained ones come first, then those that promote words: they say what a feature of a later layer is for.
        ordered = sorted(
            features,
            key=lambda one: (
                one not in analysis.explanations,
                not _promotes(analysis, one, vocabulary),
            ),
        )
        chosen = _mixed({feature: fires_on[feature] for feature in ordered}, n, taken)
        shown = [_card(analysis, feature, fires_on[feature], vocabulary) for feature in chosen]
        found += [(heading, shown)] if shown else []
    return found


def _groups(analysis: Analysis, features: list[int]) -> list[tuple[str, list[int]]]:
    """Of these features, those that come back and those that don't, as far as is known, with a heading."""
    if (scores := analysis.scores) is not None:
        back = [one for one in features if scores.returns_F[one] == scores.of]
        lost = [one for one in features if scores.match_F[one] < _LOST]
        return [("These come back", back), ("These don't", lost)]
    if (scores := analysis.return_scores) is not None:
        top, lowest = (
            [one for one in features if scores.fifth_F[one] == fifth]
            for fifth in (FIFTHS[0], FIFTHS[-1])
        )
        return [
            (f"Highest return scores ({FIFTH_NAMES[FIFTHS[0]]})", top),
            (f"Lowest return scores ({FIFTH_NAMES[FIFTHS[-1]]})", lowest),
        ]
    return [("", features), ("", [])]


def _mixed(fires_on: dict[int, list[str]], n: int, taken: set[str]) -> list[int]:
    """In turn from the features that fire on many tokens, on a few and on one, the most readable first.

    Arguments:
        taken: first tokens that are shown already. Those of the chosen ones are added.
    """
    kinds: list[list[int]] = [[] for _ in range(len(_KINDS) + 1)]
    for feature, texts in fires_on.items():
        kinds[-1 - sum(len(_different(texts)) > most for most in _KINDS)].append(feature)
    chosen: list[int] = []
    while len(chosen) < n and any(kinds):
        for kind in kinds:
            while kind and plain(fires_on[kind[0]][0]) in taken:
                kind.pop(0)
            if kind and len(chosen) < n:
                taken.add(plain(fires_on[kind[0]][0]))
                chosen.append(kind.pop(0))
    return chosen


def _card(
    analysis: Analysis, feature: int, texts: list[str], vocabulary: Vocabulary
) -> dict[str, Any]:
    """What a card shows of a feature that fires on the tokens of these texts."""
    different = _different(texts)
    promotes = _promotes(analysis, feature, vocabulary)
    return {
        "sae": analysis.label,
        "feature": feature,
        "fires_on": different[:_CHIPS],
        "n_tokens": len(different),
        "promotes": [vocabulary.text(one) for one in promotes if not vocabulary.is_fragment(one)],
        "contexts": _excerpts(analysis.statistics.sampled, feature, vocabulary),
        "frequency": float(analysis.statistics.frequency_F[feature]),
        "returns": analysis.scores and analysis.scores.words(feature),
        "score": analysis.return_scores and int(analysis.return_scores.score_F[feature]),
        "explanation": analysis.explanations.get(feature),
    }


def _is_word(token: int, vocabulary: Vocabulary) -> bool:
    """Whether a reader can make something of a token: it is no special token and no fragment of a word."""
    text = vocabulary.text(token)
    is_special = text.startswith("<")
    return sum(map(str.isalpha, text)) >= 3 and not is_special and not vocabulary.is_fragment(token)


def _fve(analysis: Analysis) -> float:
    """The FVE; below any other where it was not measured."""
    fve = analysis.metrics.get("fve")
    return -math.inf if fve is None else fve


def _different(tokens: list[str]) -> list[str]:
    """The first of those that differ only in case and spaces, without its spaces."""
    first: dict[str, str] = {}
    for text in tokens:
        first.setdefault(plain(text), text.strip() or text)
    return list(first.values())


def _excerpts(
    contexts: FeatureContexts, feature: int, vocabulary: Vocabulary
) -> list[tuple[str, str, str]]:
    """Three contexts: the text before, at and after the token that the feature fires on."""
    excerpts = []
    for ids_W in contexts.ids_FTW[feature, :3].tolist():
        texts = [vocabulary.text(i) if i >= 0 else "" for i in ids_W]
        at = contexts.at
        excerpts.append(("".join(texts[at - 5 : at]), texts[at], "".join(texts[at + 1 : at + 4])))
    return excerpts
