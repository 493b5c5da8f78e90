"""Files of activations on the disk: a cache's Arrow files, SAELens's too, and plain arrays of rows.

They are mapped into memory, so that reading one costs no more memory than what is copied out of it.
Imports no torch.

Shapes: N contexts, L = ctx_len tokens, D = width.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import ActivationsError, first_line
from ..run_folder.files import write_json
from .cache_manifest import FOLDER, TOKEN_IDS, CacheFile, CacheSettings
from .own_activations import arrays_in

_STATE, _INFO = "state.json", "dataset_info.json"


class Part(NamedTuple):
    """Some contexts of a file."""

    path: Path
    start: int
    """The first context."""
    stop: int
    """The one after the last."""


class Piece(NamedTuple):
    """A few contexts, as views of the file."""

    x_NLD: np.ndarray
    """float32, float16, or bfloat16 as uint16."""
    ids_NL: np.ndarray | None
    """Token ids, -1 at padding; None where there are none."""


class FileReader:
    """Reads contexts of one hook point, and keeps the last file open.

    Arguments:
        hook: the column of a cache; ignored for plain rows.
    """

    def __init__(self, hook: str):
        self._hook = hook
        self._path: Path | None = None
        self._batches: list[tuple[np.ndarray, np.ndarray | None]] = []

    def read(self, part: Part) -> Piece:
        """The contexts of a part. Raises ActivationsError if the file is damaged."""
        if part.path != self._path:
            self._batches, self._path = list(_batches(part.path, self._hook)), part.path
        found, at = [], 0
        for x_NLD, ids_NL in self._batches:
            rows = slice(max(part.start - at, 0), max(part.stop - at, 0))
            if len(x_NLD[rows]):
                found.append((x_NLD[rows], None if ids_NL is None else ids_NL[rows]))
            at += len(x_NLD)
        if sum(len(x_NLD) for x_NLD, _ in found) < part.stop - part.start:
            raise ActivationsError(
                f"{part.path}: {at:,} contexts, expected {part.stop:,}, so it was cut; restore it"
            )
        if len(found) == 1:
            return Piece(*found[0])
        all_x, all_ids = zip(*found, strict=True)
        return Piece(np.concatenate(all_x), None if all_ids[0] is None else np.concatenate(all_ids))


def cut(part: Part, contexts: int) -> Iterator[Part]:
    """A part in pieces of at most `contexts` contexts."""
    for start in range(part.start, part.stop, contexts):
        yield part._replace(start=start, stop=min(start + contexts, part.stop))


def contexts_in(path: Path, hook: str) -> int:
    """How many contexts a file holds. Raises ActivationsError if it is damaged."""
    return sum(len(x_NLD) for x_NLD, _ in _batches(path, hook))


def _batches(path: Path, hook: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Activations and token ids, as they lie in a file."""
    if path.suffix == ".arrow":
        yield from _arrow_batches(path, hook)
    else:
        for rows_ND in arrays_in(path):
            yield rows_ND[:, None, :], None


def _arrow_batches(path: Path, hook: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            for batch in stream:
                ids = None
                if TOKEN_IDS in batch.schema.names:
                    ids = _numpy(batch.column(TOKEN_IDS), (len(batch), -1))
                yield _numpy(batch.column(hook), _shape(batch, hook)), ids
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ActivationsError(
            f"{path}: damaged ({first_line(error)}); restore it, or cache the activations again in"
            " another folder"
        ) from error


def _shape(batch: pa.RecordBatch, hook: str) -> tuple[int, int, int]:
    """(N, L, D) of a column."""
    column = _storage(batch.column(hook))
    rows = column.flatten()
    n, total = len(batch), len(rows)
    length = total // max(1, n)
    return n, length, len(rows.flatten()) // max(1, total)


def _storage(column: Any) -> Any:
    """Without `datasets`' type of arrays, which exists once that library is imported."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _numpy(column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A column of lists as an array: a view."""
    values = _storage(column)
    while isinstance(values, pa.ListArray | pa.FixedSizeListArray | pa.LargeListArray):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=True).reshape(shape)


def write_contexts(path: Path, x_NLD: dict[str, np.ndarray], ids_NL: np.ndarray) -> None:
    """Write an Arrow file of one batch, with SAELens's columns.

    Arguments:
        x_NLD: activations by hook point.
        ids_NL: int32.
    """
    from datasets.features.features import Array2DExtensionType

    n, length = ids_NL.shape
    columns = {}
    for hook, x in x_NLD.items():
        width = x.shape[2]
        rows = pa.ListArray.from_arrays(_offsets(n * length, width), pa.array(x.reshape(-1)))
        contexts = pa.ListArray.from_arrays(_offsets(n, length), rows)
        kind = Array2DExtensionType((length, width), str(x.dtype))
        columns[hook] = pa.ExtensionArray.from_storage(kind, contexts)
    columns[TOKEN_IDS] = pa.FixedSizeListArray.from_arrays(pa.array(ids_NL.reshape(-1)), length)
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)


def _offsets(n: int, step: int) -> pa.Array:
    return pa.array(np.arange(0, n * step + 1, step, dtype=np.int32))


def write_dataset_files(folder: Path, settings: CacheSettings, files: Sequence[CacheFile]) -> None:
    """Write what `datasets.load_from_disk` reads beside the Arrow files of a folder."""
    # As datasets 3 spells it. Later versions read it too, and write what version 3 can't read.
    token_ids = {
        "feature": {"dtype": "int32", "_type": "Value"},
        "length": settings.ctx_len,
        "_type": "Sequence",
    }
    features = {
        hook: {
            "shape": [settings.ctx_len, of_hook.width],
            "dtype": settings.dtype,
            "_type": "Array2D",
        }
        for hook, of_hook in settings.hooks.items()
    }
    texts = dict.fromkeys(("citation", "description", "homepage", "license"), "")
    write_json(folder / _INFO, texts | {"features": features | {TOKEN_IDS: token_ids}}, FOLDER)
    state = {
        "_data_files": [{"filename": Path(file.name).name} for file in files],
        "_fingerprint": files[-1].sha256[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / _STATE, state, FOLDER)


class DatasetFolder(NamedTuple):
    """A folder that `datasets.save_to_disk` wrote."""

    files: list[Path]
    hooks: dict[str, tuple[int, int]]
    """L and D of each column of activations."""


def read_dataset_folder(folder: Path) -> DatasetFolder | None:
    """What a folder of `datasets` holds; None if it is none. Raises ActivationsError."""
    if not (folder / _STATE).is_file():
        return None
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        features = json.loads((folder / _INFO).read_text(encoding="utf-8"))["features"]
        files = [folder / each["filename"] for each in state["_data_files"]]
        hooks = {
            name: tuple(each["shape"])
            for name, each in features.items()
            if each.get("_type") == "Array2D"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActivationsError(
            f"{folder}: its {_STATE} or {_INFO} is damaged ({first_line(error)}); restore it"
        ) from error
    if not hooks:
        raise ActivationsError(
            f"{folder}: a data set without activations (columns: {', '.join(features)}); expected a"
            " column of type Array2D, as SAELens's CacheActivationsRunner writes it"
        )
    return DatasetFolder(files, hooks)
