"""The manifest of a cache of activations: its settings and its files.

A cache is a folder that `datasets.load_from_disk` can read. It holds

    manifest.json             this file's `CacheManifest`, written last
    data-00000.arrow …        a row per context: token ids, and the activations at each hook point
    state.json, dataset_info.json
    heldout/                  the same, of held-out text
    heldout/documents.npy     token ids of held-out documents, for the language model's loss

Imports no torch.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..config.checks import Checked
from ..errors import ActivationsError
from ..run_folder.files import require_inside

CacheDtype = Literal["float32", "float16"]
MANIFEST = "manifest.json"
UNFINISHED = "manifest.unfinished.json"
"""The manifest of the files so far; deleted once MANIFEST is written."""
HELD_OUT = "heldout"
DOCUMENTS = "documents.npy"
TOKEN_IDS = "token_ids"
"""The column of token ids, named as in SAELens's caches. -1 is padding."""
_FORMAT = 1
_REPAIR = "restore it, or cache the activations again in another folder"


@dataclass(frozen=True)
class CacheFile(Checked):
    """One file of a cache."""

    name: str
    """Its path in the cache's folder."""
    bytes: int
    sha256: str
    contexts: int
    tokens: int
    """How many tokens it has, without padding."""

    def __post_init__(self):
        super().__post_init__()
        require_inside(self.name)


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
    position: dict[str, Any] | None
    """The position in the text after the last file; None before the first file."""

    @property
    def tokens(self) -> int:
        """The number of tokens to train on, without padding."""
        return sum(file.tokens for file in self.files)

    @property
    def all_files(self) -> Iterator[CacheFile]:
        yield from (*self.files, *self.heldout)
        if self.documents is not None:
            yield self.documents

    @property
    def digest(self) -> str:
        """A hash of the content of all files."""
        hashes = " ".join(file.sha256 for file in self.all_files)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON has it."""
        return {"format": _FORMAT, **asdict(self)}


def read_manifest(folder: Path, name: str = MANIFEST) -> CacheManifest | None:
    """The manifest in a folder; None if there is none.

    Raises: ActivationsError if it is damaged, or has another version's format.
    """
    path = folder / name
    try:
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ActivationsError(
                f"{path}: written by another version of this package, expected format {_FORMAT};"
                " cache the activations again in another folder"
            )
        settings = content["settings"]
        hooks = {hook: CachedHook(**values) for hook, values in settings["hooks"].items()}
        documents = content["documents"]
        return CacheManifest(
            CacheSettings(**settings | {"hooks": hooks}),
            tuple(CacheFile(**file) for file in content["files"]),
            tuple(CacheFile(**file) for file in content["heldout"]),
            None if documents is None else CacheFile(**documents),
            content["position"],
        )
    except ActivationsError:
        raise
    # ValueError: not UTF-8, not JSON, or a value of another type.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ActivationsError(
            f"{path}: damaged ({type(error).__name__}: {error}); {_REPAIR}"
        ) from error


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a cache, finished or not."""
    return any((folder / name).is_file() for name in (MANIFEST, UNFINISHED))


def finished_manifest(folder: Path) -> CacheManifest | None:
    """The manifest of a finished cache; None if the folder is no cache.

    Raises: ActivationsError if the cache is unfinished, its manifest is missing or damaged, or a file is
    missing or doesn't have the size in the manifest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if (so_far := read_manifest(folder, UNFINISHED)) is not None:
            raise ActivationsError(
                f"{folder}: this cache is not finished ({so_far.tokens:,} tokens are written); run"
                " its `vsae cache` command again to continue it"
            )
        if (folder / HELD_OUT / DOCUMENTS).is_file():
            raise ActivationsError(f"{folder / MANIFEST}: missing; {_REPAIR}")
        return None
    require_sizes(folder, manifest)
    return manifest


def require_sizes(folder: Path, manifest: CacheManifest) -> None:
    """Raise an ActivationsError if a file is missing or doesn't have the size in the manifest."""
    for file in manifest.all_files:
        path = folder / file.name
        if not path.is_file():
            raise ActivationsError(f"{path}: missing; {_REPAIR}")
        if (size := path.stat().st_size) != file.bytes:
            raise ActivationsError(
                f"{path}: {size:,} bytes, expected {file.bytes:,}, so it was cut or changed;"
                f" {_REPAIR}"
            )


def differences(was: CacheSettings, now: CacheSettings) -> list[str]:
    """The settings in which two caches differ, each as "dtype=float32, not float16"."""
    found = []
    for field in fields(CacheSettings):
        name, one, other = field.name, getattr(was, field.name), getattr(now, field.name)
        if one == other:
            continue
        if name == "hooks":
            name, one, other = "hook", ",".join(one), ",".join(other)
        elif name in ("language_model", "tokenizer"):
            one, other = one[:12], other[:12]
        found.append(f"{name}={one}, not {other}")
    return found
