"""Tensors on the disk, and their hash."""

import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch as t

from ..errors import CheckpointError
from .files import replacing


def hash_of(module: t.nn.Module) -> str:
    """SHA-256, in hex, of the names, shapes, dtypes and bytes of everything in a checkpoint.

    It does not depend on the device. It does depend on the dtype.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = in_memory(module, name, tensor)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(t.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def in_memory(module: t.nn.Module, name: str, tensor: t.Tensor) -> t.Tensor:
    """A module's tensor of this name; a copy of it if accelerate keeps it elsewhere, e.g. on the disk."""
    if not tensor.is_meta:
        return tensor
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    with align_module_device(owner, t.device("cpu")):
        return getattr(owner, own).detach().clone()


def save_tensors(path: Path, content: Any) -> None:
    """`t.save`, atomically, one tensor after the other. Raises CheckpointError if the disk refuses."""
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                t.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # what the disk said, which torch replaces
                raise error.__context__ from error
            raise


def read_tensors(path: Path) -> Any:
    """What `t.save` wrote, on the CPU. None of its code is executed.

    Raises: CheckpointError if the file is missing, incomplete or damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch itself does not compare checksums
                if archive.testzip():
                    raise zipfile.BadZipFile("a checksum doesn't fit")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the kind of pickle
            return t.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, some of which advise to execute what is in the file
        raise CheckpointError(
            f"{path}: missing or damaged ({type(error).__name__})",
            instead="copy it again or train again",
        ) from error


def shapes_of(state: dict[str, t.Tensor]) -> str:
    """The names and shapes of a state dict's first tensors, for a message."""
    shown = [f"{name} {tuple(value.shape)}" for name, value in list(state.items())[:20]]
    return ", ".join(shown) + (", …" if len(state) > 20 else "") or "nothing"
