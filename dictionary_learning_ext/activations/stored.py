"""Activations on the disk: a cache of ours, one of SAELens's, or a folder of the user's own.

    stored = open_stored("activations")
    run = replace(RunConfig(), activations="activations", **stored.settings)
    x_NLD, ids_NL = read_part(stored.parts["train"][0], run.hook)

The user's own activations are rows without tokens, a language model or a hook point. Files are mapped into
memory, so reading costs no more memory than the rows that are copied. Torch is imported only for
.safetensors files, and `datasets` only for SAELens's caches.

Shapes: N contexts, or rows of own activations; L = ctx_len tokens; D = width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from ..config.hooks import hook_name, sides_of
from ..config.run import UNKNOWN, RunConfig, Split
from ..errors import ActivationsError, first_line
from ..run_folder.cache_manifest import (
    MANIFEST,
    OF_A_TEXT,
    REPAIR,
    TOKEN_IDS,
    CacheManifest,
    finished_manifest,
)
from ..run_folder.files import at_home, hash_of_files
from ..run_folder.identity import differences

STATE, INFO = "state.json", "dataset_info.json"
"""What `datasets.save_to_disk` writes beside a data set's Arrow files."""
MADE_HERE = f"Activations of a language model, cached by vsae cache; see {MANIFEST}"
"""The data set's description in a cache of ours."""
_SUFFIXES = (".npy", ".safetensors")
_EXPECTED = "rows, (n, D), in float32 or float16, or in bfloat16 in a .safetensors file"
_HELD_OUT = 20
"""If there is no held-out part, the last twentieth of the contexts is held out."""


class Part(NamedTuple):
    """Consecutive contexts of a file. They are in one batch of an Arrow file, or in one tensor."""

    path: Path
    batch: int
    """The number of the batch or tensor in the file."""
    start: int
    """The number of the first context in it."""
    stop: int
    """The number after the last context."""


@dataclass(frozen=True)
class StoredActivations:
    """What a folder of activations holds."""

    place: str
    """The folder."""
    widths: dict[str, int]
    """D of each hook point, by name. The user's own activations have one, UNKNOWN, which may be given any name."""
    ctx_len: int
    """L. 1 for the user's own activations, which are rows."""
    known: dict[str, Any]
    """The settings of a `RunConfig` that are known of it."""
    parts: dict[Split, tuple[Part, ...]]
    held_out_tokens: int
    """Without padding."""
    digest: str
    """A hash of the manifest. If `vsae cache` didn't write them, of the files, of which only parts are read over 64 MB."""
    manifest: CacheManifest | None = None
    """The manifest, if `vsae cache` wrote the folder."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for a `RunConfig` that reads it. If it has several hook points, `hook` is left out."""
        hook = {"hook": next(iter(self.widths))} if len(self.widths) == 1 else {}
        unknown = {"model": UNKNOWN, "data": self.place}
        return {"activations": self.place} | hook | unknown | self.known

    def with_files(self, n: int) -> "StoredActivations":
        """The cache with its first n training files only, as it was before it grew."""
        assert self.manifest is not None, "only a cache grows"
        return _cache(self.place, replace(self.manifest, files=self.manifest.files[:n]))

    @property
    def only_hook(self) -> str:
        """The name of the only hook point. Raises ActivationsError if there are several."""
        if len(self.widths) > 1:
            raise ActivationsError(
                f"has the hook points {', '.join(self.widths)}",
                name="activations",
                value=self.place,
                instead="choose one with hook",
            )
        return next(iter(self.widths))

    def width(self, hook: str) -> int:
        """D of a hook point, or of both of a pair. Raises ActivationsError if one isn't there, or their widths differ."""
        if len(sides := sides_of(hook)) > 1:
            widths = {} if UNKNOWN in self.widths else {side: self.width(side) for side in sides}
            if len({*widths.values()}) != 1:
                raise ActivationsError(
                    f"{self.place} has {widths or 'rows of one place that is not known'}",
                    name="target",
                    value=sides[1],
                    expected="a cache with hook and target, of one width",
                )
            return widths[sides[0]]
        if UNKNOWN in self.widths:
            return self.widths[UNKNOWN]
        if hook not in self.widths:
            raise ActivationsError(
                f"the cache {self.place} has {', '.join(self.widths)}",
                name="hook",
                value=hook,
                instead="leave it out"
                if len(self.widths) == 1 and hook != UNKNOWN
                else "give one of these",
            )
        return self.widths[hook]

    def require_fit(self, settings: RunConfig, hooks: Iterable[str]) -> None:
        """Raise an ActivationsError if a run has another language model or text, or a hook point is missing."""
        for name in hooks:
            self.width(name)
        given = vars(settings)
        for name in differences(self.known, given):
            raise ActivationsError(
                f"the cache {self.place} has {self.known[name]}",
                name=name,
                value=given[name],
                instead="give the same or leave it out",
            )


def open_stored(folder: str | Path) -> StoredActivations:
    """Open a folder of activations.

    Raises: ActivationsError if there are no activations, or they are unfinished or damaged.
    """
    path = at_home(folder)
    if not path.is_dir():
        problem = "is a file" if path.exists() else "no such folder"
    elif (manifest := finished_manifest(path)) is not None:
        return _cache(str(path), manifest)
    elif (path / STATE).is_file():
        return _data_set(path)
    elif own := sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES):
        return _own_files(path, own)
    else:
        names = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
        problem = f"holds {', '.join(names[:5]) or 'nothing'}"
    raise ActivationsError(
        problem,
        name="activations",
        value=str(folder),
        expected="a cache (`vsae cache`, or SAELens's CacheActivationsRunner) or a folder of"
        f" {' or '.join(_SUFFIXES)} files with a row per token",
    )


def _cache(place: str, manifest: CacheManifest) -> StoredActivations:
    settings = manifest.settings
    of_splits: dict[Split, Any] = {"train": manifest.files, "heldout": manifest.heldout}
    return StoredActivations(
        place,
        {name: hook.width for name, hook in settings.hooks.items()},
        settings.ctx_len,
        {name: getattr(settings, name) for name in OF_A_TEXT},
        {
            split: tuple(Part(Path(place) / file.name, 0, 0, file.contexts) for file in files)
            for split, files in of_splits.items()
        },
        sum(file.tokens for file in manifest.heldout),
        manifest.digest,
        manifest,
    )


def _data_set(folder: Path) -> StoredActivations:
    """A data set that `datasets.save_to_disk` wrote, as SAELens's."""
    from datasets import Array2D, Dataset

    try:
        rows = Dataset.load_from_disk(str(folder), keep_in_memory=False)
        features = rows.features
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActivationsError(
            f"{folder}: a damaged data set ({first_line(error)})", instead="restore it"
        ) from error
    if rows.info.description == MADE_HERE:
        raise ActivationsError(f"{folder / MANIFEST}: missing", instead=REPAIR)
    arrays = {name: kind for name, kind in features.items() if isinstance(kind, Array2D)}
    if not arrays:
        raise ActivationsError(
            f"{folder}: a data set without activations (columns: {', '.join(features)})",
            expected="a column of type Array2D, as SAELens's CacheActivationsRunner writes it",
        )
    widths = {name: kind.shape[1] for name, kind in arrays.items()}
    first, kind = next(iter(arrays.items()))
    parts = [part for file in rows.cache_files for part in _parts(Path(file["filename"]), first)]
    ctx_len = kind.shape[0]
    return _with_held_out(folder, widths, ctx_len, {"ctx_len": ctx_len}, parts)


def _own_files(folder: Path, files: list[Path]) -> StoredActivations:
    """The user's own files of rows, in the order of their names."""
    kinds = {(x_NLD.shape[2], x_NLD.dtype) for file in files for x_NLD, _ in _batches(file)}
    if len(kinds) != 1:
        there = " and ".join(f"{D} ({dtype})" for D, dtype in sorted(kinds, key=str))
        there = there.replace("uint16", "bfloat16")  # which numpy lacks
        raise ActivationsError(
            f"{folder}: holds rows of width {there}",
            expected="one width and dtype",
            instead="put each kind into a folder of its own",
        )
    ((width, _),) = kinds
    parts = [part for file in files for part in _parts(file)]
    return _with_held_out(folder, {UNKNOWN: width}, 1, {}, parts)


def _parts(path: Path, hook: str = UNKNOWN) -> list[Part]:
    """All contexts of a file."""
    return [Part(path, n, 0, len(x_NLD)) for n, (x_NLD, _) in enumerate(_batches(path, hook))]


def _with_held_out(
    folder: Path,
    widths: dict[str, int],
    ctx_len: int,
    known: dict[str, Any],
    parts: list[Part],
) -> StoredActivations:
    """Hold out the last twentieth of the contexts. Raises ActivationsError if there are fewer than two."""
    total = sum(part.stop for part in parts)
    if total < 2:
        raise ActivationsError(
            f"{folder}: holds {'1 row' if total else 'no rows'}",
            expected="at least 2, one to train on and one to hold out",
        )
    end = n_train = total - max(1, total // _HELD_OUT)
    split: dict[Split, list[Part]] = {"train": [], "heldout": []}
    for part in parts:
        middle = min(max(end, 0), part.stop)
        split["train"] += [part._replace(stop=middle)] if middle else []
        split["heldout"] += [part._replace(start=middle)] if middle < part.stop else []
        end -= part.stop
    return StoredActivations(
        str(folder),
        widths,
        ctx_len,
        known,
        {name: tuple(its_parts) for name, its_parts in split.items()},
        (total - n_train) * ctx_len,
        hash_of_files(dict.fromkeys(part.path.absolute() for part in parts)),
    )


def layer_of(hook: str) -> int:
    """The number of the block in a hook point's name, or the first's of a pair; 0 if there is none."""
    named = hook_name(sides_of(hook)[0])
    return 0 if named is None else named.block


class Piece(NamedTuple):
    """Some contexts of a file: views of its memory."""

    x_NLD: np.ndarray
    """Activations in float32 or float16, or in bfloat16 as uint16."""
    ids_NL: np.ndarray | None
    """Token ids, -1 at padding; None where there are none."""


def read_part(part: Part, hook: str) -> Piece:
    """The contexts of a part, as views of the file.

    Arguments:
        hook: the column of a cache; ignored for the user's own rows.

    Raises: ActivationsError if the file is damaged.
    """
    state = part.path.stat() if part.path.is_file() else None
    batches = _last_file(part.path, hook, state and (state.st_size, state.st_mtime_ns))
    if part.batch >= len(batches) or len(batches[part.batch].x_NLD) < part.stop:
        raise ActivationsError(f"{part.path}: was cut", instead="restore it")
    (x_NLD, ids_NL), rows = batches[part.batch], slice(part.start, part.stop)
    return Piece(x_NLD[rows], None if ids_NL is None else ids_NL[rows])


@lru_cache(maxsize=2)  # of both hook points of a pair
def _last_file(path: Path, hook: str, state: tuple[int, int] | None) -> list[Piece]:
    """All contexts of the file that was read last, by batch. It is opened again if its size or time of change differs."""
    return list(_batches(path, hook))


def _batches(path: Path, hook: str = UNKNOWN) -> Iterator[Piece]:
    """All contexts of a file, as views, by batch or tensor. Raises ActivationsError if it is damaged."""
    try:
        if path.suffix == ".npy":
            yield _rows(np.lib.format.open_memmap(path, mode="r"), "float32", "float16")
        elif path.suffix == ".safetensors":
            yield from _tensors(path)
        else:
            with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
                for batch in stream:
                    has_ids = TOKEN_IDS in batch.schema.names
                    ids_NL = _numpy(batch.column(TOKEN_IDS)) if has_ids else None
                    yield Piece(_numpy(batch.column(hook)), ids_NL)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        instead = "restore it, or save it again as float32 of shape (n, D)"
        raise ActivationsError(
            f"{path}: can't be read ({first_line(error)})",
            instead=instead if path.suffix in _SUFFIXES else "restore it",
        ) from error


def _numpy(column: Any) -> np.ndarray:
    """A view of a column of (nested) lists as an array."""
    # `datasets` has a type of its own for arrays, which exists once that library is imported.
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    shape = [len(values)]
    while isinstance(values, pa.ListArray | pa.FixedSizeListArray | pa.LargeListArray):
        inner = values.flatten()
        shape.append(len(inner) // max(1, len(values)))
        values = inner
    return values.to_numpy(zero_copy_only=True).reshape(shape)


def _tensors(path: Path) -> Iterator[Piece]:
    """The tensors of a .safetensors file, in the order of the file. Torch maps them, as numpy has no bfloat16."""
    import torch

    with safe_open(path, framework="pt") as file:
        if not file.offset_keys():
            raise ValueError("it has no tensors")
        for name in file.offset_keys():
            rows: torch.Tensor = file.get_tensor(name)
            if rows.dtype == torch.bfloat16:
                yield _rows(rows.view(torch.uint16).numpy(), "uint16")
            else:
                yield _rows(rows.numpy(), "float32", "float16")


def _rows(rows_ND: np.ndarray, *dtypes: str) -> Piece:
    """The user's own rows. Raises ValueError if they aren't rows in one of these dtypes."""
    if rows_ND.ndim != 2 or rows_ND.shape[1] == 0 or rows_ND.dtype not in dtypes:
        raise ValueError(f"{rows_ND.dtype} of shape {rows_ND.shape}, expected {_EXPECTED}")
    return Piece(rows_ND[:, None, :], None)
