"""Codes on the disk: in `codes/` beside an SAE, so that the next command doesn't encode the text again.

One file holds them: the selections, the tokens, and what was summed, with the hash of the SAE's weights and what is
known of the text. It is written whole or not at all. A file of another SAE or text is replaced.

Shapes: N tokens, C contexts of L tokens, M selections, F features.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix

from ..activations.language_models import tokenizer_of
from ..config.run import RunConfig
from ..errors import CheckpointError, first_line
from ..run_folder.comparing import measured_on
from ..run_folder.files import CODES, at_home, replacing
from ..run_folder.sae_names import results_folder
from ..run_folder.weights import hash_of, load_dictionary
from ..trainers.dictionaries import decoder_directions, k_of
from .codes import Codes, Reading
from .encoding import Totals

logger = logging.getLogger(__name__)

_FORMAT = 1
_SUMS = (
    "norm_factor",
    "tokens",
    "squares",
    "residual",
    "sums",
    "counted",
    "kl",
    "residual_sampled",
)
"""The numbers of `Totals` that are kept."""


def text_of(run: RunConfig, tokens: int) -> dict[str, Any]:
    """What decides which tokens are read, and their activations, fit for JSON.

    Files and folders on this machine count by the sizes and times of what they hold, not by their content.

    Arguments:
        tokens: how many are read, at most.
    """
    settings = measured_on(run)
    places = {name: _files_at(settings[name]) for name in ("model", "data", "activations")}
    found = settings | {"tokens": tokens, "files": places}
    return json.loads(json.dumps(found, default=str))


def _files_at(name: str | None) -> list[Any] | None:
    """The name, size and time of each file at a path; None if there is nothing."""
    path = None if name is None else at_home(name)
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return [
        [str(one.relative_to(path)), one.stat().st_size, one.stat().st_mtime_ns] for one in files
    ]


def size_of(codes: Codes) -> int:
    """The bytes that codes take on the disk, about."""
    return (
        8 * codes.code_NF.nnz
        + 8 * codes.tokens
        + 5 * codes.reading.ids_CL.size
        + 8 * codes.n_features
    )


def keep_codes(folder: Path, codes: Codes) -> Path:
    """Write codes beside an SAE, in place of those that are there.

    Arguments:
        folder: of the SAE's results.

    Raises: CheckpointError if the disk refuses.
    """
    path, totals = folder / CODES, codes.totals
    content = {
        "value_M": codes.code_NF.data,
        "feature_M": codes.code_NF.indices.astype(np.int32),
        "selected_N": np.diff(codes.code_NF.indptr).astype(np.int32),
        "ids_CL": codes.reading.ids_CL,
        "wanted_CL": codes.reading.wanted_CL,
        "sink_CL": codes.reading.sink_CL,
        "rise_F": codes.rise_F,
        "sum_D": totals.sum_D.cpu().numpy(),
    }
    sums = {name: getattr(totals, name) for name in _SUMS}
    about = {
        "format": _FORMAT,
        "sae": codes.sae,
        "text": codes.text,
        "has_all": codes.has_all,
        "sums": sums,
    }
    with replacing(path) as temporary:
        save_file(content, temporary, {"codes": json.dumps(about)})
    return path


def kept_codes(
    folder: Path,
    dictionary: Dictionary,
    text: dict[str, Any] | None = None,
    *,
    with_all: bool = False,
    sae: str | None = None,
) -> Codes | None:
    """The codes of an SAE on a text that are kept beside it; None if there are none.

    A line says so if those that are there are of another SAE or text, or can't be read.

    Arguments:
        folder: of the SAE's results.
        text: what `text_of` says. None: any.
        with_all: only if they have what needs the numbers of all features.
        sae: the hash of the dictionary's weights, if known.
    """
    path = folder / CODES
    if not path.is_file():
        return None
    try:
        return _read(path, dictionary, text, with_all, sae or hash_of(dictionary))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("%s can't be read, and is not used: %s", path, first_line(error))
    except _OfAnother as other:
        logger.info("%s is not used: %s", path, other)
    return None


def load_codes(folder: str | Path) -> Codes:
    """The codes that are kept beside a named SAE, with the language model's tokenizer.

    Arguments:
        folder: what names the SAE, see run_folder/sae_names.py.

    Raises: CheckpointError if there are none, or they are of other weights.
    """
    dictionary, _ = load_dictionary(folder)
    codes = kept_codes(results_folder(folder), dictionary)
    if codes is None:
        raise CheckpointError(
            f"{folder}: there are no codes of this SAE",
            instead="`vsae report` keeps them, or encode_text in Python",
        )
    return replace(codes, tokenizer=tokenizer_of(codes.text["model"]))


class _OfAnother(Exception):
    """Codes of something else than what is asked for."""


def _read(
    path: Path, dictionary: Dictionary, text: dict[str, Any] | None, with_all: bool, sae: str
) -> Codes:
    with safe_open(path, framework="numpy") as file:
        about = json.loads((file.metadata() or {})["codes"])
        if about["format"] != _FORMAT:
            raise _OfAnother("another version of this package wrote it")
        if about["sae"] != sae:
            raise _OfAnother("it is of other weights")
        if text is not None and about["text"] != text:
            there = about["text"]
            differ = [name for name in text if there.get(name) != text[name]]
            raise _OfAnother(f"it is of a different text ({', '.join(differ)})")
        if with_all and not about["has_all"]:
            raise _OfAnother("it lacks what only an evaluation measures")
        part = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    size, width = dictionary.dict_size, dictionary.activation_dim
    n, starts_N = len(part["selected_N"]), np.zeros(len(part["selected_N"]) + 1, dtype=np.int64)
    np.cumsum(part["selected_N"], out=starts_N[1:])
    feature_M = part["feature_M"]
    fits = (
        starts_N[-1] == len(feature_M) == len(part["value_M"])
        and part["selected_N"].min(initial=0) >= 0
        and feature_M.min(initial=0) >= 0
        and feature_M.max(initial=0) < size
        and part["wanted_CL"].shape == part["sink_CL"].shape == part["ids_CL"].shape
        and int(part["wanted_CL"].sum()) == n
        and part["rise_F"].shape == (size,)
        and part["sum_D"].shape == (width,)
    )
    if not fits:
        raise ValueError("it is damaged")
    code_NF = csr_matrix((part["value_M"], feature_M, starts_N), (n, size))
    totals = Totals(width, size, k_of(dictionary), t.device("cpu"), **about["sums"])
    totals.sum_D = t.from_numpy(part["sum_D"])
    codes = Codes(
        code_NF,
        Reading(part["ids_CL"], part["wanted_CL"], part["sink_CL"]),
        totals,
        part["rise_F"],
        decoder_directions(dictionary),
        about["has_all"],
        sae,
        about["text"],
    )
    totals.selected_F = t.from_numpy(codes.count_F)
    return codes
