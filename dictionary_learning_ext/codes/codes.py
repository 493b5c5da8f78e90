"""`Codes`: the activations of one SAE's features on one text, without the zeros.

    codes = encode([sae], contexts)[0]
    codes.to_scipy()                  # tokens x features
    codes.feature(7).contexts()       # where feature 7 is strongest

Evaluation, reproducibility, reports and exports are computed from them. They are kept in one file in `codes/`
beside the SAE, so that the next command doesn't encode the text again. The file is written atomically. A file of
another SAE or text is ignored and replaced.

Shapes: N tokens, C contexts of L tokens, M selections, D = activation_dim, F features.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from inspect import getfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.sparse import csc_matrix, csr_matrix
from torch.nn import functional

from ..activations.inputs import in_batches
from ..activations.language_models import load_tokenizer
from ..activations.rows import ContextBatch
from ..activations.stored import UNKNOWN
from ..config.run import RunConfig
from ..errors import CheckpointError, LanguageModelError, TextError, first_line
from ..run_folder.files import CODES, replacing
from ..run_folder.identity import (
    differences,
    hash_of_definitions,
    measured_on,
    parts_of,
    sources_of,
)
from ..run_folder.sae_folder import find_sae
from ..run_folder.weights import load_sae
from ..trainers.dictionaries import decoder_directions, k_of, sides
from .contexts import (
    KeptContext,
    Reading,
    TopContext,
    TopContexts,
    contexts_at,
    strongest_rows,
    token_text,
)
from .encoding import Encoder, Totals

logger = logging.getLogger(__name__)

KIND_OF = 40_000
"""The tokens with which directions are compared, see `Codes.token_cosine_F`."""
_TOKENS_AT_ONCE = 8192
_TOTALS = "totals."
"""The prefix of the names of the tensors of `Totals` in a file."""


class FeatureAt(NamedTuple):
    """A feature that is selected at a token."""

    feature: int
    activation: float


class FeatureOfCodes:
    """One feature of `Codes`."""

    def __init__(self, codes: "Codes", number: int):
        if not 0 <= number < codes.n_features:
            raise IndexError(f"feature {number}: the SAE has {codes.n_features}")
        self.codes, self.number = codes, number

    @property
    def activations(self) -> np.ndarray:
        """Its activations where it is selected, in reading order, float32."""
        return self.codes.by_feature[:, self.number].data

    @property
    def firing_rate(self) -> float:
        """The share of the tokens at which it is selected."""
        return float(self.codes.firing_rate_F[self.number])

    @property
    def largest(self) -> float:
        """Its activation of the largest magnitude, with its sign; NaN if it was never selected."""
        return float(self.codes.largest_F[self.number])

    @property
    def error_share(self) -> float:
        """Its ablation error as a share of the error: how much the summed squared error rises when it is left out."""
        return float(self.codes.error_share_F[self.number])

    def contexts(self, n: int = 8) -> TopContexts | list[KeptContext]:
        """The n contexts in which it has its largest activations. Without a tokenizer, they have ids and no text."""
        reading, by_feature = self.codes.reading, self.codes.by_feature
        (rows_T,) = strongest_rows(reading, by_feature[:, [self.number]], n)
        kept = contexts_at(reading, by_feature, self.number, rows_T[rows_T >= 0])
        if (tokenizer := self.codes.tokenizer) is None:
            return kept
        return TopContexts(
            TopContext(**vars(one), tokens=[token_text(tokenizer, token) for token in one.ids])
            for one in kept
        )

    def __repr__(self) -> str:
        return f"feature {self.number}: selected at {self.firing_rate:.3%} of {self.codes.tokens:,} tokens"


@dataclass(frozen=True, repr=False)
class Codes:
    """One SAE's activations on one text, and sums over it."""

    code_NF: Any
    """The activations, a csr_matrix of float32 without explicit zeros: a row for each encoded token."""
    reading: Reading
    totals: Totals
    """Sums over the tokens, for metrics. The KL and the measures of noise are among them if `has_all`."""
    ablation_error_F: np.ndarray
    """Each feature's ablation error: how much the summed squared error rises when it is left out, (F,), float64."""
    directions_FD: t.Tensor
    """What one unit of each feature adds to the reconstruction, (F, D), float32, on the CPU."""
    token_cosine_F: np.ndarray
    """The largest cosine of each feature's direction with the activation of a token that is reconstructed, less the mean
    activation, of the first KIND_OF encoded tokens, (F,), float32."""
    has_all: bool = False
    """Whether `totals` hold the sums that need all features, not only the selected ones."""
    sae: str = ""
    """The `SAEFolder.hash`; empty if unknown."""
    text: dict[str, Any] = field(default_factory=dict)
    """What identifies the text, see `text_key`; empty if unknown."""
    tokenizer: Any = None
    """The language model's tokenizer; None if unknown."""

    @property
    def tokens(self) -> int:
        """The number of encoded tokens, N."""
        return self.code_NF.shape[0]

    @property
    def n_features(self) -> int:
        """The number of features, F."""
        return self.code_NF.shape[1]

    @property
    def k(self) -> int | None:
        """The number of features that the SAE keeps per token; None if it has no k."""
        return self.totals.k

    def to_scipy(self) -> Any:
        """The activations, (N, F), a csr_matrix."""
        return self.code_NF

    def feature(self, number: int) -> FeatureOfCodes:
        """One feature's activations and contexts."""
        return FeatureOfCodes(self, number)

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each encoded token, N, with leading spaces.

        Raises: TextError if the tokenizer isn't known.
        """
        if self.tokenizer is None:
            raise TextError(
                "the tokens are only known by their ids, reading.ids_CL",
                instead="load the language model's tokenizer, and use dataclasses.replace(codes, tokenizer=…)",
            )
        ids_N = self.reading.ids_CL.reshape(-1)[self.reading.place_N]
        text_of = {token: token_text(self.tokenizer, token) for token in {*ids_N.tolist()}}
        return [text_of[token] for token in ids_N.tolist()]

    def features_at(self, position: int, n: int = 5) -> list[FeatureAt]:
        """The n features of largest magnitude at a token, the largest first; fewer if fewer are selected.

        Arguments:
            position: the token's place among the encoded tokens, as in `token_texts`.

        Raises: IndexError if there is no such token.
        """
        if not -self.tokens <= position < self.tokens:
            raise IndexError(f"position {position}: the text has {self.tokens} tokens")
        start, end = self.code_NF.indptr[position % self.tokens :][:2]
        features, values = self.code_NF.indices[start:end], self.code_NF.data[start:end]
        order = np.argsort(-np.abs(values), kind="stable")[:n]
        return [FeatureAt(int(features[i]), float(values[i])) for i in order]

    @cached_property
    def by_feature(self) -> Any:
        """The activations as a csc_matrix: sorted by feature, then by token."""
        return csc_matrix(self.code_NF)

    @cached_property
    def count_F(self) -> np.ndarray:
        """The number of tokens at which each feature is selected, (F,), int64."""
        return np.diff(self.by_feature.indptr).astype(np.int64)

    @property
    def firing_rate_F(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected, (F,), float64."""
        return self.totals.firing_rate_F

    @cached_property
    def largest_F(self) -> t.Tensor:
        """(F,), the activation of the largest magnitude, with its sign; NaN for a feature that was never selected."""
        largest_F, is_alive_F = np.full(self.n_features, np.nan, np.float32), self.count_F > 0
        if is_alive_F.any():
            value_M, starts_F = self.by_feature.data, self.by_feature.indptr[:-1][is_alive_F]
            highest, lowest = (by.reduceat(value_M, starts_F) for by in (np.maximum, np.minimum))
            largest_F[is_alive_F] = np.where(highest >= -lowest, highest, lowest)
        return t.from_numpy(largest_F)

    @property
    def error_share_F(self) -> np.ndarray:
        """Each feature's ablation error as a share of the summed squared error, (F,), float64."""
        return self.ablation_error_F / self.totals.residual

    @cached_property
    def energy_F(self) -> np.ndarray:
        """Each feature's energy, (F,), float64: the sum over tokens of its squared activation times its squared length."""
        squares_M = self.by_feature.data.astype(np.float64) ** 2
        return self.summed(squares_M) * self.directions_FD.double().square().sum(1).numpy()

    def residual_of(self, is_in_F: np.ndarray) -> float:
        """The summed squared error of the reconstruction by some features alone, (F,), with the decoder and its bias as they are.

        Leaving out the set S of features adds the sum of f d over S to the error e of each token. With f d . e from `ablation_error_F`,

            |e + sum f d|^2 = |e|^2 + sum (ablation error - |f d|^2) + |sum f d|^2        sums over S
        """
        left_out = np.flatnonzero(~is_in_F)
        code_NS = csr_matrix(self.by_feature[:, left_out])
        directions_SD = self.directions_FD.numpy()[left_out]
        residual = self.totals.residual + float(
            (self.ablation_error_F - self.energy_F)[left_out].sum()
        )
        for start in range(0, self.tokens, _TOKENS_AT_ONCE):
            lost_nD = code_NS[start : start + _TOKENS_AT_ONCE] @ directions_SD
            residual += float(np.square(lost_nD, dtype=np.float64).sum())
        return residual

    def summed(self, values_M: np.ndarray) -> np.ndarray:
        """The sum of values over each feature's selections, (F,), float64. The values are in the order of `by_feature`."""
        return np.bincount(self.column_M, values_M, self.n_features)

    @cached_property
    def column_M(self) -> np.ndarray:
        """The feature of each selection, (M,), in the order of `by_feature`."""
        return np.repeat(np.arange(self.n_features), self.count_F)

    @classmethod
    def load(cls, folder: str | Path) -> "Codes":
        """The codes that are kept beside a named SAE, with the language model's tokenizer.

        They have no tokenizer if the activations were the user's own, or if the language model can't be found, which logs a
        warning.

        Arguments:
            folder: the name of the SAE, see run_folder/sae_names.py.

        Raises: CheckpointError if there are no codes, or they are of other weights.
        """
        sae = find_sae(folder)
        codes = kept_codes(sae.results, load_sae(sae), sae.hash)
        if codes is None:
            raise CheckpointError(
                f"{folder}: there are no codes of this SAE",
                instead="`vsae report` keeps them, or encode_text in Python",
            )
        model = codes.text["model"]
        if model == UNKNOWN:
            return codes
        try:
            return replace(codes, tokenizer=load_tokenizer(model))
        except LanguageModelError as error:
            logger.warning("tokens are shown as ids: %s", first_line(error))
            return codes

    def __repr__(self) -> str:
        alive = int((self.count_F > 0).sum())
        return (
            f"codes of {self.n_features:,} features, {alive:,} of them selected, on {self.tokens:,} tokens:"
            f" {self.code_NF.nnz:,} selections"
        )


def encode(
    dictionaries: Sequence[Dictionary], batches: Iterable[ContextBatch], *, tokenizer: Any = None
) -> list[Codes]:
    """Encode contexts with SAEs of one hook point, in one pass.

    Arguments:
        dictionaries: take raw activations.
        batches: the contexts, in reading order.
        tokenizer: the language model's, to show tokens as text.

    Raises: TextError if no token is encoded; NonFiniteError if an SAE's features are NaN or infinite.
    """
    return [*encode_each(dictionaries, batches, tokenizer=tokenizer)]


def encode_each(
    dictionaries: Sequence[Dictionary],
    batches: Iterable[ContextBatch],
    *,
    with_all: bool = False,
    tokenizer: Any = None,
) -> Iterator[Codes]:
    """Like `encode`, but yields one SAE's codes at a time, so that the caller can free them. `with_all`: see `Encoder`."""
    encoders = [Encoder(sae, with_all=with_all) for sae in dictionaries]
    parts: list[Reading] = []
    first: list[t.Tensor] = []
    left = KIND_OF

    def noted() -> Iterator[ContextBatch]:
        for batch in batches:
            parts.append(Reading.of(batch))
            yield batch

    # in the batches of a run's own evaluation, for bit-identical numbers
    for x_ND in in_batches(noted()):
        first.append(sides(dictionaries[0], x_ND[:left])[1])
        left -= len(first[-1])
        for encoder in encoders:
            encoder.add(x_ND)
    if not first:
        raise TextError(
            "the text has no token to measure on: expected at least one; give a longer text"
        )
    reading = Reading.joined(parts)
    tokens_ND = t.cat(first)
    tokens_ND -= tokens_ND.mean(0)
    while encoders:
        encoder = encoders.pop(0)
        directions_FD = decoder_directions(encoder.dictionary)
        yield Codes(
            encoder.code_NF(),
            reading,
            encoder.totals,
            encoder.ablation_error_F.cpu().numpy(),
            directions_FD,
            _largest_cosine(directions_FD, tokens_ND),
            encoder.with_all,
            tokenizer=tokenizer,
        )


def _largest_cosine(directions_FD: t.Tensor, tokens_ND: t.Tensor) -> np.ndarray:
    """(F,), the largest cosine of each direction with a row of the others."""
    unit_FD = functional.normalize(directions_FD, dim=1).to(tokens_ND)
    parts = (functional.normalize(rows_nD, dim=1) for rows_nD in tokens_ND.split(_TOKENS_AT_ONCE))
    largest = [(unit_FD @ unit_nD.T).amax(1) for unit_nD in parts]
    return t.stack(largest).amax(0).cpu().numpy()


# --- on the disk


def text_key(run: RunConfig, tokens: int) -> dict[str, Any]:
    """What determines the tokens that are read and their activations, as JSON content: settings, the content of files (see
    `sources_of`), and the versions of the libraries that compute activations.

    Arguments:
        tokens: how many are read, at most.
    """
    settings = measured_on(run)
    versions = {name: version(name) for name in ("torch", "transformers")}
    found = settings | {"tokens": tokens, "files": sources_of(settings), "versions": versions}
    return json.loads(json.dumps(found, default=str))


def parts_of_codes(text: dict[str, Any], **content: str) -> dict[str, Any]:
    """What codes are of: the parts of their text by its key, and hashes of others, e.g. of the weights."""
    settings = {**text}
    return parts_of(settings, settings.pop("files", {}) | content)


def _definitions() -> str:
    """The hash of what defines codes and their totals, and how they are kept."""
    return hash_of_definitions(getfile(Encoder), getfile(Codes))


def keep_codes(folder: Path, codes: Codes) -> Path:
    """Write codes beside an SAE, replacing any old ones.

    Arguments:
        folder: the SAE's folder of results.

    Raises: CheckpointError if they can't be written.
    """
    path = folder / CODES
    sums = codes.totals.summed()
    tensors = {name: one for name, one in sums.items() if isinstance(one, t.Tensor)}
    content = {
        "value_M": codes.code_NF.data,
        "feature_M": codes.code_NF.indices.astype(np.int32),
        "selected_N": np.diff(codes.code_NF.indptr).astype(np.int32),
        "ids_CL": codes.reading.ids_CL,
        "wanted_CL": codes.reading.wanted_CL,
        "sink_CL": codes.reading.sink_CL,
        "ablation_error_F": codes.ablation_error_F,
        "token_cosine_F": codes.token_cosine_F,
        **{f"{_TOTALS}{name}": one.cpu().numpy() for name, one in tensors.items()},
    }
    about = {
        "definitions": _definitions(),
        "sae": codes.sae,
        "text": codes.text,
        "has_all": codes.has_all,
        "sums": {name: one for name, one in sums.items() if name not in tensors},
    }
    with replacing(path) as temporary:
        about["hash"] = _hash_of(content, about)
        # save_file would replace the temporary file by another one.
        temporary.write_bytes(save(content, {"codes": json.dumps(about)}))
    return path


def kept_codes(
    folder: Path,
    dictionary: Dictionary,
    sae: str,
    text: dict[str, Any] | None = None,
    *,
    with_all: bool = False,
) -> Codes | None:
    """The codes of an SAE on a text that are kept beside it; None if there are none.

    Logs why stale codes are ignored: they are of another SAE, text or definition, or can't be read. What can't be hashed now,
    e.g. a cache that is gone, is known by its name.

    Arguments:
        folder: the SAE's folder of results.
        sae: its `SAEFolder.hash`.
        text: the key of the text, see `text_key`. None: any text.
        with_all: take only codes that have all sums of an evaluation.
    """
    path = folder / CODES
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["codes"])
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, as a safe_open can't be iterated
        if about["hash"] != _hash_of(content, about):
            raise ValueError("it is damaged")
        was = parts_of_codes(about["text"], weights=about["sae"], definitions=about["definitions"])
        now = parts_of_codes(text or {}, weights=sae, definitions=_definitions())
        if other := differences(was, now):
            logger.info("%s is not used: it is of other %s", path, ", ".join(other))
            return None
        if with_all and not about["has_all"]:
            logger.info("%s is not used: it lacks what only an evaluation measures", path)
            return None
        return _codes_in(content, about, dictionary)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("%s can't be read, and is not used: %s", path, first_line(error))
        return None


def _hash_of(content: dict[str, np.ndarray], about: dict[str, Any]) -> str:
    """SHA-256, in hex, of a file's arrays and metadata."""
    said = {name: value for name, value in about.items() if name != "hash"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, array in sorted(content.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _codes_in(
    content: dict[str, np.ndarray], about: dict[str, Any], dictionary: Dictionary
) -> Codes:
    """The codes in a file's arrays and metadata."""
    starts_N = np.concatenate([[0], np.cumsum(content["selected_N"], dtype=np.int64)])
    shape = len(content["selected_N"]), dictionary.dict_size
    totals = Totals(dictionary.activation_dim, shape[1], k_of(dictionary), t.device("cpu"))
    sums = {
        name.removeprefix(_TOTALS): t.from_numpy(one)
        for name, one in content.items()
        if name.startswith(_TOTALS)
    }
    vars(totals).update(about["sums"] | sums)
    return Codes(
        csr_matrix((content["value_M"], content["feature_M"], starts_N), shape),
        Reading(content["ids_CL"], content["wanted_CL"], content["sink_CL"]),
        totals,
        content["ablation_error_F"],
        decoder_directions(dictionary),
        content["token_cosine_F"],
        about["has_all"],
        about["sae"],
        about["text"],
    )
