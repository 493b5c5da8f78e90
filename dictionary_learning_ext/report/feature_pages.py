"""The features of one SAE as plain lists: the page's table, the page of each feature, and example cards.

Tokens are numbers in the report's `Vocabulary`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from ..codes.contexts import FeatureContexts, plain
from ..codes.table import LEAST_SELECTIONS
from ..features.agreement import RETURNING
from ..features.columns import NUMBERS, Column, as_list
from ..features.directions import Ranked
from .analysis import Analysis, Comparison, Vocabulary

_CARDS = 9
_PAIRS = 4
"""The number of examples that come back, and of those that don't."""
_NOT_BACK = 0.5
"""An example counts as not coming back if its activations' correlation with those of its match is lower."""
_CHIPS = 3
_KINDS = (1, 3)
"""The largest number of different tokens that counts as "one token", and as "a few"."""


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Rounded to significant digits; None if not finite, which JSON can't represent."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _numbered(analysis: Analysis, tokens_of: Callable[[int], list[int]]) -> list[list[int]]:
    """The tokens of each feature, as numbers in the vocabulary."""
    number, features = analysis.vocabulary.number, range(analysis.codes.n_features)
    return [[number(token) for token in tokens_of(feature)] for feature in features]


TEXTS = (
    Column(
        "fires_on",
        "fires on",
        "the tokens that it fires on most, where it is strongest",
        lambda sae: _numbered(sae, sae.features.strongest.tokens),
        digits=None,
        show="tokens",
    ),
    Column(
        "promotes",
        "promotes",
        "the tokens whose logits its direction raises most",
        lambda sae: _numbered(sae, partial(_promotes, sae)),
        digits=None,
        show="tokens",
        is_extra=True,
    ),
)
"""The columns of texts and tokens, which only a report has."""
COLUMNS = (NUMBERS[0], *TEXTS, *(column for column in NUMBERS[1:] if "report" in column.files))
"""The columns of a report, in the order of its table and of the facts on a feature's page. The CSV file has those of
tokens last."""


def columns(analysis: Analysis) -> dict[str, list[Any]]:
    """The columns that an SAE has, as the page's data hold them: for each, a list with one entry per feature (F)."""
    found = {}
    for column in COLUMNS:
        if (values := column.values(analysis)) is not None:
            found[column.key] = as_list(values)
            if column.digits is not None:
                found[column.key] = [rounded(one, column.digits) for one in found[column.key]]
    return found


def page(analysis: Analysis, feature: int) -> dict[str, Any]:
    """What a feature's page shows in addition to its row of the table."""
    features, vocabulary = analysis.features, analysis.vocabulary
    content: dict[str, Any] = {
        "histogram": features.histogram(feature).tolist(),
        "width": float(features.bin_width_F[feature]),
        "negative": int(features.negative_F[feature]),
        "top": _contexts(features.strongest, feature, vocabulary),
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
    return content


def _contexts(contexts: FeatureContexts, feature: int, vocabulary: Vocabulary) -> list[list[Any]]:
    """For each context: [activation, index of the context, of the token, tokens, [index, activation, …]]."""
    shown = []
    for kept in contexts.of(feature):
        active = [
            part
            for place, activation in enumerate(kept.activations)
            if activation != 0
            for part in (place, rounded(activation, 3))
        ]
        tokens = [vocabulary.number(token) for token in kept.ids]
        shown.append([rounded(kept.activation), kept.context, kept.at, tokens, active])
    return shown


def _pairs(ranked: Ranked, feature: int) -> list[tuple[int, float]]:
    indices, values = ranked.indices_Fn[feature], ranked.values_Fn[feature]
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def _promotes(analysis: Analysis, feature: int) -> list[int]:
    """The four tokens that a feature promotes most. Empty if most are fragments of words or characters, which tell a reader
    nothing."""
    if analysis.logits is None:
        return []
    tokens = analysis.logits[0].indices_Fn[feature, :4].tolist()
    whole = [token for token in tokens if not analysis.vocabulary.is_fragment(token)]
    return tokens if 2 * len(whole) > len(tokens) else []


# --- example features


def cards(comparison: Comparison) -> list[tuple[str, list[dict[str, Any]]]]:
    """Example features for cards, in groups with a heading. No two have the same most frequent token.

    With other seeds, there are two groups of equal size: features that come back in what they do, and others that fire about
    as often and don't. Both are of the first SAE that has other seeds. If none has, there is one group, of the SAE with the
    highest FVE.
    """
    known = [sae for sae in comparison.analyses if sae.scores is not None]
    analysis = known[0] if known else max(comparison.analyses, key=_fve)
    features, vocabulary = analysis.features, analysis.vocabulary
    fires_on: dict[int, list[str]] = {}
    for feature in features.ranking[: comparison.options.pages]:
        tokens = features.sampled.tokens(feature, None)
        if analysis.codes.count_F[feature] >= LEAST_SELECTIONS and _is_word(tokens[0], vocabulary):
            fires_on[feature] = [vocabulary.text(token) for token in tokens]
    # Features that promote words come first: these words show what features of later layers are for.
    ordered = sorted(fires_on, key=lambda feature: not _promotes(analysis, feature))
    if not known:
        groups = [("", _varied({feature: fires_on[feature] for feature in ordered}, _CARDS))]
    else:
        assert analysis.scores is not None
        correlation_F = analysis.scores.correlation_F
        assert correlation_F is not None, "a report knows the codes"
        lost = [feature for feature in ordered if correlation_F[feature] < _NOT_BACK]
        back = [feature for feature in ordered if correlation_F[feature] >= RETURNING]
        pairs = _pairs_of_like_rate(lost, back, analysis.codes.count_F.tolist(), fires_on)
        groups = [
            ("These come back in what they do", [feature for _, feature in pairs]),
            ("These fire as often, and don't", [feature for feature, _ in pairs]),
        ]
    return [
        (heading, [_card(analysis, feature, fires_on[feature]) for feature in chosen])
        for heading, chosen in groups
        if chosen
    ]


def _pairs_of_like_rate(
    lost: list[int], back: list[int], count: list[int], fires_on: dict[int, list[str]]
) -> list[tuple[int, int]]:
    """Pairs of a feature that doesn't come back and one that does, in the order of `lost`. Neither is more than twice as
    frequent as the other, and no two features have the same first token."""
    first = {feature: plain(texts[0]) for feature, texts in fires_on.items()}
    pairs, taken = [], set[str]()
    for feature in lost:
        n = count[feature]
        similar = [
            other
            for other in back
            if max(n, count[other]) <= 2 * min(n, count[other])
            and first[other] not in {*taken, first[feature]}
        ]
        if first[feature] in taken or not similar:
            continue
        nearest = [abs(math.log(count[other] / n)) for other in similar]
        match = similar[nearest.index(min(nearest))]
        pairs.append((feature, match))
        taken |= {first[feature], first[match]}
        if len(pairs) == _PAIRS:
            break
    return pairs


def _varied(fires_on: dict[int, list[str]], n: int) -> list[int]:
    """n features, taken in turn from those that fire on many tokens, on a few, and on one. The most readable come first, and no
    two have the same first token."""
    kinds: list[list[int]] = [[] for _ in range(len(_KINDS) + 1)]
    for feature, texts in fires_on.items():
        kinds[-1 - sum(len(_without_variants(texts)) > most for most in _KINDS)].append(feature)
    chosen, taken = list[int](), set[str]()
    while len(chosen) < n and any(kinds):
        for kind in kinds:
            while kind and plain(fires_on[kind[0]][0]) in taken:
                kind.pop(0)
            if kind and len(chosen) < n:
                taken.add(plain(fires_on[kind[0]][0]))
                chosen.append(kind.pop(0))
    return chosen


def _card(analysis: Analysis, feature: int, texts: list[str]) -> dict[str, Any]:
    """The content of a feature's card.

    Arguments:
        texts: of the tokens that it fires on.
    """
    different, vocabulary = _without_variants(texts), analysis.vocabulary
    promotes, scores = _promotes(analysis, feature), analysis.scores
    correlation_F = scores and scores.correlation_F
    return {
        "sae": analysis.label,
        "feature": feature,
        "fires_on": different[:_CHIPS],
        "n_tokens": len(different),
        "promotes": [
            vocabulary.text(token) for token in promotes if not vocabulary.is_fragment(token)
        ],
        "contexts": _excerpts(analysis.features.sampled, feature, vocabulary),
        "firing_rate": float(analysis.codes.firing_rate_F[feature]),
        "alike": None if correlation_F is None else float(correlation_F[feature]),
    }


def _is_word(token: int, vocabulary: Vocabulary) -> bool:
    """Whether a token is a word: neither a special token nor part of a word."""
    text = vocabulary.text(token)
    is_special = text.startswith("<")
    return sum(map(str.isalpha, text)) >= 3 and not is_special and not vocabulary.is_fragment(token)


def _fve(analysis: Analysis) -> float:
    """The FVE; minus infinity if it was not measured."""
    fve = analysis.metrics.get("fve")
    return -math.inf if fve is None else fve


def _without_variants(tokens: list[str]) -> list[str]:
    """The tokens without outer spaces. Of tokens that differ only in case and spaces, the first."""
    first: dict[str, str] = {}
    for text in tokens:
        first.setdefault(plain(text), text.strip() or text)
    return list(first.values())


def _excerpts(
    contexts: FeatureContexts, feature: int, vocabulary: Vocabulary
) -> list[tuple[str, str, str]]:
    """Up to three contexts: the text before, at and after the token that the feature fires on."""
    excerpts = []
    for context in contexts.of(feature)[:3]:
        texts, at = [vocabulary.text(i) for i in context.ids], context.at
        before, after = texts[max(0, at - 5) : at], texts[at + 1 : at + 4]
        excerpts.append(("".join(before), texts[at], "".join(after)))
    return excerpts
