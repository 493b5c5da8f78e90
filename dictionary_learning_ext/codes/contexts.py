"""The tokens of a text, the contexts in which features fire, and tokens as text.

Shapes: N encoded tokens, C contexts of L tokens, M selections, F features, T contexts kept per feature, W tokens shown of a
context.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch as t
from scipy.sparse import csc_matrix, csr_matrix

from ..activations.rows import ContextBatch

LONGEST_TOKEN = 48
"""The most characters of a token that are shown."""
BEFORE, AFTER = 16, 8
"""Tokens shown before and after the one that a context is shown for."""
_SHOWN_AS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class Reading:
    """The tokens of a text, in reading order, and which of them were encoded."""

    ids_CL: np.ndarray
    """Token ids, int32; -1 at padding, 0 where they aren't known."""
    wanted_CL: np.ndarray
    """Whether each token was encoded: not at padding, nor at tokens that are left out."""
    sink_CL: np.ndarray
    """Whether each token was left out as an attention sink."""

    @classmethod
    def of(cls, batch: ContextBatch) -> "Reading":
        """The tokens of some contexts."""
        ids_CL = batch.input_ids_BL.cpu().numpy().astype(np.int32)
        return cls(ids_CL, batch.wanted_BL.cpu().numpy(), batch.is_sink_BL.cpu().numpy())

    @classmethod
    def joined(cls, parts: Iterable["Reading"]) -> "Reading":
        """Parts of a text, one after the other."""
        arrays = ((part.ids_CL, part.wanted_CL, part.sink_CL) for part in parts)
        return cls(*map(np.concatenate, zip(*arrays, strict=True)))

    @cached_property
    def place_N(self) -> np.ndarray:
        """The index of each encoded token among all C x L, ascending."""
        return np.flatnonzero(self.wanted_CL)

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the ids and of the mask of encoded tokens."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids_CL).tobytes())
        digest.update(np.ascontiguousarray(self.wanted_CL).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class KeptContext:
    """A token at which a feature is active, and the tokens around it: W of them."""

    activation: float
    """The feature's activation at the token."""
    ids: list[int]
    """The ids of the W tokens: up to 16 before the token, the token, and up to 8 after it."""
    activations: list[float]
    """The feature's activation at each of the W tokens. 0 where it is not selected."""
    at: int
    """The token's index among the W."""
    context: int
    """The context's index in reading order."""
    position: int
    """The token's index in the context."""


class FeatureContexts:
    """T tokens at which each feature fires, and the contexts around them.

    Arguments:
        by_feature: the activations, sorted by feature, then by token.
        rows_FT: the tokens, as rows of the codes; -1 where a feature has fewer.
    """

    def __init__(self, reading: Reading, by_feature: csc_matrix, rows_FT: np.ndarray):
        self._reading, self._by_feature, self.rows_FT = reading, by_feature, rows_FT

    @cached_property
    def ids_FT(self) -> np.ndarray:
        """The ids of the tokens, (F, T); -1 where there is none."""
        ids_N = self._reading.ids_CL.reshape(-1)[self._reading.place_N]
        return np.where(self.rows_FT >= 0, ids_N[self.rows_FT], -1)

    def tokens(self, feature: int, n: int | None = 4) -> list[int]:
        """The ids of the tokens that a feature fires on here, the most frequent first: n, or all."""
        ids = (token for token in self.ids_FT[feature].tolist() if token >= 0)
        return [token for token, _ in Counter(ids).most_common(n)]

    def of(self, feature: int) -> list[KeptContext]:
        """The contexts of a feature, in the order of its tokens."""
        rows_T = self.rows_FT[feature]
        return contexts_at(self._reading, self._by_feature, feature, rows_T[rows_T >= 0])


def contexts_at(
    reading: Reading, by_feature: csc_matrix, feature: int, rows_T: np.ndarray
) -> list[KeptContext]:
    """The contexts around some tokens at which a feature fires."""
    ctx_len = reading.ids_CL.shape[1]
    place_T = reading.place_N[rows_T]
    around_TW = place_T[:, None] + np.arange(-BEFORE, AFTER + 1)
    start, end = by_feature.indptr[feature : feature + 2]
    place_M = reading.place_N[by_feature.indices[start:end]]
    nearest_TW = np.searchsorted(place_M, around_TW).clip(max=len(place_M) - 1)
    value_TW = by_feature.data[start:end][nearest_TW]
    activations_TW = np.where(place_M[nearest_TW] == around_TW, value_TW, np.float32(0))
    found = []
    for place, activations_W in zip(place_T.tolist(), activations_TW, strict=True):
        context, position = divmod(place, ctx_len)
        first = max(0, position - BEFORE)
        ids_W = reading.ids_CL[context, first : position + AFTER + 1]
        ids, at = ids_W[ids_W >= 0].tolist(), position - first  # without padding
        activations = activations_W[BEFORE - at :][: len(ids)].tolist()
        found.append(KeptContext(activations[at], ids, activations, at, context, position))
    return found


def strongest_rows(reading: Reading, by_feature: csc_matrix, n: int) -> np.ndarray:
    """The n tokens at which each feature has its largest activations, by magnitude: at most one per context.

    Of equal ones, the earliest token is taken.

    Returns: the tokens as rows of the codes, (F, n), the largest activation first; -1 where there are fewer.
    """
    n_features = len(by_feature.indptr) - 1
    row_M, size_M = by_feature.indices, np.abs(by_feature.data)
    feature_M = np.repeat(np.arange(n_features), np.diff(by_feature.indptr))
    if not len(row_M):
        return np.full((n_features, n), -1)
    context_M = reading.place_N[row_M] // reading.ids_CL.shape[1]
    is_new_M = (np.diff(feature_M, prepend=-1) != 0) | (np.diff(context_M, prepend=-1) != 0)
    starts_R = np.flatnonzero(is_new_M)
    size_R = np.maximum.reduceat(size_M, starts_R)
    is_peak_M = size_M == np.repeat(size_R, np.diff(starts_R, append=len(row_M)))
    places_M = np.where(is_peak_M, np.arange(len(row_M)), len(row_M))
    peak_R = np.minimum.reduceat(places_M, starts_R)
    return _smallest_keys(row_M[peak_R], -size_R, feature_M[starts_R], n_features, n)


def drawn_rows(
    code_NF: csr_matrix, by_feature: csc_matrix, n: int, generator: t.Generator
) -> np.ndarray:
    """n tokens drawn uniformly from those that select each feature.

    Returns: as `strongest_rows`.
    """
    n_features = len(by_feature.indptr) - 1
    if not code_NF.nnz:
        return np.full((n_features, n), -1)
    key_M = t.rand(code_NF.nnz, generator=generator).numpy()  # in the order of the tokens
    numbers_NF: Any = csr_matrix(
        (np.arange(code_NF.nnz), code_NF.indices, code_NF.indptr), code_NF.shape
    )
    order_M = numbers_NF.tocsc().data
    place_M = np.arange(code_NF.nnz)
    feature_M = np.repeat(np.arange(n_features), np.diff(by_feature.indptr))
    chosen_FT = _smallest_keys(place_M, -key_M[order_M], feature_M, n_features, n)
    size_FT = np.where(chosen_FT >= 0, np.abs(by_feature.data[chosen_FT]), -np.inf)
    order_FT = np.argsort(-size_FT, axis=1, kind="stable")
    chosen_FT = np.take_along_axis(chosen_FT, order_FT, axis=1)
    return np.where(chosen_FT >= 0, by_feature.indices[chosen_FT], -1)


def _smallest_keys(
    what_M: np.ndarray, key_M: np.ndarray, feature_M: np.ndarray, n_features: int, n: int
) -> np.ndarray:
    """The n entries of each feature with the smallest keys, (F, n); -1 where there are fewer. Of equal ones, the earlier is
    taken.

    Arguments:
        what_M: the entries.
        feature_M: their features, ascending.
    """
    found_FT = np.full((n_features, n), -1)
    order_M = np.lexsort((key_M, feature_M))
    rank_M = np.arange(len(order_M)) - np.searchsorted(feature_M, feature_M)
    is_kept_M = rank_M < n
    found_FT[feature_M[is_kept_M], rank_M[is_kept_M]] = what_M[order_M[is_kept_M]]
    return found_FT


# --- one of them, as text


@dataclass(frozen=True, repr=False)
class TopContext(KeptContext):
    """A `KeptContext` with its text."""

    tokens: list[str]
    """The text of the W tokens, with leading spaces."""

    @property
    def token(self) -> str:
        """The text of the token."""
        return self.tokens[self.at]

    def __repr__(self) -> str:
        shown = [visible(token) for token in self.tokens]
        before, after = "".join(shown[: self.at]), "".join(shown[self.at + 1 :])
        return f"{self.activation:8.3g}  {before}«{shown[self.at]}»{after}"

    @property
    def shaded(self) -> list[tuple[str, float, bool]]:
        """For each of the W tokens, its visible text, its activation relative to the token's, and whether it is the token."""
        return [
            (visible(token), activation / abs(self.activation), place == self.at)
            for place, (token, activation) in enumerate(
                zip(self.tokens, self.activations, strict=True)
            )
        ]


class TopContexts(tuple[TopContext, ...]):
    """The contexts in which a feature has its largest activations, the largest first."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "(no context: never selected)"


def token_text(tokenizer: Any, token: int) -> str:
    """The text of a token, with its leading space. Empty for padding, -1.

    A token that is part of a character (byte-level BPE) is shown in the tokenizer's own spelling.
    """
    if token < 0:
        return ""
    text = tokenizer.decode([token])
    spelling = tokenizer.convert_ids_to_tokens(token)
    if spelling is None:  # a row of the embedding that the tokenizer does not use
        return f"[{token}]"
    if "\ufffd" in text:
        return spelling
    if spelling.startswith("▁") and not text.startswith(" "):  # SentencePiece drops the first
        return " " + text
    return text


def visible(text: str) -> str:
    """Text with control characters and directional marks spelled out, cut if it is too long."""
    shown = []
    for character in text[:LONGEST_TOKEN]:
        if character in _SHOWN_AS:
            shown.append(_SHOWN_AS[character])
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"‹U+{ord(character):04X}›")
        else:
            shown.append(character)
    is_cut = len(text) > LONGEST_TOKEN
    return "".join(shown) + (f"… ({len(text):,} characters)" if is_cut else "")


def plain(text: str) -> str:
    """Text without case and outer spaces, to compare tokens by."""
    return text.strip().lower() or text
