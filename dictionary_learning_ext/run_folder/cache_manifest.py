"""The manifest of a cache of activations: its settings, its files and the position in the text.

A cache is a folder that `datasets.load_from_disk` can read. It holds

    manifest.json             `CacheManifest`, replaced after each file; what it doesn't name isn't part of the cache
    data-00000.arrow …        a row per context: token ids, and the activations at each hook point
    state.json, dataset_info.json
    heldout/                  the same, of held-out text
    heldout/documents.npy     token ids of held-out documents, for the language model's loss

The held-out part is written first, then the first manifest, then a file and a manifest in turns. A kill leaves a temporary file, or one
that the manifest doesn't name: writing continues after the last that it names, and removes the others.

Imports no torch.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..config.checks import Checked
from ..errors import ActivationsError

CacheDtype = Literal["float32", "float16"]
MANIFEST = "manifest.json"
HELD_OUT = "heldout"
DOCUMENTS = "documents.npy"
SPARE = 1.05
"""Cache 5% more tokens than are needed, as a run may leave some out."""
OF_A_TEXT = ("model", "data", "text_column", "text_packing", "ctx_len")
"""The settings of a cache that a run which reads it must have."""
TOKEN_IDS = "token_ids"
"""The column of token ids, named as in SAELens's caches. -1 is padding."""
REPAIR = "restore it, or cache the activations again in another folder"


@dataclass(frozen=True)
class CacheFile(Checked):
    """One file of a cache."""

    name: str
    """Its path in the cache's folder."""
    bytes: int
    contexts: int
    tokens: int
    """How many tokens it has, without padding."""


@dataclass(frozen=True)
class CachedHook(Checked):
    """A hook point of stored activations."""

    layer: int
    """The number of the block."""
    width: int
    """D."""


@dataclass(frozen=True)
class CacheSettings(Checked):
    """All settings that decide the numbers in a cache."""

    model: str
    """The language model's name, as the user typed it."""
    language_model: str
    """The language model's commit on the hub, or SHA-256 of its weights; see `identity`."""
    tokenizer: str
    """SHA-256 of the tokenizer and the model's configuration."""
    lm_dtype: str
    """The dtype in which the language model ran."""
    bos_token_id: int | None
    data: str
    """The text's name, as the user typed it."""
    text_column: str
    """The column of the text that holds the documents."""
    text: Any
    """The text's fingerprint."""
    data_seed: int
    text_packing: str
    ctx_len: int
    hooks: dict[str, CachedHook]
    dtype: CacheDtype
    eval_tokens: int
    """The number of held-out tokens that the user asked for."""
    eval_documents: int
    """The number of held-out documents that the user asked for."""


@dataclass(frozen=True)
class CacheManifest(Checked):
    """The content of manifest.json."""

    settings: CacheSettings
    files: tuple[CacheFile, ...]
    """The files to train on, in the order of the text."""
    heldout: tuple[CacheFile, ...]
    documents: CacheFile | None
    position: dict[str, int | dict[str, Any]] | None
    """The position in the text after the last file; None before the first file."""
    finished: int
    """How many files were there when the cache was last finished: those that are read. 0 until then."""

    @property
    def tokens(self) -> int:
        """The number of tokens to train on, without padding."""
        return sum(file.tokens for file in self.files)

    @property
    def all_files(self) -> tuple[CacheFile, ...]:
        return (*self.files, *self.heldout, *([self.documents] if self.documents else []))

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and the files' names and sizes. These determine the activations."""
        known = [asdict(self.settings), [asdict(file) for file in self.all_files]]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def read_manifest(folder: Path) -> CacheManifest | None:
    """The manifest in a folder; None if there is none. Raises ActivationsError if it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, documents = content["settings"], content["documents"]
        hooks = {hook: CachedHook(**values) for hook, values in settings["hooks"].items()}
        found = CacheManifest(
            CacheSettings(**settings | {"hooks": hooks}),
            tuple(map(_file, content["files"])),
            tuple(map(_file, content["heldout"])),
            None if documents is None else _file(documents),
            content["position"],
            content["finished"],
        )
        if not hooks or not 0 <= found.finished <= len(found.files):
            raise ValueError("no hook point, or fewer files than it is finished with")
        return found
    # ValueError: not UTF-8, not JSON, or a value of another type.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ActivationsError(
            f"{path}: damaged ({type(error).__name__}: {error})", instead=REPAIR
        ) from error


def _file(entry: dict[str, Any]) -> CacheFile:
    file = CacheFile(**entry)
    if Path(file.name).is_absolute() or ".." in Path(file.name).parts or "\0" in file.name:
        raise ValueError(f"the file {file.name!r} is not in the folder")
    return file


def finished_manifest(folder: Path) -> CacheManifest | None:
    """The manifest of a cache, with the files that are read; None if the folder is no cache.

    Raises: ActivationsError if the cache is unfinished or its manifest is damaged, or a file is missing or cut.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if not manifest.finished:
        raise ActivationsError(
            f"{folder}: this cache is not finished ({manifest.tokens:,} tokens are written)",
            instead="run its `vsae cache` command again to continue it",
        )
    require_whole(folder, manifest.all_files)
    return replace(manifest, files=manifest.files[: manifest.finished])


def require_whole(folder: Path, files: Iterable[CacheFile]) -> None:
    """Raise an ActivationsError if a file is missing or doesn't have the size in the manifest."""
    for file in files:
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else 0
        if size != file.bytes:
            raise ActivationsError(
                f"{path}: {size:,} bytes", expected=f"{file.bytes:,}", instead=REPAIR
            )
