"""Write and read files of tensors, and hash the tensors of a module."""

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as t

from ..errors import CheckpointError
from .files import REPAIR, replacing


def hash_of(module: t.nn.Module) -> str:
    """SHA-256, in hex, of the names, shapes, dtypes and bytes of a module's tensors, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = in_memory(module, name, tensor)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(t.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def in_memory(module: t.nn.Module, name: str, tensor: t.Tensor) -> t.Tensor:
    """A tensor of a module's state dict, or a copy if accelerate keeps it elsewhere, e.g. on the disk."""
    if not tensor.is_meta:
        return tensor
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    with align_module_device(owner, t.device("cpu")):
        return getattr(owner, own).detach().clone()


def save_tensors(path: Path, content: Any) -> None:
    """`t.save`, atomically. Raises CheckpointError if the file can't be written."""
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                t.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the cause, which torch hides
                raise error.__context__ from error
            raise


def read_tensors(path: Path) -> Any:
    """Read what `t.save` wrote, on the CPU. No code in the file is executed.

    Raises: CheckpointError if the file is missing, incomplete or damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch doesn't check the checksums
                if archive.testzip():
                    raise zipfile.BadZipFile("a checksum doesn't fit")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some kinds of pickle
            return t.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; some messages advise to execute what is in the file
        raise CheckpointError(
            f"{path}: missing or damaged ({type(error).__name__})", instead=REPAIR
        ) from error


def read_state_dict(path: Path) -> dict[str, t.Tensor]:
    """Read a state dict that `t.save` wrote. Raises CheckpointError for any other file, or if a number is not finite."""
    state = read_tensors(path)
    items = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(v, t.Tensor) for name, v in items):
        raise damaged(path, "expected a state dict")
    require_finite(path, state)
    return state


def damaged(path: Path, problem: str) -> CheckpointError:
    """The error for a file of tensors with this problem."""
    return CheckpointError(f"{path}: damaged ({problem})", instead=REPAIR)


def require_finite(path: Path, tensors: Mapping[str, t.Tensor]) -> None:
    """Raise a CheckpointError if a tensor of a file has NaN or infinite values."""
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise damaged(path, f"{name} has NaN or infinite values")


def require_sizes(path: Path, dictionary: Any, trainer: Mapping[str, Any]) -> None:
    """Raise a CheckpointError if D or F of a dictionary differ from its settings.

    Arguments:
        trainer: the "trainer" of its config.json. A size may be missing or None.
    """
    for name in ("activation_dim", "dict_size"):
        size, given = getattr(dictionary, name), trainer.get(name)
        if given not in (None, size):
            raise CheckpointError(
                f"{path}: its {name} is {size}, but its settings say {given}; they belong to different SAEs"
            )
