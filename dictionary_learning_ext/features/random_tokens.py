"""Dictionaries of random tokens: how much comes back without training.

    saes = random_token_saes(x_ND, [(512, 16), (512, 16)])      # of different tokens
    codes = encode(saes, contexts)

A dictionary whose features are activations of random tokens comes back in another one of other tokens, as their texts share
words. A share that comes back says something at an equal FVE, above this.

Shapes: N tokens, D activation_dim, F features.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from inspect import getfile
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from scipy.linalg import solve

from ..activations.inputs import in_batches
from ..activations.rows import ContextBatch
from ..codes.codes import Codes, encode, parts_of_codes
from ..codes.encoding import Totals, as_csr, encoded
from ..config.run import Split
from ..errors import CheckpointError, TextError, UserError
from ..evaluation.folders import OpenedFolders
from ..run_folder.files import RANDOM_TOKENS, read_json, write_json
from ..run_folder.identity import hash_of_definitions, key_of
from ..run_folder.sae_folder import SAEFolder
from ..run_folder.schema import RANDOM_TOKENS_JSON
from ..trainers.data_start import token_directions
from ..trainers.variational_top_k import VariationalTopKTranscoder
from .agreement import PairOfSAEs
from .reproducibility import Numbers, reproducibility

logger = logging.getLogger(__name__)

TOKENS = 40_000
"""The training tokens from which they are drawn and fitted, at least."""
_TOKENS_PER_FEATURE = 8
_RIDGE = 1e-9
"""Of the mean of the diagonal. It matters only to features that never fire, whose equations are singular."""


def random_token_saes(
    x_ND: t.Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    twins: float | None = None,
    transcode: bool = False,
) -> list[Any]:
    """Dictionaries of random tokens, each of other tokens.

    The encoder's directions are the activations of F random tokens, less the mean, of norm 1. A code has the k largest
    products with an activation less the mean, those above 0. The decoder is the best linear one for all of x, and its bias the
    mean.

    Arguments:
        x_ND: activations of training tokens. Of a transcoder (N, 2D), see `sides`: the decoder is the best one for y.
        sizes: F and k of each dictionary.
        twins: leave out a token whose direction has a cosine of at least this with that of a token taken before.
        transcode: whether they are transcoders.

    Raises: TextError if there are too few tokens.
    """
    generator = t.Generator().manual_seed(seed)
    mean_D = x_ND.double().mean(0).float()
    n_sides = 2 if transcode else 1
    shares = t.randperm(len(x_ND), generator=generator).tensor_split(len(sizes))
    saes = []
    for (n_features, k), own_n in zip(sizes, shares, strict=True):
        own_ND = x_ND[own_n].chunk(n_sides, 1)[0]
        directions_FD = token_directions(own_ND, n_features, generator, twins=twins)
        if len(directions_FD) < n_features:
            raise TextError(
                f"{len(x_ND):,} training tokens give {len(directions_FD):,} features of random tokens: expected {n_features:,}"
            )
        saes.append(_fitted(directions_FD, k, x_ND, *mean_D.chunk(n_sides)))
    return saes


@t.no_grad()
def _fitted(
    directions_FD: t.Tensor,
    k: int,
    x_ND: t.Tensor,
    mean_D: t.Tensor,
    y_mean_D: t.Tensor | None = None,
) -> Any:
    """The dictionary with this encoder, whose decoder is the best for x by least squares; a transcoder with a mean of y, whose
    decoder is the best for y."""
    n_features, width = directions_FD.shape
    sae: Any = AutoEncoderTopK(width, n_features, k)
    bias_F = t.zeros(n_features)
    if y_mean_D is not None:
        sae = VariationalTopKTranscoder(width, n_features, k, posterior="point", rectify=True)
        bias_F, mean_D = -(directions_FD @ mean_D), y_mean_D
    sae.to(x_ND.device).encoder.weight.copy_(directions_FD)
    sae.encoder.bias.copy_(bias_F)
    sae.b_dec.copy_(mean_D)
    gram_FF, right_FD = np.zeros((n_features, n_features)), np.zeros((n_features, width))
    for block in encoded(sae, x_ND):
        code_nF = as_csr(block, n_features).astype(np.float64)
        gram_FF += (code_nF.T @ code_nF).toarray()
        right_FD += code_nF.T @ (block.y_nD - mean_D).double().cpu().numpy()
    gram_FF[np.diag_indices(n_features)] += _RIDGE * gram_FF.trace() / n_features
    decoder_FD = solve(gram_FF, right_FD, assume_a="pos", overwrite_a=True)
    sae.decoder.weight.copy_(t.from_numpy(decoder_FD.T))
    return sae


def random_tokens(
    opened: OpenedFolders | None,
    codes: Sequence[Codes],
    sae: SAEFolder,
    *,
    split: Split = "heldout",
    known: dict[str, Numbers | None] | None = None,
) -> Numbers | None:
    """How much of two dictionaries of random tokens comes back in the other.

    As a direction, the encoder's directions are compared: those of the tokens. The activations are read, unless the numbers
    are kept. Logs the seconds that it took.

    Arguments:
        opened: the SAEs' activations. None: only kept numbers are read.
        codes: of two SAEs or more on the text on which the dictionaries are compared. These have the sizes of the first two.
        sae: the numbers are kept beside it.
        split: that of the codes.
        known: those that were measured for other SAEs, by `_key_of`. These are added.

    Returns: None, with a warning, if the activations can't be read, or the text is too short.
    """
    if opened is None:
        return kept_random_tokens(codes, sae)
    known, key = {} if known is None else known, _key_of(codes)
    if key not in known:
        known[key] = _random_tokens(opened, codes, sae, split)
    return known[key]


def _random_tokens(
    opened: OpenedFolders, codes: Sequence[Codes], sae: SAEFolder, split: Split
) -> Numbers | None:
    keep = opened.keep and split == "heldout"
    if keep and (kept := kept_random_tokens(codes, sae)) is not None:
        return kept
    start = time.perf_counter()
    try:
        sizes = _sizes_of(codes)
        needed = max(TOKENS, _TOKENS_PER_FEATURE * sum(n_features for n_features, _ in sizes))
        rows = t.cat([*in_batches(opened.contexts("train", needed))])
        saes = random_token_saes(rows, sizes, transcode="target" in codes[0].text)
        numbers = come_back_of(saes, opened.contexts(split, codes[0].tokens))
    except UserError as error:
        logger.warning("what comes back of random tokens was not measured: %s", error)
        return None
    seconds = time.perf_counter() - start
    logger.info("two dictionaries of random tokens, to compare with, took %.1f s", seconds)
    if keep:
        try:
            write_json(sae.results / RANDOM_TOKENS, {"of": _key_of(codes), **numbers})
        except CheckpointError as error:
            logger.warning("what comes back of random tokens is not kept: %s", error)
    return numbers


def kept_random_tokens(codes: Sequence[Codes], sae: SAEFolder) -> Numbers | None:
    """What `random_tokens` has kept beside an SAE; None unless it is of this text and these sizes."""
    path = sae.results / RANDOM_TOKENS
    if not path.is_file():
        return None
    try:
        numbers = read_json(path, RANDOM_TOKENS_JSON)
    except CheckpointError as error:
        logger.warning("%s is not used: %s", path, error)
        return None
    return numbers if numbers.pop("of", "") == _key_of(codes) else None


def _sizes_of(codes: Sequence[Codes]) -> list[tuple[int, int]]:
    """F and k of the first two. For an SAE without k, its mean L0."""
    return [
        (one.n_features, one.k or max(1, round(one.code_NF.nnz / one.tokens))) for one in codes[:2]
    ]


def _key_of(codes: Sequence[Codes]) -> str:
    """What the numbers depend on."""
    sources = getfile(Codes), getfile(Totals), getfile(PairOfSAEs), __file__
    parts = parts_of_codes(codes[0].text, definitions=hash_of_definitions(*sources))
    return key_of(parts | {"sizes": _sizes_of(codes)})


def come_back_of(saes: Sequence[Any], contexts: Iterable[ContextBatch]) -> Numbers:
    """How much of two dictionaries of random tokens comes back in the other on some contexts."""
    codes = encode(saes, contexts)
    directions = {name: sae.encoder.weight for name, sae in zip("ab", saes, strict=True)}
    return reproducibility(directions, dict(zip("ab", codes, strict=True))).numbers()
