"""Weights and configs on disk.

A run folder holds ae.pt (upstream's state dict, taking raw activations) and config.json (upstream's
"trainer" and "buffer", and our "run").
"""

import copy
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.utils import load_dictionary as load_upstream_dictionary

from .errors import CheckpointError
from .files import replacing
from .trainers.variational_top_k import VariationalTopKAutoEncoder

UPSTREAM_CLASSES = (
    "AutoEncoder",
    "GatedAutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)


def save_weights(path: Path, dictionary: Dictionary, norm_factor: float = 1.0) -> None:
    """Write a dictionary's state dict, atomically, for raw activations.

    Arguments:
        norm_factor: what raw activations were divided by in training. A copy is scaled: scaling
            the dictionary there and back would perturb its training.

    Raises: CheckpointError if the disk refuses.
    """
    if norm_factor != 1.0:
        dictionary = copy.deepcopy(dictionary)
        dictionary.scale_biases(norm_factor)  # pyright: ignore[reportCallIssue]
    state = {name: value.cpu().contiguous() for name, value in dictionary.state_dict().items()}
    with replacing(path) as temporary:
        t.save(state, temporary)


def read_config(folder: str | Path) -> dict[str, Any]:
    """A run folder's config.json.

    Raises: CheckpointError if the folder or a file of it is missing (the message says what is
    there) or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a run's folder, as runs/NAME")
    for name in ("config.json", "ae.pt"):
        if not (folder / name).is_file():
            there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            inside = [p.parent.name for p in sorted(folder.glob("*/ae.pt"))]
            hint = f"; did you mean one of {', '.join(inside)} in it?" if inside else ""
            raise CheckpointError(f"{folder}: expected a file {name}, but it holds {there}{hint}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["trainer"]["dict_class"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: expected JSON with trainer.dict_class "
            f"({type(error).__name__}: {error}); copy it again or train again"
        ) from error
    return config


def load_dictionary(folder: str | Path, device: str = "cpu") -> tuple[Dictionary, dict[str, Any]]:
    """The SAE in a run folder, of our class or any of upstream's, and its config.

    Arguments:
        folder: one that `vsae train` or upstream's `trainSAE` wrote.

    Returns: the dictionary, which takes raw activations and encodes by the mean, and config.json.

    Raises: CheckpointError if a file is missing, damaged or does not fit the config.
    """
    folder = Path(folder)
    config = read_config(folder)
    dict_class = config["trainer"]["dict_class"]
    known = ("VariationalTopKAutoEncoder", *UPSTREAM_CLASSES)
    if dict_class not in known:
        raise CheckpointError(
            f"{folder}: dict_class {dict_class!r} is unknown; expected one of {', '.join(known)}"
        )
    try:
        if dict_class == "VariationalTopKAutoEncoder":
            path, k = folder / "ae.pt", config["trainer"].get("k")
            dictionary: Any = VariationalTopKAutoEncoder.from_pretrained(path, k=k, device=device)
        else:
            dictionary, _ = load_upstream_dictionary(str(folder), device)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, zipfile.BadZipFile) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{folder / 'ae.pt'}: not a whole {dict_class} ({cause}); copy it again or train again"
        ) from error
    for name in ("activation_dim", "dict_size"):
        expected, found = config["trainer"].get(name), getattr(dictionary, name)
        if expected is not None and found != expected:
            raise CheckpointError(
                f"{folder}: ae.pt has {name}={found}, but config.json says {expected}; "
                "they are of different runs"
            )
    return dictionary.eval().requires_grad_(False), config
