"""The contexts kept for each feature, such as those with its largest activations, and tokens as text.

Shapes: B contexts of L tokens, F features, T contexts kept per feature, W tokens of a context
shown, S selections, M of them offered, U features among these, E candidates of these features, P tokens drawn.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import jinja2
import torch as t
from einops import rearrange

LONGEST_TOKEN = 48
"""The most characters of a token that are shown."""
_SHOWN_AS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


class FeatureContexts(NamedTuple):
    """T contexts of each feature, in descending order of what they were kept for.

    A feature selected fewer than T times has fewer contexts. The value of the others is NaN.
    """

    value_FT: t.Tensor
    """The feature's activation at the token that the context is shown for."""
    ids_FTW: t.Tensor
    """Token ids around it, int32; -1 where the context has no token."""
    activations_FTW: t.Tensor
    """The feature's activation at each of them."""
    context_FT: t.Tensor
    """The context's number in the order of reading, int64."""
    position_FT: t.Tensor
    """The token's place in its context, int64."""
    at: int
    """Which of the W tokens it is."""


class DrawnContexts(NamedTuple):
    """P tokens drawn uniformly from all, whatever fires there, with the tokens around them."""

    ids_PW: t.Tensor
    """Token ids, int32; -1 where the context has no token."""
    fires_PF: t.Tensor
    """Whether each feature is selected at any of the W tokens."""
    context_P: t.Tensor
    """The context's number in the order of reading, int64."""


@dataclass(frozen=True)
class EncodedContexts:
    """Contexts with the SAE's S selections at their tokens, in the order of the tokens, then of the features."""

    ids_BL: t.Tensor
    token_S: t.Tensor
    """The token of each, 0 to B x L - 1."""
    feature_S: t.Tensor
    value_S: t.Tensor
    n_features: int
    """F."""
    first_context: int
    """The first context's number in the order of reading."""

    def activations(self, tokens: t.Tensor, features: t.Tensor) -> t.Tensor:
        """Those of features at tokens, of one shape; 0 where a feature is not selected."""
        wanted = tokens * self.n_features + features
        place = t.searchsorted(self._place_S, wanted).clamp(max=len(self._place_S) - 1)
        return t.where(self._place_S[place] == wanted, self.value_S[place], 0.0)

    @cached_property
    def _place_S(self) -> t.Tensor:
        """In the flattened activations, ascending."""
        return self.token_S * self.n_features + self.feature_S


class ContextKeeper:
    """Keeps the T selections with the largest keys of each feature, and the tokens around them.

    Arguments:
        n_features: F.
        n_kept: T.
        before, after: tokens shown before and after the selected one.
    """

    def __init__(self, n_features: int, n_kept: int, before: int, after: int):
        shape = (n_features, n_kept)
        self._n_kept = n_kept
        self._offsets_W = t.arange(-before, after + 1)
        window = (*shape, len(self._offsets_W))
        self._key = t.full(shape, -t.inf)
        self._kept = FeatureContexts(
            value_FT=t.full(shape, t.nan),
            ids_FTW=t.full(window, -1, dtype=t.int32),
            activations_FTW=t.zeros(window),
            context_FT=t.zeros(shape, dtype=t.long),
            position_FT=t.zeros(shape, dtype=t.long),
            at=before,
        )

    def offer(
        self, key_M: t.Tensor, feature_M: t.Tensor, token_M: t.Tensor, source: EncodedContexts
    ) -> None:
        """Keep those of the selections whose keys are among the T largest. Earlier ones win ties.

        Arguments:
            key_M: what to compare selections by.
            feature_M: the feature selected.
            token_M: the token it is selected at, 0 to B x L - 1.
            source: the contexts that the tokens are in.
        """
        is_better_M = key_M > self._key[feature_M, -1]
        key_M, feature_M, token_M = (part[is_better_M] for part in (key_M, feature_M, token_M))
        features_U, row_M = feature_M.unique(return_inverse=True)
        row_UT = rearrange(t.arange(len(features_U)), "u -> u 1").expand(-1, self._n_kept)
        # All candidates, the kept ones first, by their features and their keys.
        row_E = t.cat([row_UT.flatten(), row_M])
        key_E = t.cat([self._key[features_U].flatten(), key_M])
        order_E = key_E.argsort(descending=True, stable=True)
        order_E = order_E[row_E[order_E].argsort(stable=True)]
        size_U = row_E.bincount(minlength=len(features_U))
        first_U1 = rearrange(size_U.cumsum(0) - size_U, "u -> u 1")
        chosen_UT = order_E[first_U1 + t.arange(self._n_kept)]
        self._key[features_U] = key_E[chosen_UT]
        is_new_UT = chosen_UT >= row_UT.numel()
        new_M = chosen_UT[is_new_UT] - row_UT.numel()
        news = self._windows(feature_M[new_M], token_M[new_M], source)
        for kept, new in zip(self._kept[:-1], news, strict=True):
            chosen = kept[features_U].flatten(0, 1)[chosen_UT.where(~is_new_UT, 0)]
            chosen[is_new_UT] = new
            kept[features_U] = chosen

    def _windows(
        self, feature_M: t.Tensor, token_M: t.Tensor, source: EncodedContexts
    ) -> tuple[t.Tensor, ...]:
        """What is kept of each selection, in the order of FeatureContexts."""
        ctx_len = source.ids_BL.shape[1]
        around = windows(token_M, source.ids_BL, self._offsets_W)
        f_MW = source.activations(around.token_MW, rearrange(feature_M, "m -> m 1"))
        return (
            source.activations(token_M, feature_M),
            around.ids_MW,
            f_MW * around.is_inside_MW,
            source.first_context + token_M // ctx_len,
            token_M % ctx_len,
        )

    def contexts(self, by_value: bool = False) -> FeatureContexts:
        """The contexts kept until now, in descending order of their keys, or of the magnitude of
        their values."""
        parts = [part.clone() for part in self._kept[:-1]]
        if by_value:
            sort_key = parts[0].abs().nan_to_num(nan=-t.inf)
            order_FT = sort_key.argsort(dim=1, descending=True, stable=True)
            row_F1 = rearrange(t.arange(len(order_FT)), "f -> f 1")
            parts = [part[row_F1, order_FT] for part in parts]
        return FeatureContexts(*parts, at=self._kept.at)


class Windows(NamedTuple):
    """M tokens of a batch of contexts, and the W around each."""

    token_MW: t.Tensor
    """Their numbers, 0 to B x L - 1; outside of the context, that of the token itself."""
    is_inside_MW: t.Tensor
    ids_MW: t.Tensor
    """Their ids, int32; -1 outside of the context."""


def windows(token_M: t.Tensor, ids_BL: t.Tensor, offsets_W: t.Tensor) -> Windows:
    """The tokens at these offsets from some tokens, which are numbered 0 to B x L - 1."""
    token_M1, ctx_len = rearrange(token_M, "m -> m 1"), ids_BL.shape[1]
    token_MW = token_M1 + offsets_W
    is_inside_MW = token_MW // ctx_len == token_M1 // ctx_len
    token_MW = t.where(is_inside_MW, token_MW, token_M1)
    ids_MW = t.where(is_inside_MW, ids_BL.flatten()[token_MW].int(), -1)
    return Windows(token_MW, is_inside_MW, ids_MW)


class KeptContext(NamedTuple):
    """A context of a feature, without the places outside of the text; see `TopContext`."""

    activation: float
    ids: list[int]
    activations: list[float]
    at: int
    context: int
    position: int


def contexts_of(kept: FeatureContexts, feature: int) -> Iterator[KeptContext]:
    """The contexts that were kept for a feature, in their order."""
    rows = (part[feature].tolist() for part in kept[:-1])  # indexing tensors per token is slow
    for value, ids, activations, context, position in zip(*rows, strict=True):
        if math.isnan(value):
            continue  # fewer contexts than rows
        start = next(place for place, token in enumerate(ids) if token >= 0)
        end = len(ids) - next(place for place, token in enumerate(reversed(ids)) if token >= 0)
        inside = slice(start, end)
        yield KeptContext(
            value, ids[inside], activations[inside], kept.at - start, context, position
        )


# --- one of them, as text


@dataclass(frozen=True, repr=False)
class TopContext:
    """A token at which a feature is active, and the tokens around it: W of them."""

    activation: float
    """The feature's activation at the token. It has the largest magnitude in its context."""
    token: str
    """The token as text, with its leading space."""
    tokens: list[str]
    """The tokens around it and itself: up to 16 before it and 8 after it, W in all."""
    ids: list[int]
    """Their W ids."""
    activations: list[float]
    """The feature's activation at each of the W tokens. 0 where it is not selected."""
    at: int
    """The token's place among the W."""
    context: int
    """The number of the context in the order of reading, from 0."""
    position: int
    """The token's place in the context, from 0."""

    def __repr__(self) -> str:
        shown = [visible(token) for token in self.tokens]
        before, after = "".join(shown[: self.at]), "".join(shown[self.at + 1 :])
        return f"{self.activation:8.3g}  {before}«{shown[self.at]}»{after}"

    @property
    def shaded(self) -> list[tuple[str, float, bool]]:
        """For each token its visible text, its activation over the largest, and whether it is `at`."""
        return [
            (visible(token), activation / abs(self.activation), place == self.at)
            for place, (token, activation) in enumerate(
                zip(self.tokens, self.activations, strict=True)
            )
        ]


class TopContexts(tuple[TopContext, ...]):
    """The contexts in which a feature is strongest, the strongest first."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "(no context: never selected)"


def top_contexts(kept: FeatureContexts, feature: int, n: int, tokenizer: Any) -> TopContexts:
    """The first n of a feature's contexts, or all if fewer were kept."""
    found = []
    for context in islice(contexts_of(kept, feature), n):
        tokens = [token_text(tokenizer, token) for token in context.ids]
        found.append(TopContext(token=tokens[context.at], tokens=tokens, **context._asdict()))
    return TopContexts(found)


def top_tokens(contexts: FeatureContexts, feature: int, n: int | None = 4) -> list[int]:
    """The ids of the tokens that a feature fires on in its contexts, the most frequent first: n, or all."""
    tokens = [token for token in contexts.ids_FTW[feature, :, contexts.at].tolist() if token >= 0]
    return [token for token, _ in Counter(tokens).most_common(n)]


def token_text(tokenizer: Any, token: int) -> str:
    """A token as it appears in text, with its leading space.

    A token that is part of a character (byte-level BPE) is shown in the tokenizer's own spelling.
    """
    text = tokenizer.decode([token])
    spelling = tokenizer.convert_ids_to_tokens(token)
    if spelling is None:  # a row of the embedding that the tokenizer does not use
        return f"[{token}]"
    if "\ufffd" in text:
        return spelling
    if spelling.startswith("▁") and not text.startswith(" "):  # SentencePiece drops the first
        return " " + text
    return text


def visible(text: str, longest: int = LONGEST_TOKEN) -> str:
    """Text with control characters and directional marks spelled out, cut if too long."""
    shown = []
    for character in text[:longest]:
        if character in _SHOWN_AS:
            shown.append(_SHOWN_AS[character])
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"‹U+{ord(character):04X}›")
        else:
            shown.append(character)
    is_cut = len(text) > longest
    return "".join(shown) + (f"… ({len(text):,} characters)" if is_cut else "")


def plain(text: str) -> str:
    """Text whose case and outer spaces are left out when tokens are compared."""
    return text.strip().lower() or text


def rendered(part: str, template: str, **values: Any) -> str:
    """The HTML of a template in `part`/templates. Raises jinja2.UndefinedError if a value is missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning_ext", f"{part}/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
