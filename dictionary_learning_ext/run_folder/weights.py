"""Write and read ae.pt: upstream's state dict, of a dictionary that takes raw activations."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..config.architectures import BY_DICT_CLASS, import_class
from ..devices import chosen_device
from ..errors import CheckpointError, in_shell
from ..trainers.dictionaries import weights_by_feature
from ..trainers.parts import WHOLE, Part
from .files import REPAIR
from .foreign_weights import load_foreign
from .reading import steps_of
from .sae_folder import SAEFolder, find_sae
from .tensors import damaged, read_state_dict, require_sizes, save_tensors

logger = logging.getLogger(__name__)


def for_raw_activations(
    dictionary: Dictionary, norm_factor: float, input_factor: float | None = None
) -> Dictionary:
    """A copy of a dictionary that takes raw activations, which training divided by `norm_factor`; those that a transcoder
    reads by `input_factor`.

    If the factor is 1, it is the dictionary itself. One whose parameters are in bfloat16 is always copied, to float32.
    """
    is_narrow = next(dictionary.parameters()).dtype == t.bfloat16
    if norm_factor == 1.0 and input_factor is None and not is_narrow:
        return dictionary
    dictionary = copy.deepcopy(dictionary)
    if is_narrow:
        dictionary.float()
    dictionary.scale_biases(norm_factor)  # pyright: ignore[reportCallIssue]
    if input_factor is not None:
        dictionary.scale_input(norm_factor / input_factor)  # pyright: ignore[reportCallIssue]
    return dictionary


def save_weights(path: Path, dictionary: Dictionary, part: Part = WHOLE) -> None:
    """Write the state dict of a dictionary that takes raw activations, atomically.

    Arguments:
        part: the features that this process has of a split dictionary. All processes call this, and the first writes.

    Raises: CheckpointError if the file can't be written.
    """
    state = part.gathered(dictionary.state_dict())
    if state is not None:
        save_tensors(path, {name: value.contiguous() for name, value in state.items()})


def load_dictionary(
    base_path: str | Path, device: str = "cpu", *, step: int | None = None
) -> tuple[Dictionary, dict[str, Any]]:
    """Load an SAE, of our classes or any of upstream's, and its config.

    It replaces `dictionary_learning.utils.load_dictionary`, which only knows upstream's classes.

    Arguments:
        base_path: a folder that `vsae train`, upstream's `trainSAE` or another library wrote, or a place on
            the hub, see sae_names.py.
        step: the step of a checkpoint. Default: the final weights.

    Returns: the dictionary, which takes raw activations and encodes by the mean, and its config.json. For another
        library's folder this is made from its settings, see `foreign_config`.

    Raises: CheckpointError if a file is missing, damaged or does not fit the config; ConfigError if
    the machine has no such device. No code in a file is executed.
    """
    sae = find_sae(base_path, step)
    return load_sae(sae, device), sae.config


def load_sae(sae: SAEFolder, device: str = "cpu") -> Dictionary:
    """The dictionary of `load_dictionary`, which raises the same errors."""
    device, trainer = chosen_device(device), sae.config["trainer"]
    if sae.form is not None:
        return load_foreign(sae, device)
    path, dict_class = sae.weights, trainer["dict_class"]
    if (row := BY_DICT_CLASS.get(dict_class)) is None:
        raise CheckpointError(
            f"{sae.path}: dict_class {dict_class!r} is unknown",
            expected=f"one of {', '.join(BY_DICT_CLASS)}",
        )
    try:
        state = read_state_dict(path)
    except CheckpointError as error:
        if sae.step is not None or not steps_of(sae.path):
            raise
        again = f"`vsae train --resume {in_shell(sae.path)}`"
        instead = f"delete it, and {again} writes it again from the last resume point"
        raise error.within("", instead) from error
    try:
        sae_class = import_class(row.class_path(dict_class))
        dictionary: Any = sae_class.from_pretrained(path, device=device)
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{path}: not a state dict of {dict_class} ({' '.join(str(error).split())[:300]}); it "
            f"holds {', '.join(state) or 'nothing'}",
            instead=REPAIR,
        ) from error
    require_sizes(path, dictionary, trainer)
    if not weights_by_feature(dictionary)[1].any():
        raise damaged(path, "the decoder is zero")
    if "k" in state:
        k = int(state["k"])
        if not 1 <= k <= dictionary.dict_size:
            raise damaged(path, f"k is {k}, dict_size {dictionary.dict_size}")
        # That of a checkpoint may differ, as upstream lowers k during training.
        if sae.step is None and trainer.get("k") not in (None, k):
            raise CheckpointError(
                f"{path}: k is {k}, but config.json says k={trainer['k']}",
                instead=f"set k={k} again there, or copy {path.name} again",
            )
    threshold = state.get("threshold")
    if (
        row.function == "jump_relu"
        and threshold is not None
        and threshold.ndim == 0
        and threshold < 0
    ):
        logger.warning(
            "%s: no threshold was set, as it was trained for fewer steps than its trainer was told (steps): all positive "
            "features fire",
            path,
        )
    return dictionary.eval().requires_grad_(False)
