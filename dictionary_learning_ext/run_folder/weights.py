"""Writing and reading ae.pt: upstream's state dict, of a dictionary that takes raw activations."""

import copy
import io
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..config.architectures import BY_DICT_CLASS, import_class
from ..devices import chosen_device
from ..errors import CheckpointError
from ..trainers.parts import WHOLE, Part
from .files import CHECKPOINTS, WEIGHTS, checkpoint
from .foreign_weights import load_foreign
from .reading import read_config
from .sae_names import place_of
from .tensors import read_tensors, save_tensors, shapes_of


def for_raw_activations(dictionary: Dictionary, norm_factor: float) -> Dictionary:
    """The dictionary that takes raw activations, which training divided by `norm_factor`.

    It is a scaled copy, as scaling there and back would perturb training; itself if the factor is 1.
    """
    if norm_factor == 1.0:
        return dictionary
    dictionary = copy.deepcopy(dictionary)
    dictionary.scale_biases(norm_factor)  # pyright: ignore[reportCallIssue]
    return dictionary


def save_weights(
    path: Path, dictionary: Dictionary, norm_factor: float = 1.0, part: Part = WHOLE
) -> None:
    """Write the state dict of `for_raw_activations(dictionary, norm_factor)`, atomically.

    Arguments:
        part: of a split dictionary, which features this one has. All parts call it, and the first writes.

    Raises: CheckpointError if the disk refuses.
    """
    dictionary = for_raw_activations(dictionary, norm_factor)
    state = part.gathered(dictionary.state_dict())
    if state is not None:
        save_tensors(path, {name: value.contiguous() for name, value in state.items()})


def load_dictionary(
    base_path: str | Path, device: str = "cpu", *, step: int | None = None
) -> tuple[Dictionary, dict[str, Any]]:
    """A named SAE, of our class or any of upstream's, and its config.

    It takes the place of `dictionary_learning.utils.load_dictionary`, which knows upstream's classes
    only.

    Arguments:
        base_path: a folder that `vsae train`, upstream's `trainSAE` or another library wrote, or a place on
            the hub, see sae_names.py.
        step: of the checkpoint to load. Default: the final weights.

    Returns: the dictionary, which takes raw activations and encodes by the mean, and config.json (of
        another library's folder, what it would say).

    Raises: CheckpointError if a file is missing, damaged or does not fit the config; ConfigError if
    the machine has no such device. No code in a file is executed.
    """
    device = chosen_device(device)
    config = read_config(base_path, step)
    if "foreign" in config:
        return load_foreign(config, device), config
    folder, trainer = place_of(base_path).folder, config["trainer"]
    path = folder / WEIGHTS if step is None else checkpoint(folder, step)
    dict_class = trainer["dict_class"]
    row = BY_DICT_CLASS.get(dict_class)
    if row is None:
        raise CheckpointError(
            f"{folder}: dict_class {dict_class!r} is unknown; expected one of "
            f"{', '.join(BY_DICT_CLASS)}"
        )
    state, norm_factor = _read_weights(path)
    _require_finite(path, state)
    try:
        file = path if norm_factor is None else _in_memory(state)
        dictionary: Any = import_class(row.dictionary).from_pretrained(file, device=device)
        if norm_factor is not None:
            dictionary = for_raw_activations(dictionary, norm_factor)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a state dict of {dict_class} ({' '.join(str(error).split())[:300]}); it "
            f"holds {shapes_of(state)}; copy it again or train again"
        ) from error
    is_final = step is None and norm_factor is None
    _check_weights(path, state, dictionary, trainer, is_final)
    if norm_factor is not None:
        trainer.setdefault("norm_factor", norm_factor)
    return dictionary.eval().requires_grad_(False), config


def _in_memory(state: dict[str, t.Tensor]) -> io.BytesIO:
    """A file of weights that holds `state`."""
    whole = io.BytesIO()
    t.save(state, whole)
    whole.seek(0)
    return whole


def _read_weights(path: Path) -> tuple[dict[str, t.Tensor], float | None]:
    """The tensors in a file of weights.

    Returns: them, and None; or, of a backup that upstream's `trainSAE` leaves while it trains
    (backup_steps), what activations were divided by in training: its tensors are in those units.
    """
    state, norm_factor = read_tensors(path), None
    if isinstance(state, dict) and isinstance(state.get("ae"), dict):
        norm_factor = float(state.get("norm_factor") or 1.0)
        state = state["ae"]
    if not isinstance(state, dict) or not all(isinstance(v, t.Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: no state dict; copy it again or train again")
    return state, norm_factor


def _require_finite(path: Path, state: dict[str, t.Tensor]) -> None:
    """Raise a CheckpointError that names the first tensor with NaN or infinite values."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} has NaN or infinite values; load an earlier checkpoint from "
                f"{path.parent / CHECKPOINTS}"
            )


def _check_weights(
    path: Path,
    state: dict[str, t.Tensor],
    dictionary: Dictionary,
    trainer: dict[str, Any],
    is_final: bool,
) -> None:
    """Raise a CheckpointError if the sizes or k are not those of config.json.

    Before the end of a training, upstream's k may not have come down to the config's yet.
    """
    sizes = {"F": dictionary.dict_size, "D": dictionary.activation_dim}
    for letter, name in (("D", "activation_dim"), ("F", "dict_size")):
        given = trainer.get(name)
        if given is not None and given != sizes[letter]:
            shape = tuple(state["encoder.weight"].shape) if "encoder.weight" in state else "other"
            raise CheckpointError(
                f"{path}: encoder.weight is {shape}, so {name}={sizes[letter]}, but config.json says "
                f"{given}; they belong to different runs"
            )
    if "k" in state:
        k, configured = int(state["k"]), trainer.get("k") if is_final else None
        if configured not in (None, k) or not 1 <= k <= sizes["F"]:
            raise CheckpointError(
                f"{path}: k is {k}, dict_size is {sizes['F']} and config.json says k={configured}; "
                "they belong to different runs"
            )
