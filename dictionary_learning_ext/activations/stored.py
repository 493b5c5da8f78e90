"""Activations on the disk: a cache of ours, one of SAELens's, or a folder of the user's own.

    stored = open_stored("activations")
    run = replace(RunConfig(), activations="activations", **stored.settings)
    x_NLD, ids_NL = FileReader(run.hook).read(stored.parts["train"][0])

The user's own activations are rows without tokens, a language model or a hook point. Files are mapped into
memory, so reading costs no more memory than the rows that are copied. Torch is imported only for
.safetensors files.

Shapes: N contexts, or rows of own activations; L = ctx_len tokens; D = width.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from safetensors import safe_open

from ..config.hooks import hook_name
from ..config.run import UNKNOWN, RunConfig, Split
from ..errors import ActivationsError, first_line
from ..run_folder.comparing import same_setting
from ..run_folder.files import at_home, require_inside
from .cache_manifest import (
    TOKEN_IDS,
    CachedHook,
    CacheManifest,
    finished_manifest,
)
from .text import fingerprint_of

STATE, INFO = "state.json", "dataset_info.json"
"""What `datasets.save_to_disk` writes beside a data set's Arrow files."""
_SUFFIXES = (".npy", ".safetensors")
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_EXPECTED = "expected rows, (n, D), in float32 or float16, or in bfloat16 in a .safetensors file"
_HELD_OUT = 20
"""If there is no held-out part, the last twentieth of the contexts is held out."""
_COMPARED = ("model", "data", "text_column", "text_packing", "ctx_len")


class Part(NamedTuple):
    """Consecutive contexts of a file."""

    path: Path
    start: int
    """The number of the first context."""
    stop: int
    """The number after the last context."""


@dataclass(frozen=True)
class StoredActivations:
    """What a folder of activations holds."""

    place: str
    """The folder."""
    hooks: dict[str, CachedHook]
    """The hook points by name. The user's own activations have one, UNKNOWN, which may be given any name."""
    ctx_len: int
    """L. 1 for the user's own activations, which are rows."""
    known: dict[str, Any]
    """The settings of a `RunConfig` that are known of it."""
    parts: dict[Split, tuple[Part, ...]]
    held_out_tokens: int
    """Without padding."""
    digest: str
    """A hash of the activations. If `vsae cache` didn't write them, only parts of files over 64 MB are hashed."""
    manifest: CacheManifest | None = None
    """The manifest, if `vsae cache` wrote the folder."""
    documents: Path | None = None
    """The cache's file of held-out documents."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for a `RunConfig` that reads it. If it has several hook points, `hook` is left out."""
        hook = {"hook": next(iter(self.hooks))} if len(self.hooks) == 1 else {}
        unknown = {"model": UNKNOWN, "data": self.place}
        return {"activations": self.place} | hook | unknown | self.known

    def with_files(self, n: int) -> "StoredActivations":
        """The cache with its first n training files only, as it was before it grew."""
        assert self.manifest is not None, "only a cache grows"
        manifest = replace(self.manifest, files=self.manifest.files[:n])
        return _read_cache(self.place, manifest)

    @property
    def only_hook(self) -> str:
        """The name of the only hook point. Raises ActivationsError if there are several."""
        if len(self.hooks) > 1:
            raise ActivationsError(
                f"has the hook points {', '.join(self.hooks)}",
                name="activations",
                value=self.place,
                instead="choose one with hook",
            )
        return next(iter(self.hooks))

    def hook(self, name: str) -> CachedHook:
        """A hook point by its name. Raises ActivationsError if it isn't there."""
        if UNKNOWN in self.hooks:
            return replace(self.hooks[UNKNOWN], layer=_layer(name))
        if name not in self.hooks:
            raise ActivationsError(
                f"the cache {self.place} has {', '.join(self.hooks)}",
                name="hook",
                value=name,
                instead="leave it out" if len(self.hooks) == 1 else "give one of these",
            )
        return self.hooks[name]

    def require_fit(self, settings: RunConfig, hooks: Iterable[str]) -> None:
        """Raise an ActivationsError if a run has another language model or text, or a hook point is missing."""
        for name in hooks:
            self.hook(name)
        for name in _COMPARED:
            known, given = self.known.get(name), getattr(settings, name)
            if known is None or same_setting(name, known, given):
                continue
            raise ActivationsError(
                f"the cache {self.place} has {known}",
                name=name,
                value=given,
                instead="give the same or leave it out",
            )


def open_stored(folder: str | Path) -> StoredActivations:
    """Open a folder of activations. They are read only to compute the digest.

    Raises: ActivationsError if there are no activations, or they are unfinished or damaged.
    """
    path = at_home(folder)
    if not path.is_dir():
        problem = "is a file" if path.exists() else "no such folder"
    elif (manifest := finished_manifest(path)) is not None:
        return _read_cache(str(path), manifest)
    elif (found := _read_sae_lens(path) or _read_own_files(path)) is not None:
        return found
    else:
        names = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
        problem = f"holds {', '.join(names[:5]) or 'nothing'}"
    raise ActivationsError(
        problem,
        name="activations",
        value=str(folder),
        expected="a cache (`vsae cache`, or SAELens's CacheActivationsRunner) or a folder of"
        f" {' or '.join(_SUFFIXES)} files with a row per token",
    )


def _read_cache(place: str, manifest: CacheManifest) -> StoredActivations:
    settings = manifest.settings
    files: dict[Split, Any] = {"train": manifest.files, "heldout": manifest.heldout}
    parts: dict[Split, tuple[Part, ...]] = {
        split: tuple(Part(Path(place) / file.name, 0, file.contexts) for file in split_files)
        for split, split_files in files.items()
    }
    return StoredActivations(
        place,
        settings.hooks,
        settings.ctx_len,
        {name: getattr(settings, name) for name in _COMPARED},
        parts,
        sum(file.tokens for file in manifest.heldout),
        manifest.digest,
        manifest,
        manifest.documents and Path(place) / manifest.documents.name,
    )


def _read_sae_lens(folder: Path) -> StoredActivations | None:
    """A data set that `datasets.save_to_disk` wrote; None for another folder."""
    if not (folder / STATE).is_file():
        return None
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        features = json.loads((folder / INFO).read_text(encoding="utf-8"))["features"]
        names = [each["filename"] for each in state["_data_files"]]
        for name in names:
            require_inside(name)
        shapes = {
            n: each["shape"] for n, each in features.items() if each.get("_type") == "Array2D"
        }
        hooks = {n: CachedHook(_layer(n), width) for n, (_, width) in shapes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActivationsError(
            f"{folder}: its {STATE} or {INFO} is damaged ({first_line(error)}); restore it"
        ) from error
    if not hooks:
        raise ActivationsError(
            f"{folder}: a data set without activations (columns: {', '.join(features)}); expected a"
            " column of type Array2D, as SAELens's CacheActivationsRunner writes it"
        )
    (ctx_len,) = {length for length, _ in shapes.values()}
    first, paths = next(iter(hooks)), [folder / name for name in names]
    files = [(path, sum(len(x_NLD) for x_NLD, _ in _batches(path, first))) for path in paths]
    return _with_held_out(folder, hooks, ctx_len, {"ctx_len": ctx_len}, files)


def _read_own_files(folder: Path) -> StoredActivations | None:
    """The user's own files of rows, in the order of their names; None if the folder has none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    if not paths:
        return None
    kind, files = _width_and_dtype(_arrays_in(paths[0])[0]), []
    if kind[0] == 0:
        raise ActivationsError(f"{paths[0]}: rows of width 0; expected activations, (N, D)")
    for path in paths:
        arrays = _arrays_in(path)
        for array in arrays:
            if _width_and_dtype(array) != kind:
                raise ActivationsError(
                    "{}: rows of width {} in {}, expected {} in {} as in {}; put each kind into a folder"
                    " of its own".format(path, *_width_and_dtype(array), *kind, paths[0].name)
                )
        files.append((path, sum(map(len, arrays))))
    return _with_held_out(folder, {UNKNOWN: CachedHook(0, kind[0])}, 1, {}, files)


def _width_and_dtype(rows_ND: np.ndarray) -> tuple[int, str]:
    """The width of rows, and their dtype in words."""
    return rows_ND.shape[1], "bfloat16" if rows_ND.dtype == np.uint16 else str(rows_ND.dtype)


def _with_held_out(
    folder: Path,
    hooks: dict[str, CachedHook],
    ctx_len: int,
    known: dict[str, Any],
    files: list[tuple[Path, int]],
) -> StoredActivations:
    """Hold out the last twentieth of the contexts.

    Arguments:
        files: each with the number of its contexts.
    """
    total = sum(n for _, n in files)
    end = total - max(1, total // _HELD_OUT)
    train, heldout, at = [], [], 0
    for path, n in files:
        middle = min(max(end - at, 0), n)
        train += [Part(path, 0, middle)] if middle else []
        heldout += [Part(path, middle, n)] if middle < n else []
        at += n
    states = [(path.absolute(), path.stat()) for path, _ in files]
    digest = _digest_of(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))
    return StoredActivations(
        str(folder),
        hooks,
        ctx_len,
        known,
        {"train": tuple(train), "heldout": tuple(heldout)},
        (total - end) * ctx_len,
        digest,
    )


@lru_cache(maxsize=16)
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """A hash of files, computed once for each size and time of change: a sweep opens one folder many times."""
    identity = fingerprint_of([path for path, _, _ in files])
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def _layer(hook: str) -> int:
    """The number of the block in a hook point's name, 0 if there is none."""
    named = hook_name(hook)
    return 0 if named is None else named.block


class Piece(NamedTuple):
    """Some contexts of a file: views of its memory."""

    x_NLD: np.ndarray
    """Activations in float32 or float16, or in bfloat16 as uint16."""
    ids_NL: np.ndarray | None
    """Token ids, -1 at padding; None where there are none."""


class FileReader:
    """Reads contexts of one hook point. It keeps the last file open.

    Arguments:
        hook: the column of a cache; ignored for the user's own rows.
    """

    def __init__(self, hook: str):
        self._hook = hook
        self._path: Path | None = None
        self._batches: list[Piece] = []

    def read(self, part: Part) -> Piece:
        """The contexts of a part. Raises ActivationsError if the file is damaged."""
        if part.path != self._path:
            self._batches, self._path = list(_batches(part.path, self._hook)), part.path
        found, at = [], 0
        for x_NLD, ids_NL in self._batches:
            rows = slice(max(part.start - at, 0), max(part.stop - at, 0))
            if len(x_NLD[rows]):
                found.append(Piece(x_NLD[rows], None if ids_NL is None else ids_NL[rows]))
            at += len(x_NLD)
        if sum(len(x_NLD) for x_NLD, _ in found) < part.stop - part.start:
            raise ActivationsError(
                f"{part.path}: {at:,} contexts, expected {part.stop:,}, so it was cut; restore it"
            )
        if len(found) == 1:
            return found[0]
        all_x, all_ids = zip(*found, strict=True)
        return Piece(np.concatenate(all_x), None if all_ids[0] is None else np.concatenate(all_ids))


def _batches(path: Path, hook: str) -> Iterator[Piece]:
    """All contexts of a file, as views, in the batches it has. Raises ActivationsError if it is damaged."""
    if path.suffix != ".arrow":
        for rows_ND in _arrays_in(path):
            yield Piece(rows_ND[:, None, :], None)
        return
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            for batch in stream:
                has_ids = TOKEN_IDS in batch.schema.names
                ids_NL = _numpy(batch.column(TOKEN_IDS)) if has_ids else None
                yield Piece(_numpy(batch.column(hook)), ids_NL)
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise ActivationsError(
            f"{path}: damaged ({first_line(error)}); restore it, or cache the activations again in"
            " another folder"
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


def _arrays_in(path: Path) -> list[np.ndarray]:
    """The arrays of a .npy or .safetensors file, (N, D), mapped into memory; bfloat16 as uint16.

    Raises: ActivationsError.
    """
    is_npy = path.suffix == ".npy"
    try:
        if is_npy:
            found = [np.load(path, mmap_mode="r", allow_pickle=False)]
        else:
            found = list(_safetensors(path))
    except Exception as error:  # damaged bytes can raise anything
        raise ActivationsError(f"{path}: damaged ({first_line(error)}); {_EXPECTED}") from error
    if not found:
        raise ActivationsError(f"{path}: no array; {_EXPECTED}")
    dtypes = (np.float32, np.float16) if is_npy else tuple(_DTYPES.values())
    for array in found:
        if array.ndim != 2 or array.dtype not in dtypes:
            raise ActivationsError(f"{path}: {array.dtype} of shape {array.shape}; {_EXPECTED}")
    return found


def _safetensors(path: Path) -> Iterator[np.ndarray]:
    """The tensors of a file, in the order of the file. Torch maps them, as numpy has no bfloat16."""
    import torch

    with safe_open(path, framework="pt") as file:
        for name in file.offset_keys():
            if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                raise ValueError(f"{name} is {dtype}")
            rows: torch.Tensor = file.get_tensor(name)
            yield (rows.view(torch.uint16) if dtype == "BF16" else rows).numpy()
