"""Encoding a text with SAEs: each SAE encodes each token once, in blocks of tokens.

    encoder = Encoder(sae)
    for x_ND in batches:            # raw activations, in reading order
        encoder.add(x_ND)
    encoder.code_NF()               # a csr_matrix

Everything that needs a reconstruction, or the numbers of all features, is summed in the same pass, so that no text is encoded
twice. Only the numbers of a block are dense: at most 4M of them.

Shapes: N tokens, n of a block, M selections, D = activation_dim, F features, K = k.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from scipy.sparse import csr_matrix, vstack

from ..errors import NonFiniteError
from ..trainers.dictionaries import (
    HasPosterior,
    PosteriorEncoder,
    SparseEncoder,
    TopKCode,
    as_input,
    decoder_directions,
    k_of,
    selects_top_k,
    sides,
    weights_by_feature,
)
from ..trainers.kernels.select import top_k
from ..trainers.parts import Selection
from ..trainers.sparse_sum import SparseSum
from ..trainers.step import largest_of_batch, ranking_key

_BLOCK_ELEMENTS = 1 << 22
"""The most activations (tokens x F), or numbers (selections x D), in memory at a time."""
_SPARSE_DENSITY = 1 / 8
"""The largest share of selected features for which a sparse product is the faster one."""
_UPSTREAMS = ("frac_variance_explained", "cossim", "l2_ratio", "l2_loss")


# --- what is summed


class NotMeasured(ArithmeticError):
    """A metric is not defined for these totals. The message says why."""


class LanguageModelLosses(NamedTuple):
    """Cross-entropies of a language model, nats per predicted token."""

    original: float
    reconstructed: float
    """The loss with the reconstruction in place of the activations."""
    zero: float
    """The loss with zeros in place of the activations."""
    tokens: int
    """Tokens predicted: all but the first of each document."""
    positions: int
    """Tokens of the documents."""
    left_alone: int
    """The number of these positions at which activations were not replaced, because training leaves such positions
    out."""


@dataclass
class Totals:
    """Sums over batches of raw activations, from which the metrics of one SAE are computed. For a transcoder, x is what it
    reconstructs."""

    activation_dim: int
    dict_size: int
    k: int | None
    """None for an SAE without one."""
    device: t.device
    norm_factor: float = 1.0
    """What activations were divided by in training."""
    tokens: int = 0
    squares: float = 0.0
    """Sum of ||x||^2."""
    residual: float = 0.0
    """Sum of ||x - x_hat||^2."""
    sums: dict[str, float] = field(default_factory=dict)
    """Further sums over tokens, by name. An average of a batch counts as often as the batch has tokens."""
    counted: dict[str, int] = field(default_factory=dict)
    """The number of tokens in each sum, by the same names."""
    kl: float | None = None
    """Sum over tokens of the KL over all features, nats. None for an SAE without a posterior."""
    residual_sampled: float | None = None
    """Sum of ||x - x_hat||^2 with codes drawn from the posterior. None for an SAE without one."""
    losses: LanguageModelLosses | None = None
    no_losses: str = ""
    """Why there are no losses; empty if they don't apply to these activations."""
    sum_D: t.Tensor = field(init=False)
    """Sum of x, (D,)."""
    selected_F: t.Tensor = field(init=False)
    """The number of tokens at which each feature was selected, (F,)."""

    def __post_init__(self):
        self.sum_D = t.zeros(self.activation_dim, dtype=t.float64, device=self.device)
        self.selected_F = t.zeros(self.dict_size, dtype=t.long, device=self.device)

    def summed(self) -> dict[str, Any]:
        """All that was summed while the text was encoded, by field: what an SAE's codes keep."""
        not_summed = ("activation_dim", "dict_size", "k", "device", "losses", "no_losses")
        return {
            name: getattr(self, name)
            for each in fields(self)
            if (name := each.name) not in not_summed
        }

    def add(self, x_BD: t.Tensor, x_hat_BD: t.Tensor, feature_M: t.Tensor) -> None:
        """Add a batch of activations, their reconstructions, and the feature of each selection."""
        self.tokens += len(x_BD)
        self.sum_D += x_BD.double().sum(0)
        self.selected_F += feature_M.bincount(minlength=self.dict_size)
        self.squares += float(x_BD.double().square().sum())
        self.residual += squared_residual(x_BD, x_hat_BD)

    def add_mean(self, name: str, value: t.Tensor | float, tokens: int) -> None:
        """Add an average over some tokens."""
        self.sums[name] = self.sums.get(name, 0.0) + float(value) * tokens
        self.counted[name] = self.counted.get(name, 0) + tokens

    @cached_property
    def total_variance(self) -> float:
        """Sum of ||x - mean x||^2. Raises NotMeasured if it is 0, up to rounding."""
        variance = self.squares - float((self.sum_D**2).sum()) / self.tokens
        if variance <= 1e-12 * self.squares:
            raise NotMeasured(
                f"the activations of the {self.tokens} tokens measured have no variance"
            )
        return variance

    def mean(self, name: str) -> float | None:
        """The mean over tokens of one of `sums`; None if it was not gathered."""
        return self.sums[name] / self.counted[name] if name in self.sums else None

    @cached_property
    def firing_rate_F(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected."""
        return self.selected_F.double() / self.tokens


def squared_residual(x_BD: t.Tensor, x_hat_BD: t.Tensor) -> float:
    """Sum of ||x - x_hat||^2 over a batch."""
    return float((x_BD - x_hat_BD).double().square().sum())


# --- what is encoded


class Block(NamedTuple):
    """Some tokens and an SAE's code of them."""

    x_nD: t.Tensor
    """The activations that are encoded, in the SAE's dtype."""
    y_nD: t.Tensor
    """Those that are reconstructed: the same, except for a transcoder."""
    token_M: t.Tensor
    """The token of each selection. Selections are sorted by token, then by feature."""
    feature_M: t.Tensor
    value_M: t.Tensor
    """The activation of each selection, in the SAE's dtype; never 0."""
    selection: "tuple[TopKCode, t.Tensor] | None"
    """The K selected features, and the means of all features, (n, F). None for an SAE that doesn't select K, or if the
    measures of noise aren't needed."""
    posterior: Any
    """The features' posterior; None if there is none, or if the measures of noise aren't needed."""


def encoded(dictionary: Dictionary, x_ND: t.Tensor, *, with_all: bool = False) -> Iterator[Block]:
    """Encode raw activations block by block.

    Arguments:
        x_ND: (N, 2D) for a transcoder, see `sides`. So it is for `Encoder`.
        with_all: also give what the measures of noise need.

    Raises: NonFiniteError if the SAE's features are NaN or infinite.
    """
    rows = max(1, _BLOCK_ELEMENTS // dictionary.dict_size)
    for x_nD in as_input(dictionary, x_ND).split(rows):
        yield _block(dictionary, x_nD, with_all)


def _block(dictionary: Any, x_nD: t.Tensor, with_all: bool) -> Block:
    x_nD, y_nD = sides(dictionary, x_nD)
    code = mu_nF = None
    posterior: Any = None
    encode = dictionary.encode
    if with_all and isinstance(dictionary, PosteriorEncoder):
        posterior = dictionary.posterior(x_nD)
        code, mu_nF = dictionary.code_of(posterior), posterior.mu
    elif not with_all and isinstance(dictionary, SparseEncoder):
        code = dictionary.sparse_encode(x_nD)
    elif selects_top_k(dictionary):
        _, values_nK, indices_nK, mu_nF = encode(x_nD, return_topk=True)
        code = TopKCode(values_nK, indices_nK)
    elif with_all and isinstance(dictionary, HasPosterior):
        posterior = dictionary.posterior(x_nD)
    if code is None:
        f_nF = encode(x_nD)
        token_M, feature_M = f_nF.nonzero(as_tuple=True)
        value_M = f_nF[token_M, feature_M]
    elif code.rows is not None:
        value_M, feature_M, token_M = code.values, code.indices, code.rows
    else:
        feature_nK, order_nK = code.indices.sort(dim=1)
        value_nK = code.values.gather(1, order_nK)
        is_selected_nK = value_nK != 0
        token_M = is_selected_nK.nonzero()[:, 0]
        feature_M, value_M = feature_nK[is_selected_nK], value_nK[is_selected_nK]
    if not value_M.isfinite().all():
        raise NonFiniteError(
            "the SAE's features are NaN or infinite: expected finite numbers; its ae.pt is "
            "damaged, or it was trained on activations of another scale: train it again"
        )
    selection = None if code is None or mu_nF is None else (code, mu_nF)
    return Block(x_nD, y_nD, token_M, feature_M, value_M, selection, posterior)


class SparseDecoder:
    """Computes reconstructions from the selections alone.

    Arguments:
        dictionary: an SAE, whose `decode` is linear.
    """

    @t.no_grad()
    def __init__(self, dictionary: Any):
        self._dictionary = dictionary
        _, weight_FD = weights_by_feature(dictionary)
        self._weight_FD = weight_FD.detach().contiguous()
        self._bias_D = dictionary.decode(self._weight_FD.new_zeros(1, dictionary.dict_size))[0]

    def decode(self, block: Block) -> tuple[t.Tensor, t.Tensor]:
        """The reconstruction x_hat, (n, D), and the product of each selection's direction d with the error e = x - x_hat (of
        a transcoder y - y_hat), e . d, (M,), float32."""
        n, n_features = len(block.x_nD), self._dictionary.dict_size
        is_sparse = len(block.value_M) <= _SPARSE_DENSITY * n * n_features
        if is_sparse and block.value_M.dtype in (t.float32, t.float64):
            counts_n = block.token_M.bincount(minlength=n)
            starts_n = counts_n.cumsum(0) - counts_n
            selected = SparseSum(block.feature_M, block.value_M, self._weight_FD, starts_n)
            x_hat_nD = selected.sum_BD + self._bias_D
            if not len(block.value_M):
                return x_hat_nD, block.value_M.float()
            return x_hat_nD, selected.products_with(block.y_nD - x_hat_nD).float()
        f_nF = block.x_nD.new_zeros(n, n_features)
        f_nF[block.token_M, block.feature_M] = block.value_M
        x_hat_nD = self._dictionary.decode(f_nF)
        error_nD = block.y_nD.float() - x_hat_nD.float()
        step = max(1, _BLOCK_ELEMENTS // error_nD.shape[1])
        pairs = zip(block.token_M.split(step), block.feature_M.split(step), strict=True)
        parts = [(error_nD[one] * self._weight_FD[other].float()).sum(1) for one, other in pairs]
        return x_hat_nD, t.cat(parts)


class Encoder:
    """Encodes a text with one SAE, batch by batch.

    Arguments:
        dictionary: takes raw activations.
        norm_factor: what training divided activations by.
        with_all: also sum what needs the numbers of all features: the KL, and the effect of noise on the selection and the
            reconstruction. It takes about as long as everything else.
        keep: keep the selections. Otherwise, only `totals` are available afterwards.
        seed: seeds the noise.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        norm_factor: float = 1.0,
        *,
        with_all: bool = False,
        keep: bool = True,
        seed: int = 0,
    ):
        self.dictionary: Any = dictionary
        device = next(dictionary.parameters()).device
        size = dictionary.activation_dim, dictionary.dict_size
        self.totals = Totals(*size, k_of(dictionary), device, norm_factor)
        self.with_all = with_all
        self._decoder = SparseDecoder(dictionary)
        self._length2_F = decoder_directions(dictionary).square().sum(1).to(device)
        self.ablation_error_F = t.zeros(size[1], dtype=t.double, device=device)
        """How much the summed squared error rises when a feature is ablated, (F,): the sum over its selections of
        |e + f d|^2 - |e|^2."""
        self._keep = keep
        self._parts: list[csr_matrix] = []
        self._generator = t.Generator(device).manual_seed(seed)

    @t.no_grad()
    def add(self, x_ND: t.Tensor) -> None:
        """Encode the next batch of raw activations, (N, D), float32, N >= 1, on any device.

        Raises: NonFiniteError if the SAE's features are NaN or infinite.
        """
        x_ND = x_ND.to(self.totals.device)
        x_hats, selected, sizes = [], 0, 0.0
        for block in encoded(self.dictionary, x_ND, with_all=self.with_all):
            x_hat_nD, product_M = self._decoder.decode(block)
            value_M = block.value_M.float()
            rise_M = value_M * (value_M * self._length2_F[block.feature_M] + 2 * product_M)
            self.ablation_error_F.index_add_(0, block.feature_M, rise_M.double())
            x_hats.append(x_hat_nD.to(x_ND))
            if self._keep:
                self._parts.append(as_csr(block, self.dictionary.dict_size))
            selected += len(value_M)
            sizes += float(value_M.double().abs().sum())
            self.totals.add(block.y_nD.to(x_ND), x_hats[-1], block.feature_M)
            if self.with_all:
                self._add_noise(block)
        n = len(x_ND)
        self.totals.add_mean("l0", selected / n, n)
        self.totals.add_mean("l1_loss", sizes / n, n)
        self._add_upstreams(sides(self.dictionary, x_ND)[1], t.cat(x_hats))

    def _add_upstreams(self, x_ND: t.Tensor, x_hat_ND: t.Tensor) -> None:
        """Add upstream's metrics of a batch. Its variances are undefined for a single token."""
        if len(x_ND) > 1 or not self.totals.counted.get(_UPSTREAMS[0]):
            from dictionary_learning.evaluation import evaluate as upstream_evaluate

            done = _KnownOutputs(1, (x_hat_ND, x_ND.new_zeros(len(x_ND), 1)))
            theirs = upstream_evaluate(done, iter([x_ND]), device=str(x_ND.device))
            for name in _UPSTREAMS:
                self.totals.add_mean(name, theirs[name], len(x_ND))

    def _add_noise(self, block: Block) -> None:
        """Add the KL, and the effects of the posterior's noise and of noise of a fixed size."""
        sae, totals, n = self.dictionary, self.totals, len(block.x_nD)
        if (posterior := block.posterior) is not None:
            totals.kl = (totals.kl or 0.0) + float(posterior.kl.sum())
            totals.add_mean("std", posterior.std.mean(), n)
            if posterior.noise_variance is not None:
                totals.add_mean("noise_variance", posterior.noise_variance.mean(), n)
            x_hat_nD = self._sampled_reconstruction(block)
            residual = squared_residual(block.y_nD, x_hat_nD)
            totals.residual_sampled = (totals.residual_sampled or 0.0) + residual
        if block.selection is None or not block.selection[0].values.any():
            return
        code, mu_nF = block.selection
        rms = code.values[code.values != 0].square().mean().sqrt()
        noises = {"stability_rms": (mu_nF, 0.1 * rms)}
        if posterior is not None:
            noises["stability_sigma"] = mu_nF, posterior.std
        selected = self._selected(mu_nF) if getattr(sae, "over_batch", False) else code
        for name, (added_to_nF, scale) in noises.items():
            z_nF = t.empty_like(mu_nF).normal_(generator=self._generator)
            z_nF = ranking_key(
                z_nF.mul_(scale).add_(added_to_nF), getattr(sae, "select_by", "value")
            )
            totals.add_mean(name, overlap(selected, self._selected(z_nF), mu_nF.shape[1]), n)

    def _selected(self, keys_nF: t.Tensor) -> TopKCode:
        """What the SAE selects by these keys: K of each token, or as many on average."""
        sae = self.dictionary
        if getattr(sae, "over_batch", False):
            found = largest_of_batch(keys_nF, int(sae.k))
            return TopKCode(found.keys, found.indices, found.rows)
        # Without noise, as a point has none, a ReLU leaves ties.
        rectified = bool(getattr(sae, "rectify", False))
        return TopKCode(*top_k(keys_nF, int(sae.k), rectified=rectified))

    def _sampled_reconstruction(self, block: Block) -> t.Tensor:
        """The reconstruction from a sample of the posterior."""
        sae = self.dictionary
        if not isinstance(sae, PosteriorEncoder):
            sampled_nF = sae.encode(block.x_nD, sample=True, generator=self._generator)
            return sae.decode(sampled_nF)
        code = sae.drawn_from(block.posterior, self._generator)
        n, k = code.indices.shape
        token_M = t.arange(n, device=code.indices.device).repeat_interleave(k)
        token_M = token_M if code.rows is None else code.rows.flatten()
        drawn = block._replace(
            token_M=token_M, feature_M=code.indices.flatten(), value_M=code.values.flatten()
        )
        return self._decoder.decode(drawn)[0]

    def code_NF(self) -> csr_matrix:
        """The code of all tokens so far, a csr_matrix of float32 without explicit zeros: a row for each, features ascending."""
        if len(self._parts) > 1:
            self._parts = [csr_matrix(vstack(self._parts, format="csr"))]
        return self._parts[0]


def overlap(one: TopKCode, other: TopKCode, n_features: int) -> t.Tensor:
    """The Jaccard index of what two codes select of a token, the mean over tokens; of codes of all tokens together, of all
    that they select. 0-dim."""
    in_other_nF = Selection(other.indices, other.values, rows=other.rows).spread(
        t.ones_like(other.indices, dtype=t.bool), n_features
    )
    common_nK = Selection(one.indices, one.values, rows=one.rows).of(in_other_nF)
    common = common_nK.sum(1) if one.rows is None else common_nK.sum()
    total = common_nK.shape[1] if one.rows is None else common_nK.numel()
    return (common / (2 * total - common)).mean()


class _KnownOutputs(NamedTuple):
    """Takes the SAE's place in upstream's `evaluate` and returns known outputs, so that it isn't run again."""

    dict_size: int
    outputs: tuple[t.Tensor, t.Tensor]

    def __call__(self, x: t.Tensor, output_features: bool) -> tuple[t.Tensor, t.Tensor]:
        return self.outputs


def as_csr(block: Block, n_features: int) -> csr_matrix:
    """The code of a block, a row for each token."""
    n = len(block.x_nD)
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(block.token_M.bincount(minlength=n).cpu().numpy(), out=starts[1:])
    value_M = block.value_M.float().cpu().numpy()
    return csr_matrix((value_M, block.feature_M.int().cpu().numpy(), starts), (n, n_features))
