"""Write and read files of tensors, and hash the tensors of a module."""

import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch as t

from ..errors import CheckpointError
from .files import replacing


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
            f"{path}: missing or damaged ({type(error).__name__})",
            instead="copy it again or train again",
        ) from error


def read_state_dict(path: Path) -> dict[str, t.Tensor]:
    """Read a state dict that `t.save` wrote: dense tensors of floats, and single integers or vectors of them.

    Raises: CheckpointError for any other file, or if a number is not finite.
    """
    state = read_tensors(path)
    problem = None if isinstance(state, dict) else "expected a state dict"
    for name, value in state.items() if isinstance(state, dict) else ():
        if not isinstance(name, str) or not isinstance(value, t.Tensor) or not _is_plain(value):
            given = getattr(value, "dtype", type(value).__name__)
            problem = f"{name}: expected a dense tensor of floats, got {given}"
        elif not value.isfinite().all():
            problem = f"{name} has NaN or infinite values"
    if problem:
        raise CheckpointError(
            f"{path}: damaged ({problem})", instead="copy it again or train again"
        )
    return state


def _is_plain(tensor: t.Tensor) -> bool:
    is_integer = not tensor.is_floating_point() and not tensor.is_complex()
    is_known = tensor.dtype in _FLOATS or (is_integer and tensor.dim() < 2)
    return is_known and tensor.layout is t.strided and not tensor.is_meta


_FLOATS = (t.float16, t.bfloat16, t.float32, t.float64)


def shapes_of(state: dict[str, t.Tensor]) -> str:
    """The names and shapes of a state dict's first tensors, for a message."""
    shown = [f"{name} {tuple(value.shape)}" for name, value in list(state.items())[:20]]
    return ", ".join(shown) + (", …" if len(state) > 20 else "") or "nothing"
