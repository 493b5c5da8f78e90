"""`Codes`: the activations of one SAE's features on one text, without the zeros.

    codes = encode([sae], contexts)[0]
    codes.to_scipy()                  # tokens x features
    codes.feature(7).contexts()       # where feature 7 is strongest

They are what evaluation, reproducibility, reports, explanations and exports are computed from. stored.py keeps them
beside an SAE.

Shapes: N tokens, C contexts of L tokens, M selections, D = activation_dim, F features.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from scipy.sparse import csc_matrix

from ..activations.rows import ContextBatch
from ..errors import TextError
from ..trainers.dictionaries import decoder_directions
from .contexts import FeatureOfCodes
from .encoding import Encoder, Totals


@dataclass(frozen=True)
class Reading:
    """Which tokens were encoded, in reading order."""

    ids_CL: np.ndarray
    """Token ids, int32; -1 at padding, 0 where they aren't known."""
    wanted_CL: np.ndarray
    """Whether each token was encoded: not at padding, nor at tokens that are left out."""
    sink_CL: np.ndarray
    """Whether each token was left out as an attention sink."""

    @cached_property
    def place_N(self) -> np.ndarray:
        """The place of each encoded token among all C x L, ascending."""
        return np.flatnonzero(self.wanted_CL)

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the ids and of which were encoded."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids_CL).tobytes())
        digest.update(np.ascontiguousarray(self.wanted_CL).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, repr=False)
class Codes:
    """What one SAE says of one text."""

    code_NF: Any
    """The activations, a csr_matrix of float32 without zeros: a row for each encoded token."""
    reading: Reading
    totals: Totals
    """What was summed while encoding. The KL and the measures of noise are in it if `has_all`."""
    rise_F: np.ndarray
    """Each feature's rise of the summed squared error where it is dropped, (F,), float64."""
    directions_FD: t.Tensor
    """What one unit of each feature adds to the reconstruction, float32, on the CPU."""
    has_all: bool = False
    """Whether `totals` have what needs the numbers of all features."""
    sae: str = ""
    """A hash of the SAE's weights, if known."""
    text: dict[str, Any] = field(default_factory=dict)
    """What was read: settings, and what is known of the files."""
    tokenizer: Any = None
    """The language model's, if known. It turns ids into text."""

    @property
    def tokens(self) -> int:
        """N."""
        return self.code_NF.shape[0]

    @property
    def n_features(self) -> int:
        """F."""
        return self.code_NF.shape[1]

    @property
    def k(self) -> int | None:
        """How many features the SAE keeps of a token; None if it has no k."""
        return self.totals.k

    def to_scipy(self) -> Any:
        """The activations, (N, F), a csr_matrix."""
        return self.code_NF

    def feature(self, number: int) -> FeatureOfCodes:
        """What one feature does on the text."""
        return FeatureOfCodes(self, number)

    @cached_property
    def by_feature(self) -> Any:
        """The activations by feature, then by token, a csc_matrix."""
        return csc_matrix(self.code_NF)

    @cached_property
    def count_F(self) -> np.ndarray:
        """At how many tokens each feature is selected, int64."""
        return np.diff(self.by_feature.indptr).astype(np.int64)

    @property
    def frequency_F(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected, float64."""
        return t.from_numpy(self.count_F).double() / self.tokens

    @cached_property
    def length_F(self) -> np.ndarray:
        """The length of what one unit of each feature writes, float32."""
        return self.directions_FD.norm(dim=1).numpy()

    @cached_property
    def energy_F(self) -> np.ndarray:
        """Each feature's activation energy: the sum over tokens of the squared length of what it writes, float64."""
        squares_M = self.by_feature.data.astype(np.float64) ** 2
        return self.summed(squares_M) * self.directions_FD.double().square().sum(1).numpy()

    def summed(self, values_M: np.ndarray) -> np.ndarray:
        """The sum over each feature's selections of something, in the order of `by_feature`: (F,), float64."""
        return np.bincount(self.column_M, values_M, self.n_features)

    @cached_property
    def column_M(self) -> np.ndarray:
        """The feature of each selection, in the order of `by_feature`."""
        return np.repeat(np.arange(self.n_features), self.count_F)

    def __repr__(self) -> str:
        alive = int((self.count_F > 0).sum())
        return (
            f"codes of {self.n_features:,} features, {alive:,} of them selected, on {self.tokens:,} tokens:"
            f" {self.code_NF.nnz:,} selections"
        )


def encode(
    dictionaries: Sequence[Dictionary],
    batches: Iterable[ContextBatch],
    *,
    with_all: bool = False,
    tokenizer: Any = None,
) -> list[Codes]:
    """Encode contexts with SAEs of one hook point, in one pass.

    Arguments:
        dictionaries: take raw activations.
        batches: the contexts, in reading order.
        with_all: sum what needs the numbers of all features, too, see `Encoder`.
        tokenizer: the language model's, for text of tokens.

    Raises: TextError if no token is encoded; NonFiniteError if an SAE's features are NaN or infinite.
    """
    encoders = [Encoder(sae, with_all=with_all) for sae in dictionaries]
    ids, wanted, sinks = [], [], []
    for batch in batches:
        ids.append(batch.input_ids_BL.cpu().numpy().astype(np.int32))
        wanted.append(batch.wanted_BL.cpu().numpy())
        sinks.append(batch.is_sink_BL.cpu().numpy())
        x_ND = batch.wanted_ND
        for encoder in encoders:
            encoder.add(x_ND)
    reading = Reading(_joined(ids, -1), _joined(wanted, False), _joined(sinks, False))
    if not len(reading.place_N):
        raise TextError(
            "the text has no token to measure on: expected at least one; give a longer text"
        )
    return [
        Codes(
            encoder.code_NF(),
            reading,
            encoder.totals,
            encoder.rise_F.cpu().numpy(),
            decoder_directions(encoder.dictionary),
            encoder.with_all,
            tokenizer=tokenizer,
        )
        for encoder in encoders
    ]


def _joined(parts: list[np.ndarray], fill: Any) -> np.ndarray:
    """Batches of contexts, one after the other, as wide as the widest."""
    width = max((part.shape[1] for part in parts), default=0)
    padded = [
        np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts
    ]
    return np.concatenate(padded) if padded else np.zeros((0, 0), dtype=np.int32)
