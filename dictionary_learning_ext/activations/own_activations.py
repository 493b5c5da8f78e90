"""A folder of a user's own activations: .npy and .safetensors files with rows of one width.

Nothing else is known about them: no tokens, no language model, no hook point. Imports no torch.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ActivationsError, first_line

SUFFIXES = (".npy", ".safetensors")
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_EXPECTED = "expected rows, (n, D), in float32 or float16, or in bfloat16 in a .safetensors file"


class OwnFile(NamedTuple):
    """A file of rows."""

    path: Path
    rows: int
    width: int
    dtype: str


def own_files(folder: Path) -> list[OwnFile]:
    """The files of a folder, in the order of their names; empty if it has none.

    Raises: ActivationsError if one is damaged or holds something else than rows of one width and
    dtype.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    files = []
    for path in paths:
        arrays = list(arrays_in(path))
        shapes = [array.shape for array in arrays]
        widths = {shape[1] for shape in shapes} | {file.width for file in files[:1]}
        if len(widths) > 1:
            raise ActivationsError(
                f"{path}: rows of width {shapes[0][1]}, expected {min(widths - {shapes[0][1]})} as in"
                f" {paths[0].name}; put each width into a folder of its own"
            )
        dtypes = [_dtype_of(array) for array in arrays]
        expected = files[0].dtype if files else dtypes[0]
        if others := set(dtypes) - {expected}:
            raise ActivationsError(
                f"{path}: rows in {min(others)}, expected {expected} as in {paths[0].name}; put each"
                " dtype into a folder of its own, or convert them to one"
            )
        files += [OwnFile(path, sum(shape[0] for shape in shapes), widths.pop(), expected)]
    return files


def _dtype_of(array: np.ndarray) -> str:
    """As a user calls it."""
    return "bfloat16" if array.dtype == np.uint16 else str(array.dtype)


def arrays_in(path: Path) -> Iterator[np.ndarray]:
    """The arrays of a file, (n, D), mapped into memory; bfloat16 as uint16.

    Raises: ActivationsError.
    """
    try:
        found = list(_npy(path) if path.suffix == ".npy" else _safetensors(path))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActivationsError(f"{path}: damaged ({first_line(error)}); {_EXPECTED}") from error
    if not found:
        raise ActivationsError(f"{path}: no array; {_EXPECTED}")
    for array in found:
        if array.ndim != 2 or array.dtype not in _DTYPES.values() or not array.shape[1]:
            raise ActivationsError(f"{path}: {array.dtype} of shape {array.shape}; {_EXPECTED}")
    yield from found


def _npy(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)  # of another file, np.load says that it may be a pickle
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype == np.uint16:  # only a .safetensors says that it means bfloat16
        raise ValueError("uint16")
    yield array


def _safetensors(path: Path) -> Iterator[np.ndarray]:
    """As the format defines it: the header's length in 8 bytes, the header in JSON, the arrays."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is {entry['dtype']}")
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if math.prod(shape) * dtype.itemsize != stop - start:
            raise ValueError(f"{name} has another size than its shape")
        yield np.memmap(path, dtype, "r", 8 + length + start, shape)
