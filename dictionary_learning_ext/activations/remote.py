"""A cache of activations behind a URL, e.g. s3://bucket/cache, on any file system that fsspec knows.

Files are read from copies on the disk. Threads copy the next files ahead.
"""

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fsspec

from ..errors import ActivationsError, UserError, first_line
from ..run_folder.files import remove, replacing, sha256_of
from .cache_manifest import CacheFile, CacheManifest, read_manifest, require_sizes

_AHEAD = 2
"""How many files are copied ahead."""


def is_url(place: object) -> bool:
    return "://" in str(place)


def users_caches() -> Path:
    """The folder in the user's cache for everything that can be computed or fetched again."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (given if given.is_absolute() else Path.home() / ".cache") / "dictionary_learning_ext"


class Remote:
    """A folder behind a URL.

    Attributes:
        local: the folder on the disk for files on their way to the URL and for copies.

    Every method raises an ActivationsError if the URL can't be reached.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.local = users_caches() / "remote" / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        with self._reached():
            self._files, self._root = fsspec.url_to_fs(self.url)

    def __str__(self) -> str:
        return self.url

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each file in the folder, by name."""
        with self._reached():
            self._files.invalidate_cache()
            found = self._files.find(self._root, detail=True)
        start = len(self._root.rstrip("/")) + 1
        return {path[start:]: each["size"] for path, each in found.items()}

    def get(self, name: str, path: Path) -> None:
        with self._reached(name):
            self._files.get_file(f"{self._root}/{name}", str(path))

    def put(self, path: Path, name: str) -> None:
        with self._reached(name):
            self._files.put_file(str(path), f"{self._root}/{name}")

    def delete(self, name: str) -> None:
        with self._reached(name):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _reached(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each file system has errors of its own
            why = first_line(error) if str(error) else type(error).__name__
            place = f"{self.url}/{name}" if name else self.url
            raise ActivationsError(
                f"{place}: can't be read or written ({why})",
                instead="check the address, your credentials and the network, and run the same command again",
            ) from error


def read_remote_manifest(remote: Remote, *names: str) -> CacheManifest | None:
    """The first of these manifests that exists; None if there is none. Raises ActivationsError if files of the
    cache are missing."""
    sizes = remote.sizes()
    for name in (each for each in names if each in sizes):
        with replacing(remote.local / name, "XDG_CACHE_HOME") as temporary:
            remote.get(name, temporary)
        manifest = read_manifest(remote.local, name)
        assert manifest is not None, "just written"
        require_sizes(remote, manifest, sizes)
        return manifest
    return None


class Copies:
    """Copies of a remote cache's files on the disk.

    Arguments:
        files: all files of the cache.
        limit: about how many bytes of copies to keep. The files that are read next are kept in any case.
    """

    def __init__(self, remote: Remote, files: Iterable[CacheFile], limit: float):
        self._remote, self._limit = remote, limit
        self._file_at = {self.path_of(file): file for file in files}
        self._next: Sequence[Path] = ()
        self._coming: dict[Path, Future[None]] = {}
        self._lock, self._threads = threading.Lock(), ThreadPoolExecutor(_AHEAD)

    def path_of(self, file: CacheFile) -> Path:
        """The path of a file's copy. It is named by the file's hash, so it is never another cache's copy."""
        return self._remote.local / f"{file.sha256[:32]}{Path(file.name).suffix}"

    def will_be_read(self, paths: Sequence[Path]) -> None:
        """Set the order in which the files will be read, so that the next ones can be copied ahead."""
        self._next = tuple(dict.fromkeys(paths))

    def fetch(self, path: Path) -> None:
        """Wait until a file's copy is there, and start to copy the next ones.

        Raises: ActivationsError if the file is missing, has changed, or can't be reached; CheckpointError if
            the disk is full.
        """
        with self._lock:
            at = self._next.index(path) if path in self._next else len(self._next)
            needed = [path, *self._next[at + 1 : at + 1 + _AHEAD]]
            for one in needed:
                is_coming = one in self._coming and not self._coming[one].done()
                if not is_coming and not one.exists():
                    self._coming[one] = self._threads.submit(self._copy, one)
            coming = None if path.exists() else self._coming[path]
        if coming is not None:
            coming.result()
        now = time.time_ns()  # the file system's own clock has ticks of milliseconds
        os.utime(path, ns=(now, now))
        self._make_room(needed)

    def _copy(self, path: Path) -> None:
        file = self._file_at[path]
        with replacing(path, "XDG_CACHE_HOME") as temporary:
            self._remote.get(file.name, temporary)
            if sha256_of(temporary) != file.sha256:
                raise ActivationsError(
                    f"{self._remote}/{file.name}: has changed since it was written",
                    instead="restore it, or cache the activations again in another folder",
                )

    def _make_room(self, kept: Sequence[Path]) -> None:
        """Delete the least recently read copies until the rest is within the limit."""
        copies = [(one.stat(), one) for one in self._file_at if one.exists()]
        total = sum(state.st_size for state, _ in copies)
        for state, one in sorted(copies, key=lambda each: each[0].st_mtime_ns):
            if total > self._limit and one not in kept:
                remove(one)
                total -= state.st_size
