"""The report's example features: some that fire on one token, some on a few, some on many."""

import math
from dataclasses import dataclass

from ..features.kept_contexts import FeatureContexts
from .analysis import LEAST_SELECTIONS, Analysis, Comparison
from .feature_pages import Vocabulary, top_tokens

_CARDS = 9
_CHIPS = 3
_KINDS = (1, 3)
"""The most tokens of a feature that fires on one, and of one that fires on a few."""


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
            new = (feature for feature in kind if _plain(fires_on[feature][0]) not in tokens_shown)
            feature = next(new, None)
            if feature is None:
                kind.clear()
                continue
            kind.remove(feature)
            tokens_shown.add(_plain(fires_on[feature][0]))
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
        first.setdefault(_plain(text), text.strip() or text)
    return list(first.values())


def _plain(text: str) -> str:
    return text.strip().lower() or text


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
