"""The features of one SAE as plain lists: the page's table, the page of each feature, and example cards.

Most tokens appear in many contexts. So each is stored once, in a list that all SAEs of a report
share (`Vocabulary`), and referred to by its number there.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..features.collector import LEAST_SELECTIONS
from ..features.contexts import FeatureContexts, plain, token_text, top_tokens, visible
from ..features.directions import Ranked
from .analysis import Analysis, Comparison

_CARDS = 9
_CHIPS = 3
_KINDS = (1, 3)
"""The most tokens of a feature that fires on one, and of one that fires on a few."""


class Vocabulary:
    """The tokens that a report shows, as visible text, numbered in order of first use."""

    def __init__(self, tokenizer: Any):
        self.texts: list[str] = []
        self._tokenizer = tokenizer
        self._numbers: dict[int, int] = {}

    def number(self, token: int) -> int:
        """The place in `texts` of a token id."""
        if token not in self._numbers:
            self._numbers[token] = len(self.texts)
            self.texts.append(visible(token_text(self._tokenizer, token)))
        return self._numbers[token]

    def text(self, token: int) -> str:
        """A token id as visible text."""
        return self.texts[self.number(token)]


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Rounded to significant digits; None if not finite, which JSON can't represent."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def columns(analysis: Analysis, vocabulary: Vocabulary) -> dict[str, list[Any]]:
    """The table's columns: for each, a list with one entry per feature (F)."""
    statistics = analysis.statistics
    n = len(statistics.count_F)
    cluster: list[int | None] = [None] * n
    map_cluster: list[int | None] = [None] * n
    if analysis.geometry is not None:
        for row, feature in enumerate(analysis.geometry.features.tolist()):
            cluster[feature] = int(analysis.geometry.cluster[row])
            map_cluster[feature] = int(analysis.geometry.map_cluster[row])
    rank: list[int | None] = [None] * n
    for place, feature in enumerate(analysis.ranking):
        rank[feature] = place
    found: dict[str, list[Any]] = {
        "rank": rank,
        "frequency": [rounded(value) for value in statistics.frequency_F.tolist()],
        "max": [rounded(value) for value in statistics.max_F.tolist()],
        "mean": [rounded(value) for value in statistics.mean_F.tolist()],
        "alignment": [rounded(value, 3) for value in analysis.alignment_F.tolist()],
        "neighbour": [rounded(value, 3) for value in analysis.neighbours.values_Fn[:, 0].tolist()]
        if analysis.neighbours.values_Fn.shape[1]
        else [None] * n,
        "cluster": cluster,
        "map_cluster": map_cluster,
        "fires_on": [
            [vocabulary.number(token) for token in top_tokens(statistics.top, feature)]
            for feature in range(n)
        ],
        "promotes": [[] for _ in range(n)]
        if analysis.promoted is None
        else [
            [vocabulary.number(token) for token in row]
            for row in analysis.promoted.indices_Fn[:, :4].tolist()
        ],
    }
    if analysis.scores is not None:
        found["returns"] = analysis.scores.returns_F.tolist()
        found["match"] = [rounded(value) for value in analysis.scores.match_F.tolist()]
    return found


def page(analysis: Analysis, feature: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a feature's page shows in addition to its row of the table."""
    statistics = analysis.statistics
    counts = statistics.histogram_FH[feature].tolist()
    while counts and counts[-1] == 0:
        counts.pop()
    content: dict[str, Any] = {
        "histogram": counts,
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
    if feature in analysis.syntheses:
        found = analysis.syntheses[feature]
        content["synthesis"] = {
            "tokens": [vocabulary.number(token) for token in found.input_ids],
            "activation": rounded(found.activation),
            "random": rounded(found.random),
        }
    return content


def _contexts(contexts: FeatureContexts, feature: int, vocabulary: Vocabulary) -> list[list[Any]]:
    """For each context: [activation, number, place of the token, tokens, [place, activation, …]]."""
    found = []
    parts = (contexts.value_FT, contexts.ids_FTW, contexts.activations_FTW, contexts.context_FT)
    of_feature = (part[feature].tolist() for part in parts)  # indexing tensors per token is slow
    for value, ids, activations, number in zip(*of_feature, strict=True):
        if math.isnan(value):
            continue
        inside = [place for place, i in enumerate(ids) if i >= 0]
        start = inside[0]
        active = [
            part
            for place in inside
            if activations[place] != 0
            for part in (place - start, rounded(activations[place], 3))
        ]
        tokens = [vocabulary.number(ids[place]) for place in inside]
        found.append([rounded(value), number, contexts.at - start, tokens, active])
    return found


def _pairs(ranked: Ranked, feature: int) -> list[tuple[int, float]]:
    indices, values = ranked.indices_Fn[feature], ranked.values_Fn[feature]
    return list(zip(indices.tolist(), values.tolist(), strict=True))


# --- example features: some that fire on one token, some on a few, some on many


@dataclass(frozen=True)
class Card:
    """One example feature."""

    sae: str
    feature: int
    fires_on: list[str]
    """The most frequent tokens of its random contexts, which the card shows some of."""
    n_tokens: int
    """How many different ones there are, whatever their case and spaces."""
    contexts: list[tuple[str, str, str]]
    """The text before, at and after a token that the feature fires on."""
    frequency: float
    returns: str | None
    """Whether it comes back in other seeds, in words; None if these were not given."""


def cards(comparison: Comparison, vocabulary: Vocabulary) -> list[Card]:
    """Features of the SAE with the highest FVE, no two with the same most frequent token.

    They are taken in turn from those that fire on one token, on a few and on many, the most readable
    first. Features that are selected too rarely to tell are left out.
    """
    analysis = max(comparison.analyses, key=_fve)
    sampled = analysis.statistics.sampled
    kinds: list[list[int]] = [[] for _ in range(len(_KINDS) + 1)]
    fires_on: dict[int, list[str]] = {}
    for feature in analysis.ranking[: comparison.options.pages]:
        texts = [vocabulary.text(token) for token in top_tokens(sampled, feature, None)]
        if (
            int(analysis.statistics.count_F[feature]) >= LEAST_SELECTIONS
            and sum(map(str.isalpha, texts[0])) >= 3
        ):
            fires_on[feature] = texts
            kinds[_kind(texts)].append(feature)
    shown: list[int] = []
    tokens_shown = set()
    while len(shown) < _CARDS and any(kinds):
        for kind in kinds:
            new = (feature for feature in kind if plain(fires_on[feature][0]) not in tokens_shown)
            feature = next(new, None)
            if feature is None:
                kind.clear()
                continue
            kind.remove(feature)
            tokens_shown.add(plain(fires_on[feature][0]))
            shown.append(feature)
    shown = sorted(shown[:_CARDS], key=lambda feature: _kind(fires_on[feature]))
    return [
        Card(
            sae=analysis.label,
            feature=feature,
            fires_on=_different(fires_on[feature])[:_CHIPS],
            n_tokens=len(_different(fires_on[feature])),
            contexts=_excerpts(sampled, feature, vocabulary),
            frequency=float(analysis.statistics.frequency_F[feature]),
            returns=analysis.scores.words(feature) if analysis.scores is not None else None,
        )
        for feature in shown
    ]


def _fve(analysis: Analysis) -> float:
    """The FVE; below any other where it was not measured."""
    fve = analysis.metrics.get("fve")
    return -math.inf if fve is None else fve


def _kind(tokens: list[str]) -> int:
    """0 for a feature that fires on one token, 1 for one that fires on a few, 2 on many."""
    return sum(len(_different(tokens)) > most for most in _KINDS)


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
