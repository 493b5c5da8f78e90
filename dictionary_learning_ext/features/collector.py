"""What each feature of an SAE does on a text: one pass, in memory that does not grow with it.

collector = FeatureCollector(sae, tokens=100_000)
for batch in read_contexts(run, model, hook, "heldout", 100_000):
    collector.add(batch)
statistics = collector.statistics()

A feature is *selected* at a token if its activation (the mean's) there is not zero. Shapes: B
contexts of L tokens, F features, M selections of a batch, T contexts kept per feature, W tokens
of a context shown, H bins.
"""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from scipy.sparse import csr_matrix

from ..activations.contexts import ContextBatch
from ..config.checks import require
from ..errors import NonFiniteError

logger = logging.getLogger(__name__)

_BATCH_ELEMENTS = 1 << 22  # activations (tokens x F) made at a time
_PROFILE_ENTRIES = 1 << 24  # selections kept for the profiles
_BINS = 40
_NO_EXPONENT = -1000


class Contexts(NamedTuple):
    """Contexts of each feature, T of them, those with the largest keys first.

    A context that does not exist (a feature selected fewer than T times) has value NaN.
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


@dataclass(frozen=True)
class FeatureStatistics:
    """What `FeatureCollector` found. All tensors are on the CPU."""

    tokens: int
    """Tokens measured on."""
    count_F: t.Tensor
    """Tokens that each feature was selected at, int64."""
    max_F: t.Tensor
    """Largest activation; NaN for a feature that was never selected."""
    mean_F: t.Tensor
    """Mean activation where selected; NaN likewise."""
    histogram_FH: t.Tensor
    """Selections with an activation in [h, h + 1) times `bin_width_F`, int64."""
    bin_width_F: t.Tensor
    """A power of two: the least for which H bins reach beyond the maximum."""
    negative_F: t.Tensor
    """Selections with an activation below 0, int64 (a vSAE without ReLU can have some)."""
    top: Contexts
    """The contexts with the largest activations, each context once."""
    sampled: Contexts
    """Selections drawn uniformly without replacement, the largest activation first."""
    profiles_NF: csr_matrix
    """Activations at N tokens drawn from all: the columns are the features' profiles."""

    @property
    def frequency_F(self) -> t.Tensor:
        """Share of the tokens that each feature was selected at, float64."""
        return self.count_F.double() / self.tokens

    @property
    def alive_F(self) -> t.Tensor:
        """Whether each feature was selected at least once."""
        return self.count_F > 0


class FeatureCollector:
    """Collects `FeatureStatistics`, batch by batch.

    Never more than `_BATCH_ELEMENTS` activations (or one context's) are in memory, beside
    F x (T x W + H) numbers and the sparse profiles.

    Arguments:
        dictionary: any class that `load_dictionary` returns; takes raw activations.
        tokens: how many will be added at most, from which those of the profiles are drawn.
        top, sampled: contexts kept per feature.
        before, after: tokens shown around the one a context is kept for.
        profile_tokens: N, at most; fewer if their selections would exceed `_PROFILE_ENTRIES`.
        seed: of what is drawn.

    Raises: ConfigError for a number out of range.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        tokens: int,
        *,
        top: int = 8,
        sampled: int = 8,
        before: int = 16,
        after: int = 8,
        profile_tokens: int = 20_000,
        seed: int = 0,
    ):
        for name, value in (("tokens", tokens), ("top", top), ("sampled", sampled)):
            require(value >= 1, name, value, "at least 1")
        require(profile_tokens >= 1, "profile_tokens", profile_tokens, "at least 1")
        self.dictionary: Any = dictionary
        n = dictionary.dict_size
        self._generator = t.Generator().manual_seed(seed)
        self._contexts = self._tokens = 0
        self._count_F = t.zeros(n, dtype=t.long)
        self._negative_F = t.zeros(n, dtype=t.long)
        self._sum_F = t.zeros(n, dtype=t.double)
        self._max_F = t.full((n,), -t.inf)
        self._histogram = _Histogram(n, _BINS)
        self._top = _Kept(n, top, before, after)
        self._sampled = _Kept(n, sampled, before, after)
        drawn = t.randperm(tokens, generator=self._generator)[:profile_tokens]
        self._in_profile = t.zeros(tokens, dtype=t.bool).index_fill_(0, drawn, True)
        self._profile: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._profile_rows = self._profile_entries = 0

    @t.no_grad()
    def add(self, batch: ContextBatch) -> None:
        """Take in a batch. Raises NonFiniteError if the SAE gives a feature that is not finite."""
        n_contexts, ctx_len = batch.input_ids_BL.shape
        step = max(1, _BATCH_ELEMENTS // (ctx_len * self.dictionary.dict_size))
        device = next(self.dictionary.parameters()).device
        for start in range(0, n_contexts, step):
            part = slice(start, start + step)
            f_BLF = self.dictionary.encode(batch.x_BLD[part].flatten(0, 1).to(device))
            f_BLF = f_BLF.float().cpu().unflatten(0, (-1, ctx_len))
            f_BLF[~batch.wanted_BL[part]] = 0.0
            self._add(batch.input_ids_BL[part].cpu(), batch.wanted_BL[part], f_BLF)

    def _add(self, ids_BL: t.Tensor, wanted_BL: t.Tensor, f_BLF: t.Tensor) -> None:
        n_contexts, ctx_len, n_features = f_BLF.shape
        token_M, feature_M = f_BLF.flatten(0, 1).nonzero(as_tuple=True)
        value_M = f_BLF.flatten(0, 1)[token_M, feature_M]
        if not value_M.isfinite().all():
            raise NonFiniteError(
                "the SAE gave features that are NaN or infinite, instead of numbers: its ae.pt is "
                "damaged or it was trained on another scale; train it again"
            )
        self._count_F += feature_M.bincount(minlength=n_features)
        self._negative_F += feature_M[value_M < 0].bincount(minlength=n_features)
        self._sum_F.index_add_(0, feature_M, value_M.double())
        self._max_F.scatter_reduce_(0, feature_M, value_M, "amax")
        self._histogram.add(feature_M, value_M, self._max_F)

        context_M = token_M // ctx_len
        is_peak_M = _first_largest(context_M * n_features + feature_M, value_M, token_M)
        source = _Source(ids_BL, f_BLF, self._contexts)
        self._top.offer(value_M[is_peak_M], feature_M[is_peak_M], token_M[is_peak_M], source)
        key_M = t.rand(len(value_M), generator=self._generator)
        self._sampled.offer(key_M, feature_M, token_M, source)

        self._add_profiles(wanted_BL.flatten(), token_M, feature_M, value_M)
        self._contexts += n_contexts
        self._tokens += int(wanted_BL.sum())

    def _add_profiles(
        self, wanted_N: t.Tensor, token_M: t.Tensor, feature_M: t.Tensor, value_M: t.Tensor
    ) -> None:
        place_N = self._tokens + wanted_N.cumsum(0) - 1
        drawn_N = wanted_N & self._in_profile[place_N.clamp(0, len(self._in_profile) - 1)]
        per_token_N = token_M.bincount(minlength=len(wanted_N)) * drawn_N
        drawn_N &= self._profile_entries + per_token_N.cumsum(0) <= _PROFILE_ENTRIES
        row_N = self._profile_rows + drawn_N.cumsum(0) - 1
        keep_M = drawn_N[token_M]
        kept = row_N[token_M[keep_M]].int(), feature_M[keep_M].int(), value_M[keep_M]
        self._profile.append(tuple(part.numpy() for part in kept))  # pyright: ignore
        self._profile_rows += int(drawn_N.sum())
        self._profile_entries += len(kept[0])

    def statistics(self) -> FeatureStatistics:
        """What was found until now."""
        is_alive_F = self._count_F > 0
        nan_F = t.full_like(self._max_F, t.nan)
        rows, columns, values = (
            np.concatenate(parts) for parts in zip(*self._profile, strict=True)
        )
        shape = (self._profile_rows, self.dictionary.dict_size)
        return FeatureStatistics(
            tokens=self._tokens,
            count_F=self._count_F.clone(),
            max_F=t.where(is_alive_F, self._max_F, nan_F),
            mean_F=t.where(is_alive_F, (self._sum_F / self._count_F).float(), nan_F),
            histogram_FH=self._histogram.counts_FH.clone(),
            bin_width_F=self._histogram.width_F,
            negative_F=self._negative_F.clone(),
            top=self._top.contexts(),
            sampled=self._sampled.contexts(by_value=True),
            profiles_NF=csr_matrix((values, (rows, columns)), shape),
        )


def _first_largest(group_M: t.Tensor, value_M: t.Tensor, token_M: t.Tensor) -> t.Tensor:
    """Whether each entry is its group's largest, the first of equals."""
    n = int(group_M.max()) + 1 if len(group_M) else 0
    largest = t.full((n,), -t.inf).scatter_reduce_(0, group_M, value_M, "amax")
    is_largest_M = value_M == largest[group_M]
    first = t.full((n,), 1 << 62, dtype=t.long)
    first.scatter_reduce_(0, group_M[is_largest_M], token_M[is_largest_M], "amin")
    return is_largest_M & (token_M == first[group_M])


class _Histogram:
    """Counts of positive values in H bins a feature, whose width is a power of two that can grow.

    Where a value is beyond the last bin, the width doubles and neighbours are merged, so the counts
    are those that the final widths would have given from the start.
    """

    def __init__(self, n_features: int, bins: int):
        self.counts_FH = t.zeros(n_features, bins, dtype=t.long)
        self._exponent_F = t.full((n_features,), _NO_EXPONENT, dtype=t.long)

    @property
    def width_F(self) -> t.Tensor:
        return t.where(self._exponent_F == _NO_EXPONENT, 0.0, t.exp2(self._exponent_F.float()))

    def add(self, feature_M: t.Tensor, value_M: t.Tensor, max_F: t.Tensor) -> None:
        bins = self.counts_FH.shape[1]
        # bins * 2^e > max: the largest value is in a bin, not on the last edge.
        needed_F = (max_F.clamp_min(1e-30).double() / bins).log2().floor().long() + 1
        needed_F = t.where(max_F > 0, needed_F, _NO_EXPONENT)
        is_new_F = self._exponent_F == _NO_EXPONENT
        shift_F = t.where(is_new_F, 0, needed_F - self._exponent_F)
        self._exponent_F = t.maximum(self._exponent_F, needed_F)
        while (grows_F := shift_F > 0).any():
            pairs = self.counts_FH[grows_F].unflatten(1, (-1, 2)).sum(2)
            self.counts_FH[grows_F] = t.nn.functional.pad(pairs, (0, bins - pairs.shape[1]))
            shift_F -= 1
        is_positive_M = value_M > 0
        feature_M, value_M = feature_M[is_positive_M], value_M[is_positive_M]
        bin_M = (value_M / self.width_F[feature_M]).long()
        flat = self.counts_FH.view(-1)
        flat.index_add_(0, feature_M * bins + bin_M, t.ones_like(bin_M))


class _Source(NamedTuple):
    """Where the windows of a batch's contexts are cut from."""

    ids_BL: t.Tensor
    f_BLF: t.Tensor
    first_context: int


class _Kept:
    """The T entries with the largest keys of each feature, and the tokens around them."""

    def __init__(self, n_features: int, n_kept: int, before: int, after: int):
        shape = (n_features, n_kept)
        self._before, self._n_kept = before, n_kept
        self._offsets_W = t.arange(-before, after + 1)
        self._key = t.full(shape, -t.inf)
        self._value = t.full(shape, t.nan)
        self._context = t.zeros(shape, dtype=t.long)
        self._position = t.zeros(shape, dtype=t.long)
        window = (*shape, len(self._offsets_W))
        self._ids = t.full(window, -1, dtype=t.int32)
        self._activations = t.zeros(window)

    def offer(
        self, key_M: t.Tensor, feature_M: t.Tensor, token_M: t.Tensor, source: _Source
    ) -> None:
        """Keep what is among the largest; of equals the earlier."""
        is_better_M = key_M > self._key[feature_M, -1]
        key_M, feature_M, token_M = (part[is_better_M] for part in (key_M, feature_M, token_M))
        order_M = key_M.argsort(descending=True, stable=True)
        order_M = order_M[feature_M[order_M].argsort(stable=True)]
        key_M, feature_M, token_M = (part[order_M] for part in (key_M, feature_M, token_M))
        features_U, size_U = feature_M.unique_consecutive(return_counts=True)
        if not len(features_U):
            return
        row_M = t.arange(len(features_U)).repeat_interleave(size_U)
        rank_M = t.arange(len(key_M)) - (size_U.cumsum(0) - size_U)[row_M]
        is_kept_M = rank_M < self._n_kept
        place = row_M[is_kept_M], rank_M[is_kept_M]
        key_M, feature_M, token_M = (part[is_kept_M] for part in (key_M, feature_M, token_M))

        context_M = token_M // source.ids_BL.shape[1]
        position_M = token_M % source.ids_BL.shape[1]
        at_MW = position_M[:, None] + self._offsets_W
        is_inside_MW = (at_MW >= 0) & (at_MW < source.ids_BL.shape[1])
        at_MW = at_MW.clamp(0, source.ids_BL.shape[1] - 1)
        ids_MW = source.ids_BL[context_M[:, None], at_MW].int()
        f_MW = source.f_BLF[context_M[:, None], at_MW, feature_M[:, None]]
        value_M = source.f_BLF[context_M, position_M, feature_M]

        offered = {
            "_value": value_M,
            "_context": source.first_context + context_M,
            "_position": position_M,
            "_ids": t.where(is_inside_MW, ids_MW, -1),
            "_activations": f_MW * is_inside_MW,
        }
        key_UT = t.full((len(features_U), self._n_kept), -t.inf)
        key_UT[place] = key_M
        both = t.cat([self._key[features_U], key_UT], 1).sort(dim=1, descending=True, stable=True)
        self._key[features_U] = both.values[:, : self._n_kept]
        chosen_UT = both.indices[:, : self._n_kept]
        for name, new in offered.items():
            old = getattr(self, name)
            table = t.zeros((*key_UT.shape, *new.shape[1:]), dtype=new.dtype)
            table[place] = new
            index = chosen_UT.view(*chosen_UT.shape, *[1] * (new.dim() - 1))
            index = index.expand(*chosen_UT.shape, *new.shape[1:])
            old[features_U] = t.cat([old[features_U], table], 1).gather(1, index)
        # What was never offered stays a context that does not exist.
        is_empty_UT = self._key[features_U] == -t.inf
        self._value[features_U] = self._value[features_U].masked_fill(is_empty_UT, t.nan)

    def contexts(self, by_value: bool = False) -> Contexts:
        names = ("_value", "_ids", "_activations", "_context", "_position")
        parts = [getattr(self, name).clone() for name in names]
        if by_value:
            sort_key = parts[0].nan_to_num(nan=-t.inf)
            order_FT = sort_key.argsort(dim=1, descending=True, stable=True)
            rows_F1 = t.arange(len(order_FT))[:, None]
            parts = [part[rows_F1, order_FT] for part in parts]
        return Contexts(*parts, at=self._before)
