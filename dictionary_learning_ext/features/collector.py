"""What each feature of an SAE does on a text, in one pass that keeps little of it.

finder, collector = SinkFinder(tokenizer), FeatureCollector(sae, tokens=100_000)
for batch in inputs.contexts(run.hook, "heldout", 100_000):
    finder.add(batch)
    collector.add(batch)
statistics = collector.statistics()

`measure_features` in features_of.py is this pass, for several SAEs at once.

A feature is *selected* at a token if its activation there (a vSAE's mean's) is not zero. Its
*strongest* or *largest* activations are those of the largest magnitude. They keep their signs: some
SAEs have negative ones, e.g. a vSAE without ReLU or with select_by="magnitude".

Shapes: B contexts of L tokens, F features, M selections of a batch, T contexts kept per feature,
W tokens of a context shown, H bins, N tokens of the profiles.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from einops import rearrange, reduce
from scipy.sparse import csr_matrix, vstack

from ..activations.positions import at, norms
from ..activations.rows import ContextBatch
from ..config.checks import require
from ..errors import NonFiniteError, TextError
from ..trainers.dictionaries import as_input
from .contexts import ContextKeeper, DrawnContexts, EncodedContexts, FeatureContexts, windows

LEAST_SELECTIONS = 8
"""A feature selected fewer times than this fires on too few tokens to say what it fires on."""
_BINS = 40
_BATCH_ELEMENTS = 1 << 22
"""Activations (tokens x F) computed at a time."""
_PROFILE_ENTRIES = 1 << 24
"""Selections kept for the profiles, at most."""
_NO_EXPONENT = -1000
_SINKS_NAMED = 3
"""Positions or tokens, at most, that are named as sinks."""


@dataclass(frozen=True)
class FeatureStatistics:
    """What `FeatureCollector` measured. All tensors are on the CPU."""

    tokens: int
    """Tokens measured on."""
    count_F: t.Tensor
    """Tokens at which each feature was selected, int64."""
    max_F: t.Tensor
    """The activation of the largest magnitude, with its sign; NaN for a feature that was never
    selected."""
    mean_F: t.Tensor
    """Mean activation where selected; NaN for a feature that was never selected."""
    histogram_FH: t.Tensor
    """Selections with an activation of magnitude in [h, h + 1) times `bin_width_F`, int64."""
    bin_width_F: t.Tensor
    """The smallest power of two for which H bins reach beyond the largest magnitude."""
    negative_F: t.Tensor
    """Selections with an activation below 0, int64."""
    top: FeatureContexts
    """The contexts with the largest activations, each context once."""
    sampled: FeatureContexts
    """Contexts of selections drawn uniformly without replacement, the largest activation first."""
    drawn: DrawnContexts
    """Tokens drawn uniformly from all of them."""
    profiles_NF: csr_matrix
    """Activations at N randomly drawn tokens. A feature's column is its profile."""

    @property
    def frequency_F(self) -> t.Tensor:
        """Share of the tokens at which each feature was selected, float64."""
        return self.count_F.double() / self.tokens

    @property
    def alive_F(self) -> t.Tensor:
        """Whether each feature was selected at least once."""
        return self.count_F > 0


class FeatureCollector:
    """Collects `FeatureStatistics`, batch by batch.

    Memory holds F x (T x W + H) numbers, the sparse profiles of at most 16M selections, `drawn` x F bytes, and
    two bytes for each of `tokens` (nine more at the start). The SAE's device holds at most 4M activations at a
    time, or those of one context; only what is selected leaves it.

    Arguments:
        dictionary: any class that `load_dictionary` returns. It takes raw activations.
        tokens: an upper limit on the tokens that will be added. The profiles' tokens are drawn
            from these.
        top, sampled: contexts kept per feature.
        drawn: tokens drawn from all, of which is kept what each feature does around them. Fewer if the text
            has fewer than `tokens`.
        before, after: tokens shown before and after the one that a context is kept for.
        profile_tokens: N, at most. Fewer if they have more than 16M selections.
        seed: seeds everything that is drawn at random.

    Raises: ConfigError for a number out of range.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        tokens: int,
        *,
        top: int = 8,
        sampled: int = 8,
        drawn: int = 0,
        before: int = 16,
        after: int = 8,
        profile_tokens: int = 20_000,
        seed: int = 0,
    ):
        sizes = {"tokens": tokens, "top": top, "sampled": sampled, "profile_tokens": profile_tokens}
        for name, value in sizes.items():
            require(value >= 1, name, value, "at least 1")
        self.dictionary: Any = dictionary
        n = dictionary.dict_size
        self._generator = t.Generator().manual_seed(seed)
        self._contexts = self._tokens = 0
        self._count_F = t.zeros(n, dtype=t.long)
        self._negative_F = t.zeros(n, dtype=t.long)
        self._sum_F = t.zeros(n, dtype=t.double)
        self._highest_F = t.full((n,), -t.inf)
        self._lowest_F = t.full((n,), t.inf)
        self._histogram = GrowingHistograms(n, _BINS)
        self._top = ContextKeeper(n, top, before, after)
        self._sampled = ContextKeeper(n, sampled, before, after)
        self._offsets_W = t.arange(-before, after + 1)
        order = t.randperm(tokens, generator=self._generator)
        self._in_profile = _marked(tokens, order[:profile_tokens])
        self._is_drawn = _marked(tokens, order[:drawn])
        self._drawn: list[DrawnContexts] = []
        self._profiles: list[csr_matrix] = []
        self._profile_entries = 0

    @t.no_grad()
    def add(self, batch: ContextBatch) -> None:
        """Add a batch. Raises NonFiniteError if the SAE's features are NaN or infinite."""
        n_contexts, ctx_len = batch.input_ids_BL.shape
        step = max(1, _BATCH_ELEMENTS // (ctx_len * self.dictionary.dict_size))
        for start in range(0, n_contexts, step):
            part = slice(start, start + step)
            x_ND = rearrange(batch.x_BLD[part], "b l d -> (b l) d")
            wanted_N = rearrange(batch.wanted_BL[part], "b l -> (b l)")
            f_NF = self.dictionary.encode(as_input(self.dictionary, x_ND))
            f_NF[~wanted_N.to(f_NF.device)] = 0.0
            token_M, feature_M = f_NF.nonzero(as_tuple=True)
            value_M = f_NF[token_M, feature_M].float()
            selections = token_M.cpu(), feature_M.cpu(), value_M.cpu()
            ids_BL, n_features = batch.input_ids_BL[part].cpu(), self.dictionary.dict_size
            source = EncodedContexts(ids_BL, *selections, n_features, self._contexts)
            self._add(source, wanted_N)

    def _add(self, source: EncodedContexts, wanted_N: t.Tensor) -> None:
        (n_contexts, ctx_len), n_features = source.ids_BL.shape, source.n_features
        token_M, feature_M, value_M = source.token_S, source.feature_S, source.value_S
        require_finite(value_M)
        self._count_F += feature_M.bincount(minlength=n_features)
        self._negative_F += feature_M[value_M < 0].bincount(minlength=n_features)
        self._sum_F.index_add_(0, feature_M, value_M.double())
        self._highest_F.scatter_reduce_(0, feature_M, value_M, "amax")
        self._lowest_F.scatter_reduce_(0, feature_M, value_M, "amin")
        size_M = value_M.abs()
        self._histogram.add(feature_M, size_M, t.maximum(self._highest_F, -self._lowest_F))

        context_M = token_M // ctx_len
        is_peak_M = _first_largest(context_M * n_features + feature_M, size_M, token_M)
        self._top.offer(size_M[is_peak_M], feature_M[is_peak_M], token_M[is_peak_M], source)
        key_M = t.rand(len(value_M), generator=self._generator)
        self._sampled.offer(key_M, feature_M, token_M, source)

        place_N = (self._tokens + wanted_N.cumsum(0) - 1).clamp(0, len(self._is_drawn) - 1)
        self._draw(wanted_N & self._is_drawn[place_N], source)
        self._add_profiles(wanted_N & self._in_profile[place_N], token_M, feature_M, value_M)
        self._contexts += n_contexts
        self._tokens += int(wanted_N.sum())

    def _draw(self, drawn_N: t.Tensor, source: EncodedContexts) -> None:
        drawn_P = drawn_N.nonzero().flatten()
        around = windows(drawn_P, source.ids_BL, self._offsets_W)
        fires_PF = t.zeros(len(drawn_P), source.n_features, dtype=t.bool)
        offsets = zip(around.token_MW.T, around.is_inside_MW.T, strict=True)
        for token_P, is_inside_P in offsets if len(drawn_P) else ():
            place_N = t.full((len(drawn_N),), -1)  # at one offset, each token is in one window
            place_N[token_P[is_inside_P]] = t.arange(len(drawn_P))[is_inside_P]
            place_S = place_N[source.token_S]
            is_near_S = place_S >= 0
            fires_PF[place_S[is_near_S], source.feature_S[is_near_S]] = True
        context_P = source.first_context + drawn_P // source.ids_BL.shape[1]
        self._drawn.append(DrawnContexts(around.ids_MW, fires_PF, context_P))

    def _add_profiles(
        self, drawn_N: t.Tensor, token_M: t.Tensor, feature_M: t.Tensor, value_M: t.Tensor
    ) -> None:
        per_token_N = token_M.bincount(minlength=len(drawn_N)) * drawn_N
        drawn_N = drawn_N & (self._profile_entries + per_token_N.cumsum(0) <= _PROFILE_ENTRIES)
        row_N, keep_M = drawn_N.cumsum(0) - 1, drawn_N[token_M]
        places = row_N[token_M[keep_M]].int().numpy(), feature_M[keep_M].int().numpy()
        shape = int(drawn_N.sum()), self.dictionary.dict_size
        self._profiles.append(csr_matrix((value_M[keep_M].numpy(), places), shape))
        self._profile_entries += int(keep_M.sum())

    def statistics(self) -> FeatureStatistics:
        """The statistics of the batches added until now. Raises TextError if they have no token."""
        if not self._tokens:
            raise TextError(
                "the text has no token to measure on: expected at least one; give a longer text"
            )
        is_alive_F = self._count_F > 0
        nan_F = t.full_like(self._highest_F, t.nan)
        is_positive_F = self._highest_F >= -self._lowest_F
        largest_F = t.where(is_positive_F, self._highest_F, self._lowest_F)
        profiles_NF: Any = vstack(self._profiles, format="csr")
        return FeatureStatistics(
            tokens=self._tokens,
            count_F=self._count_F.clone(),
            max_F=t.where(is_alive_F, largest_F, nan_F),
            mean_F=t.where(is_alive_F, (self._sum_F / self._count_F).float(), nan_F),
            histogram_FH=self._histogram.counts_FH.clone(),
            bin_width_F=self._histogram.width_F,
            negative_F=self._negative_F.clone(),
            top=self._top.contexts(),
            sampled=self._sampled.contexts(by_value=True),
            drawn=DrawnContexts(*map(t.cat, zip(*self._drawn, strict=True))),
            profiles_NF=profiles_NF,
        )


def _marked(n: int, places: t.Tensor) -> t.Tensor:
    return t.zeros(n, dtype=t.bool).index_fill_(0, places, True)


def require_finite(activations: t.Tensor) -> None:
    """Raise NonFiniteError if activations of an SAE's features are NaN or infinite."""
    if not activations.isfinite().all():
        raise NonFiniteError(
            "the SAE's features are NaN or infinite: expected finite numbers; its ae.pt is "
            "damaged, or it was trained on activations of another scale: train it again"
        )


def _first_largest(group_M: t.Tensor, value_M: t.Tensor, token_M: t.Tensor) -> t.Tensor:
    """Whether each entry is its group's largest. The first one wins ties."""
    n = int(group_M.max()) + 1 if len(group_M) else 0
    largest = t.full((n,), -t.inf).scatter_reduce_(0, group_M, value_M, "amax")
    is_largest_M = value_M == largest[group_M]
    first = t.full((n,), 1 << 62, dtype=t.long)
    first.scatter_reduce_(0, group_M[is_largest_M], token_M[is_largest_M], "amin")
    return is_largest_M & (token_M == first[group_M])


class GrowingHistograms:
    """Counts of positive values in H bins per feature. A bin's width is a power of two.

    A value beyond a feature's last bin doubles the width of its bins, and neighbouring bins are
    merged. So the counts are those that the final widths would have given from the start.
    """

    def __init__(self, n_features: int, bins: int):
        self.counts_FH = t.zeros(n_features, bins, dtype=t.long)
        self._exponent_F = t.full((n_features,), _NO_EXPONENT, dtype=t.long)

    @property
    def width_F(self) -> t.Tensor:
        """The width of each feature's bins; 0 before its first positive value."""
        return t.where(self._exponent_F == _NO_EXPONENT, 0.0, t.exp2(self._exponent_F.float()))

    def add(self, feature_M: t.Tensor, value_M: t.Tensor, max_F: t.Tensor) -> None:
        """Count values.

        Arguments:
            feature_M: the feature of each value.
            value_M: the values.
            max_F: each feature's largest value until now, these included.
        """
        bins = self.counts_FH.shape[1]
        # bins * 2^e > max: the largest value is in a bin, not on the last edge.
        needed_F = (max_F.clamp_min(1e-30).double() / bins).log2().floor().long() + 1
        needed_F = t.where(max_F > 0, needed_F, _NO_EXPONENT)
        is_new_F = self._exponent_F == _NO_EXPONENT
        shift_F = t.where(is_new_F, 0, needed_F - self._exponent_F)
        self._exponent_F = t.maximum(self._exponent_F, needed_F)
        while (grows_F := shift_F > 0).any():
            merged = reduce(self.counts_FH[grows_F], "f (h pair) -> f h", "sum", pair=2)
            self.counts_FH[grows_F] = t.nn.functional.pad(merged, (0, bins - merged.shape[1]))
            shift_F -= 1
        bin_M = (value_M / self.width_F[feature_M]).long()
        flat = self.counts_FH.view(-1)
        flat.index_add_(0, feature_M * bins + bin_M, t.ones_like(bin_M))


def ranking_of(statistics: FeatureStatistics) -> list[int]:
    """The live features, those that fire most consistently on one and the same token first.

    A feature that fires on one token is the easiest to interpret. Those selected too rarely to tell
    come last. Ties are broken by frequency: the closer to three tokens in a thousand, the earlier.
    """
    kinds = (statistics.top, statistics.sampled)
    tokens_FT = t.cat([kind.ids_FTW[:, :, kind.at] for kind in kinds], 1)
    frequency = statistics.frequency_F.tolist()
    is_rare = (statistics.count_F < LEAST_SELECTIONS).tolist()

    def key(feature: int) -> tuple[bool, float, float, int]:
        there = [token for token in tokens_FT[feature].tolist() if token >= 0]
        agreement = Counter(there).most_common(1)[0][1] / len(there)
        distance = abs(math.log(frequency[feature] / 0.003))
        return is_rare[feature], -agreement, distance, feature

    return sorted(statistics.alive_F.nonzero().flatten().tolist(), key=key)


# --- attention sinks
#
# Tokens whose activations are so large that they would be on every feature's page. Models such as
# Llama, Qwen and SmolLM2 have them at the first token of each context. Reading leaves them out, see
# `Inputs.contexts`.


@dataclass(frozen=True)
class Sinks:
    """The sinks of a text."""

    tokens: int
    where: str
    """Which they are, in words."""
    norm_ratio: float
    """The largest norm over the median."""


class SinkFinder:
    """Says which tokens of batches were left out as attention sinks.

    Arguments:
        tokenizer: the language model's.
    """

    def __init__(self, tokenizer: Any):
        self.tokens = 0
        self._tokenizer = tokenizer
        self._norm_ratio = 0.0
        self._at_position: Counter[int] = Counter()
        self._sinks: list[tuple[int, int]] = []

    def add(self, batch: ContextBatch) -> None:
        """Note a batch's sinks."""
        is_sink_BL = batch.is_sink_BL
        read_BL = batch.wanted_BL | is_sink_BL
        position_BL = t.arange(read_BL.shape[1]).expand_as(read_BL)
        self._at_position.update(position_BL[read_BL].tolist())
        if is_sink_BL.any():
            self.tokens += int(is_sink_BL.sum())
            ids_BL = batch.input_ids_BL.cpu()
            pairs = position_BL[is_sink_BL].tolist(), ids_BL[is_sink_BL].tolist()
            self._sinks += zip(*pairs, strict=True)
            norms_BL = norms(batch.x_BLD).cpu()
            ratio = norms_BL[is_sink_BL].max() / at(norms_BL, read_BL).median()
            self._norm_ratio = max(self._norm_ratio, float(ratio))

    def sinks(self) -> Sinks | None:
        """The sinks found; None if there are none."""
        if not self.tokens:
            return None
        words = _where(self._sinks, self._at_position, self._tokenizer)
        return Sinks(self.tokens, words, self._norm_ratio)


def _where(far: list[tuple[int, int]], at_position: Counter[int], tokenizer: Any) -> str:
    """The positions and tokens that account for most of the sinks, the most frequent first.

    Arguments:
        far: each sink's position in its context and its token id.
        at_position: how many tokens were read at each position.
    """
    parts = []
    while far and len(parts) < _SINKS_NAMED:
        position, n_there = Counter(position for position, _ in far).most_common(1)[0]
        token, n_such = Counter(token for _, token in far).most_common(1)[0]
        if n_there >= n_such:
            is_always = n_there >= 0.9 * at_position[position]
            parts.append(f"position {position} of {'each context' if is_always else 'contexts'}")
            far = [each for each in far if each[0] != position]
        else:
            parts.append(f"token {tokenizer.decode([token])!r}")
            far = [each for each in far if each[1] != token]
    return ", ".join(parts) + (f" and {len(far):,} others" if far else "")
