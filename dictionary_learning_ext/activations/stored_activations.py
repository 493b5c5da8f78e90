"""Activations on the disk, as a run reads them: our cache, SAELens's, or a folder of the user's own.

    stored = open_stored("activations")
    run = replace(RunConfig(), activations="activations", **stored.settings)

Imports no torch.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..config.run import RunConfig, Split
from ..errors import ActivationsError, TextError
from ..run_folder.matching import same_setting
from .cache_manifest import CachedHook, CacheManifest, finished_manifest
from .cached_files import Part, contexts_in, read_dataset_folder
from .own_activations import SUFFIXES, own_files
from .text import open_text
from .text_sources import fingerprint_of

UNKNOWN = "unknown"
"""The language model, or the hook point, of activations that don't say it."""
_HELD_OUT = 20
"""Without a held-out part, one in so many contexts is: the last ones."""
_COMPARED = ("model", "data", "text_packing", "ctx_len")


@dataclass(frozen=True)
class StoredActivations:
    """What a folder holds."""

    folder: Path
    kind: Literal["cache", "SAELens's cache", "own activations"]
    hooks: dict[str, CachedHook]
    """Of own activations: one, UNKNOWN, which stands for whichever is named."""
    ctx_len: int
    """1 for own activations, which have rows only."""
    known: dict[str, Any]
    """The settings of a run that it was written with."""
    train: tuple[Part, ...]
    heldout: tuple[Part, ...]
    tokens: dict[Split, int]
    """Without padding."""
    digest: str
    """A hash of what it holds. Of files over 64 MB that no `vsae cache` wrote, parts are hashed."""
    manifest: CacheManifest | None = None
    """Of our cache."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run that follow from it. Without a hook point if there are several."""
        hook = {"hook": next(iter(self.hooks))} if len(self.hooks) == 1 else {}
        unknown = {"model": UNKNOWN, "data": str(self.folder)}
        return {"activations": str(self.folder)} | hook | unknown | self.known

    def parts(self, split: Split) -> tuple[Part, ...]:
        """The contexts of a split."""
        return self.train if split == "train" else self.heldout

    def hook(self, name: str) -> CachedHook:
        """What is known about a hook point. Raises ActivationsError if it isn't there."""
        if UNKNOWN in self.hooks:
            return replace(self.hooks[UNKNOWN], layer=_layer(name))
        if name not in self.hooks:
            raise ActivationsError(
                f"the cache {self.folder} has {', '.join(self.hooks)}",
                name="hook",
                value=name,
                instead="leave it out" if len(self.hooks) == 1 else "give one of these",
            )
        return self.hooks[name]

    def as_of(self, digest: str) -> "StoredActivations | None":
        """What it held when this was its digest, if that is a cache that has only grown since."""
        if digest == self.digest:
            return self
        former = None if self.manifest is None else self.manifest.as_of(digest)
        return None if former is None else _of_cache(self.folder, former)

    def require_fit(self, run: RunConfig, hooks: Iterable[str]) -> None:
        """Raise an ActivationsError if it is of another model or text than a run's, or lacks a hook."""
        for name in hooks:
            self.hook(name)
        for name in _COMPARED:
            known, given = self.known.get(name), getattr(run, name)
            if known is None or same_setting(name, known, given):
                continue
            if name == "data" and self._is_its_text(run):
                continue
            raise ActivationsError(
                f"the cache {self.folder} has {known}",
                name=name,
                value=given,
                instead="leave it out",
            )
        if self.known.get("data") == run.data and self._is_its_text(run) is False:
            raise ActivationsError(
                f"the text {run.data!r} has changed since it was cached in {self.folder}; restore it,"
                " or cache the activations again"
            )

    def _is_its_text(self, run: RunConfig) -> bool | None:
        """Whether a run's text is the one that was cached. None: it isn't on this machine."""
        if self.manifest is None or not (run.data == "embedded" or Path(run.data).exists()):
            return None
        try:
            found = open_text(run.data).state_dict()["fingerprint"]
        except TextError:
            return False
        return found == self.manifest.settings.text


def open_stored(folder: str | Path) -> StoredActivations:
    """What a folder of activations holds. Its activations are read only for the digest.

    Raises: ActivationsError if it holds none, or is unfinished or damaged.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        is_what = "is a file" if path.exists() else "no such folder"
        raise _no_activations(folder, is_what)
    if (manifest := finished_manifest(path)) is not None:
        return _of_cache(path, manifest)
    if (found := _of_sae_lens(path) or _of_own(path)) is None:
        names = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
        there = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") or "nothing"
        raise _no_activations(folder, f"holds {there}")
    return found


def _no_activations(folder: str | Path, problem: str) -> ActivationsError:
    return ActivationsError(
        problem,
        name="activations",
        value=str(folder),
        expected="a cache (`vsae cache`, or SAELens's CacheActivationsRunner) or a folder of"
        f" {' or '.join(SUFFIXES)} files with a row per token",
    )


def _of_cache(folder: Path, manifest: CacheManifest) -> StoredActivations:
    settings = manifest.settings
    files: dict[Split, Any] = {"train": manifest.files, "heldout": manifest.heldout}
    parts = {
        split: tuple(Part(folder / file.name, 0, file.contexts) for file in of_split)
        for split, of_split in files.items()
    }
    return StoredActivations(
        folder,
        "cache",
        settings.hooks,
        settings.ctx_len,
        {name: getattr(settings, name) for name in _COMPARED},
        parts["train"],
        parts["heldout"],
        {split: sum(file.tokens for file in of_split) for split, of_split in files.items()},
        manifest.digest,
        manifest,
    )


def _of_sae_lens(folder: Path) -> StoredActivations | None:
    found = read_dataset_folder(folder)
    if found is None:
        return None
    lengths = {length for length, _ in found.hooks.values()}
    ctx_len = lengths.pop()
    if lengths:
        raise ActivationsError(f"{folder}: its hook points have contexts of unequal lengths")
    first = next(iter(found.hooks))
    files = [(path, contexts_in(path, first)) for path in found.files]
    hooks = {name: CachedHook(_layer(name), width) for name, (_, width) in found.hooks.items()}
    known = {"ctx_len": ctx_len}
    return _divided(folder, "SAELens's cache", hooks, ctx_len, known, files)


def _of_own(folder: Path) -> StoredActivations | None:
    files = own_files(folder)
    if not files:
        return None
    hooks = {UNKNOWN: CachedHook(_layer(UNKNOWN), files[0].width)}
    counted = [(file.path, file.rows) for file in files]
    return _divided(folder, "own activations", hooks, 1, {}, counted)


def _divided(
    folder: Path,
    kind: Any,
    hooks: dict[str, CachedHook],
    ctx_len: int,
    known: dict[str, Any],
    files: list[tuple[Path, int]],
) -> StoredActivations:
    """Files without a held-out part: the last of their contexts become one."""
    total = sum(n for _, n in files)
    end = total - max(1, total // _HELD_OUT)
    if end < 1:
        raise ActivationsError(f"{folder}: {total} contexts or rows, expected at least 2")
    train, heldout, at = [], [], 0
    for path, n in files:
        cut = min(max(end - at, 0), n)
        train += [Part(path, 0, cut)] if cut else []
        heldout += [Part(path, cut, n)] if cut < n else []
        at += n
    states = [(path.absolute(), path.stat()) for path, _ in files]
    digest = _digest_of(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))
    return StoredActivations(
        folder,
        kind,
        hooks,
        ctx_len,
        known,
        tuple(train),
        tuple(heldout),
        {"train": end * ctx_len, "heldout": (total - end) * ctx_len},
        digest,
    )


@lru_cache(maxsize=16)
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files, each with its size and when it was changed: a sweep opens one folder many times."""
    identity = fingerprint_of([path for path, _, _ in files])
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def _layer(hook: str) -> int:
    """The block's number in a hook point's name, 0 if there is none."""
    parts = hook.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else 0
