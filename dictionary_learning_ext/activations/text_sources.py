"""Sources of documents: the embedded text, local files, data sets on the Hugging Face hub.

A source is read in passes. The embedded text has another order in each, other sources keep theirs.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

from ..config.run import Split
from ..errors import TextError, first_line
from .hub_access import data_sets_from_the_cache, why_unreachable
from .text_files import SUFFIXES, read_documents, text_of_row

_HASHED_WHOLE = 1 << 26  # bytes
_PART = 1 << 16
_SPLIT_NAME = re.compile(
    r"(train|validation|valid|val|dev|test)(?:ing)?(?:[-_.0-9]|$)", re.IGNORECASE
)
"""test.txt, test-0.txt and the folder test, but not testament.txt."""
EMBEDDED_TEXT = Path(__file__).parents[1] / "embedded" / "text" / "books.parquet"


class DocumentSource(Protocol):
    """An iterator over the documents of one pass, which can be resumed at a position."""

    file_bytes: int | None
    """The size of its files. None on the hub."""

    def start(self, number: int, position: Any) -> None:
        """Start pass `number` (from 0) at its first document, or at an earlier `position()`."""
        ...

    def position(self) -> Any:
        """Where the next document is, fit for JSON."""
        ...

    def fingerprint(self) -> Any:
        """Differs if the text has changed. Fit for JSON."""
        ...

    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...


class Passages:
    """The embedded text's passages, in another order in each pass."""

    def __init__(self, split: Split, seed: int):
        import pyarrow.parquet

        if not EMBEDDED_TEXT.is_file():
            raise TextError(
                f"the embedded text is missing: expected a file {EMBEDDED_TEXT}; reinstall the"
                " package, or use another text"
            )
        table = pyarrow.parquet.read_table(
            EMBEDDED_TEXT, columns=["text"], filters=[("split", "=", split)]
        )
        self.file_bytes: int | None = EMBEDDED_TEXT.stat().st_size
        self._passages: list[str] = table.column("text").to_pylist()
        self._seed = seed

    def start(self, number: int, position: Any) -> None:
        self._order = list(range(len(self._passages)))
        random.Random(f"{self._seed} {number}").shuffle(self._order)
        self._next = position or 0

    def position(self) -> int:
        return self._next

    def fingerprint(self) -> list[Any]:
        return fingerprint_of([EMBEDDED_TEXT])

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._next == len(self._order):
            raise StopIteration
        self._next += 1
        return self._passages[self._order[self._next - 1]]


class Files:
    """The documents of several files, one file after the other."""

    def __init__(self, files: list[Path]):
        self.file_bytes: int | None = sum(file.stat().st_size for file in files)
        self._files = files

    def start(self, number: int, position: Any) -> None:
        self._file, self._row = position or (0, 0)
        self._documents = self._read()

    def _read(self) -> Iterator[str]:
        for path in self._files[self._file :]:
            skip = self._row
            for row, document in enumerate(read_documents(path), start=1):
                if row > skip:
                    self._row = row
                    yield document
            self._file += 1
            self._row = 0

    def position(self) -> list[int]:
        return [self._file, self._row]

    def fingerprint(self) -> list[Any]:
        return fingerprint_of(self._files)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._documents)


def fingerprint_of(files: list[Path]) -> list[Any]:
    """Each file's name, size and hash. Of a file over 64 MB, 256 parts are hashed."""
    found = []
    for file in files:
        digest, size = hashlib.sha256(), file.stat().st_size
        with file.open("rb") as opened:
            if size <= _HASHED_WHOLE:
                digest.update(opened.read())
            else:
                for i in range(256):
                    opened.seek(i * (size - _PART) // 255)
                    digest.update(opened.read(_PART))
        found.append([file.name, size, digest.hexdigest()])
    return found


def files_holding(path: Path, split: Split) -> tuple[list[Path], bool]:
    """The files of a path that hold a split, and whether the files are named by split.

    Raises: TextError if it holds no text, or by their names none to train on.
    """
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [
        file
        for file in inside
        if file.is_file()
        and file.name.endswith(SUFFIXES)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise TextError(
            f"{path} {'holds no text files' if path.is_dir() else 'is not a text file'}: expected"
            f" {', '.join(SUFFIXES)}; convert it to one of these"
        )
    parts = [_split_of(file.relative_to(path)) for file in files] if path.is_dir() else []
    for held_out in ("validation", "test"):
        if held_out in parts:
            wanted = "train" if split == "train" else held_out
            found = [file for file, part in zip(files, parts, strict=True) if part == wanted]
            if not found:
                raise TextError(
                    f"{path}: {files[0].relative_to(path)} is held out by its name, and no file is left"
                    " to train on; add one, or rename it"
                )
            return found, True
    return files, False


def _split_of(file: Path) -> str:
    """Of a file in a folder: train, validation or test, by its name or else by the folder around it."""
    for name in reversed(file.parts):
        if match := _SPLIT_NAME.match(name):
            word = match[1].lower()
            return word if word in ("train", "test") else "validation"
    return "train"


class HubSet:
    """The `text` of the rows of a `datasets.IterableDataset`."""

    file_bytes: int | None = None

    def __init__(self, dataset: Any, name: str):
        self._dataset = dataset
        self._name = name

    def start(self, number: int, position: Any) -> None:
        self._position = position
        self._dataset.set_epoch(number)  # a position is only valid in its own pass
        if position is not None:
            self._dataset.load_state_dict(position)
        self._rows: Iterator[Any] | None = None

    def position(self) -> Any:
        return self._position if self._rows is None else self._dataset.state_dict()

    def fingerprint(self) -> str:
        return str(self._dataset.info.version)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._rows is None:
            self._rows = iter(self._dataset)
        return text_of_row(next(self._rows), f"the data set {self._name!r}")


def open_hub_set(name: str, split: Split) -> tuple[DocumentSource, bool]:
    """A data set on the hub, and whether it has a held-out split of its own."""
    import datasets.config

    path, _, configuration = name.partition(":")
    offline = why_unreachable()
    bars = not datasets.are_progress_bars_disabled()
    # datasets 3 can run a data set's own script. Later versions can't, and warn about the argument.
    runs_scripts = hasattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE")
    never: dict[str, Any] = {"trust_remote_code": False} if runs_scripts else {}
    datasets.disable_progress_bars()
    try:
        with data_sets_from_the_cache() if offline else nullcontext():
            splits: Any = datasets.load_dataset(
                path, configuration or None, streaming=True, **never
            )
    # OSError: no such data set, or no network. ValueError: no such configuration, or datasets 3 would
    # have to run a script. RuntimeError: later versions would.
    except (OSError, ValueError, RuntimeError) as error:
        if offline and isinstance(error, OSError):
            raise TextError(
                f"no file or folder {name!r}, and no data set of this name in the cache; {offline}:"
                f" expected 'embedded', or a file ({', '.join(SUFFIXES)}) or a folder of such"
                " files, e.g. books.txt"
            ) from error
        raise TextError(
            f"no file or folder {name!r}, and couldn't fetch a data set of this name from the hub"
            f" ({first_line(error)}): expected 'embedded', an existing file or folder, or the name"
            " of a data set on the hub, e.g. roneneldan/TinyStories"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    heldout = next((part for part in ("validation", "test") if part in splits), None)
    part = heldout if heldout and split == "heldout" else "train"
    if part not in splits:
        raise TextError(
            f"the data set {name!r} has the splits {', '.join(map(str, splits))}: expected one"
            " called 'train'; use another data set"
        )
    return HubSet(splits[part], name), heldout is not None
