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

from ..codes.contexts import FeatureContexts, plain, token_text, visible
from ..codes.table import LEAST_SELECTIONS
from ..features.directions import Ranked, alignment
from ..features.explanations import Explanation
from ..features.reproducibility import RETURNING
from .analysis import Analysis, Comparison

_CARDS = 9
_PAIRS = 4
"""How many examples come back, and how many don't."""
_LOST = 0.5
"""A feature whose activations have a lower correlation with those of its match doesn't come back."""
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


Show = Literal["number", "cosine", "percent", "whole", "share of seeds", "text", "tokens"]
"""How a column's values are written; tokens are numbers in the vocabulary."""


@dataclass(frozen=True)
class Column:
    """What a report says of every feature, wherever it says it: in the table, which can be sorted and searched by
    it, among the facts of a feature's page, and in the CSV file."""

    key: str
    values: Callable[[Analysis, Vocabulary], list[Any] | None]
    """Gives the value of each feature, (F,); None for an SAE that has none."""
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
    return [known.get(feature) for feature in range(analysis.features.codes.n_features)]


def _fires_on(analysis: Analysis, vocabulary: Vocabulary) -> list[list[int]]:
    top = analysis.features.top
    features = range(analysis.features.codes.n_features)
    return [[vocabulary.number(i) for i in top.tokens(feature)] for feature in features]


def _promoted(analysis: Analysis, vocabulary: Vocabulary) -> list[list[int]]:
    features = range(analysis.features.codes.n_features)
    return [
        [vocabulary.number(i) for i in _promotes(analysis, feature, vocabulary)]
        for feature in features
    ]


def _explained(analysis: Analysis, of: Callable[[Explanation], Any]) -> list[Any] | None:
    """Something of each feature's explanation."""
    found = analysis.explanations
    return _known_in_order(analysis, {n: of(one) for n, one in found.items()}) if found else None


COLUMNS = (
    Column("count", lambda one, _: one.features.count_F.tolist()),
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
        lambda one, _: _known_in_order(
            one, {feature: n for n, feature in enumerate(one.features.ranking)}
        ),
    ),
    Column(
        "frequency",
        lambda one, _: _rounded_all(one.features.frequency_F),
        "selected",
        "percent",
        "of tokens select it",
    ),
    Column(
        "max",
        lambda one, _: _rounded_all(one.features.max_F),
        "max",
        fact="largest activation",
        is_extra=True,
    ),
    Column(
        "mean",
        lambda one, _: _rounded_all(one.features.mean_F),
        "mean",
        fact="mean when selected",
        is_extra=True,
    ),
    Column(
        "alignment",
        lambda one, _: _rounded_all(alignment(one.dictionary), 3),
        "enc·dec",
        "cosine",
        "encoder·decoder cosine",
        is_extra=True,
    ),
    Column(
        "neighbour",
        lambda one, _: _rounded_all(one.neighbours.values_Fn[:, 0], 3),
        "nearest",
        "cosine",
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
        "as_direction_in",
        lambda one, _: one.scores and one.scores.returns_F.tolist(),
        "as a direction",
        "share of seeds",
        "seeds it comes back in as a direction",
    ),
    Column(
        "direction_match",
        lambda one, _: one.scores and _rounded_all(one.scores.match_F),
        "cosine",
        "cosine",
        "cosine with its match there",
        is_extra=True,
    ),
    Column(
        "correlation",
        lambda one, _: one.come_back and _rounded_all(_alike(one)),
        "in what it does",
        "cosine",
        "correlation with its match in what they do",
    ),
)
"""In the order of the table and of the facts. The CSV file has those of tokens last."""


def _alike(analysis: Analysis) -> np.ndarray:
    """How much each feature does what its match in the other seeds does, the mean over them."""
    found = analysis.come_back
    assert found is not None
    assert found.codes is not None
    return found.codes.of(found.measured.names[0])


def columns(analysis: Analysis, vocabulary: Vocabulary) -> dict[str, list[Any]]:
    """The columns that an SAE has: for each, a list with one entry per feature (F)."""
    found = {each.key: each.values(analysis, vocabulary) for each in COLUMNS}
    return {key: values for key, values in found.items() if values is not None}


def page(analysis: Analysis, feature: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a feature's page shows in addition to its row of the table."""
    features = analysis.features
    content: dict[str, Any] = {
        "histogram": features.histogram(feature).tolist(),
        "width": float(features.bin_width_F[feature]),
        "negative": int(features.negative_F[feature]),
        "top": _contexts(features.top, feature, vocabulary),
        "sampled": _contexts(features.sampled, feature, vocabulary),
        "near": [
            [other, rounded(cosine, 3)] for other, cosine in _pairs(analysis.neighbours, feature)
        ],
    }
    for name, ranked in zip(("promoted", "suppressed"), analysis.logits or (), strict=False):
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
    for each in contexts.of(feature):
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
    if analysis.logits is None:
        return []
    tokens = analysis.logits[0].indices_Fn[feature, :4].tolist()
    whole = [token for token in tokens if not vocabulary.is_fragment(token)]
    return tokens if 2 * len(whole) > len(tokens) else []


# --- example features: some that come back in what they do and others that don't, of the same firing rates


def cards(comparison: Comparison, vocabulary: Vocabulary) -> list[tuple[str, list[dict[str, Any]]]]:
    """Example features, as `_card` makes them, in groups with a heading, no two with the same most frequent token.

    They are of the first SAE whose seeds are known, in two groups of one size: features that come back in what they do,
    and others that fire about as often and don't. Without seeds, they are of the SAE with the highest FVE, in one group.
    """
    known = [one for one in comparison.analyses if one.come_back is not None]
    analysis = known[0] if known else max(comparison.analyses, key=_fve)
    features = analysis.features
    fires_on: dict[int, list[str]] = {}
    for feature in features.ranking[: comparison.options.pages]:
        tokens = features.sampled.tokens(feature, None)
        if int(features.count_F[feature]) >= LEAST_SELECTIONS and _is_word(tokens[0], vocabulary):
            fires_on[feature] = [vocabulary.text(token) for token in tokens]
    # Explained ones come first, then those that promote words: they say what a feature of a later layer is for.
    ordered = sorted(
        fires_on,
        key=lambda one: (
            one not in analysis.explanations,
            not _promotes(analysis, one, vocabulary),
        ),
    )
    taken: set[str] = set()
    if not known:
        chosen = _mixed({one: fires_on[one] for one in ordered}, _CARDS, taken)
        groups = [("", chosen)]
    else:
        alike_F = _alike(analysis)
        lost = [one for one in ordered if alike_F[one] < _LOST]
        back = [one for one in ordered if alike_F[one] >= RETURNING[0]]
        pairs = _of_one_rate(lost, back, features.count_F.tolist(), fires_on, taken)
        groups = [
            ("These come back in what they do", [one for _, one in pairs]),
            ("These fire as often, and don't", [one for one, _ in pairs]),
        ]
    found = []
    for heading, chosen in groups:
        shown = [_card(analysis, feature, fires_on[feature], vocabulary) for feature in chosen]
        found += [(heading, shown)] if shown else []
    return found


def _of_one_rate(
    lost: list[int],
    back: list[int],
    count: list[int],
    fires_on: dict[int, list[str]],
    taken: set[str],
) -> list[tuple[int, int]]:
    """Pairs of a feature that doesn't come back and one that does, the second at most twice as frequent as the first or the
    other way round, and of tokens that no other has; the first in `lost` first.

    Arguments:
        taken: first tokens that are shown already. Those of the chosen ones are added.
    """
    pairs, free = [], list(back)
    for one in lost:
        alike = [
            other
            for other in free
            if max(count[one], count[other]) <= 2 * min(count[one], count[other])
        ]
        alike.sort(key=lambda other: abs(math.log(count[other] / count[one])))
        own = plain(fires_on[one][0])
        found = next(
            (each for each in alike if plain(fires_on[each][0]) not in {*taken, own}), None
        )
        if own in taken or found is None:
            continue
        pairs.append((one, found))
        free.remove(found)
        taken |= {own, plain(fires_on[found][0])}
        if len(pairs) == _PAIRS:
            break
    return pairs


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
        "contexts": _excerpts(analysis.features.sampled, feature, vocabulary),
        "frequency": float(analysis.features.frequency_F[feature]),
        "alike": analysis.come_back and float(_alike(analysis)[feature]),
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
    for each in contexts.of(feature)[:3]:
        texts, at = [vocabulary.text(i) for i in each.ids], each.at
        before, after = texts[max(0, at - 5) : at], texts[at + 1 : at + 4]
        excerpts.append(("".join(before), texts[at], "".join(after)))
    return excerpts
