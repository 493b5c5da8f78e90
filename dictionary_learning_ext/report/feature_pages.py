"""The features of one SAE as plain lists, for the report's table and feature pages.

Most tokens appear in many contexts. So each is stored once, in a list that all SAEs of a report
share (`Vocabulary`), and referred to by its number there.
"""

import math
import unicodedata
from collections import Counter
from typing import Any

import torch as t

from ..features.directions import Ranked
from ..features.kept_contexts import FeatureContexts
from ..features.token_text import token_text
from .analysis import Analysis

LONGEST_TOKEN = 48
"""The most characters of a token that are shown."""

_SHOWN_AS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


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


def visible(text: str) -> str:
    """Text with control characters and directional marks spelled out, cut if too long."""
    shown = []
    for character in text[: LONGEST_TOKEN + 1]:
        if character in _SHOWN_AS:
            shown.append(_SHOWN_AS[character])
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"‹U+{ord(character):04X}›")
        else:
            shown.append(character)
    if len(text) > LONGEST_TOKEN:
        return "".join(shown[:LONGEST_TOKEN]) + f"… ({len(text):,} characters)"
    return "".join(shown)


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
        "promotes": _top_columns(analysis.promoted, vocabulary, n),
    }
    if analysis.scores is not None:
        found["returns"] = analysis.scores.returns_F.tolist()
        found["match"] = [rounded(value) for value in analysis.scores.match_F.tolist()]
    return found


def top_tokens(contexts: FeatureContexts, feature: int, n: int | None = 4) -> list[int]:
    """The ids of the tokens that a feature fires on in its contexts, the most frequent first: n, or all."""
    tokens = [token for token in contexts.ids_FTW[feature, :, contexts.at].tolist() if token >= 0]
    return [token for token, _ in Counter(tokens).most_common(n)]


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
    of_feature = (  # lists: to index a tensor for each token is slow
        part[feature].tolist()
        for part in (
            contexts.value_FT,
            contexts.ids_FTW,
            contexts.activations_FTW,
            contexts.context_FT,
        )
    )
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


def _top_columns(ranked: Ranked | None, vocabulary: Vocabulary, n: int) -> list[list[int]]:
    if ranked is None:
        return [[] for _ in range(n)]
    top_F4: t.Tensor = ranked.indices_Fn[:, :4]
    return [[vocabulary.number(token) for token in row] for row in top_F4.tolist()]
