"""Text as a stream of documents. Reading can be resumed at any document.

documents = open_text("embedded")    # an iterator of str
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ..config.checks import require, require_choice
from ..config.run import RunConfig, Split, without_slash
from ..errors import TextError, first_line
from ..run_folder.files import at_home, fingerprint_of
from .text_files import SUFFIXES, read_documents, text_of_row

EMBEDDED_TEXT = Path(__file__).parents[1] / "embedded" / "text" / "books.parquet"
HELD_OUT_EVERY = 20
"""Every 20th document is held out if a text has no held-out part of its own."""
_SPLIT_NAME = re.compile(
    r"(train|validation|valid|val|dev|test)(?:ing)?(?:[-_.0-9]|$)", re.IGNORECASE
)
"""Matches test.txt, test-0.txt and the folder test, but not testament.txt."""


def open_text(
    name: str | Path,
    *,
    split: Split = "train",
    seed: int = 0,
    passes: int | None = 1,
    column: str = "text",
) -> "TextStream":
    """Open a text as a stream of documents.

    Arguments:
        name: one of
            - "embedded", the books shipped with the package;
            - a .txt, .jsonl, .jsonl.zst or .parquet file;
            - a folder of such files, which are read in the order of their names;
            - a data set on the Hugging Face hub, e.g. "roneneldan/TinyStories", with
              ":configuration" after the name if it has several. A file or folder of the same name
              takes precedence.
        split: "heldout" is the embedded text's own held-out part, the split `validation` or else
            `test` of a data set on the hub. Of a folder it is the files whose name, or whose folder's
            name, starts with the word validation (also valid, val, dev) or else test. A text with
            none of these holds out every 20th document. "train" is the rest, without test.
        seed: seeds the order of the embedded text, which differs from pass to pass. Other texts
            keep their order.
        passes: how often the text is read before it ends. None: without end.
        column: the column that holds the documents, in files of rows and on the hub.

    Raises:
        TextError: there is no such text, or the hub can't be reached.
        ConfigError: there is no such split.
    """
    require_choice("split", split, Split)
    name = str(name)
    require(name != "", "name", name, "a file, a folder, a data set on the hub, or embedded")
    source, has_split = _source_of(name, split, seed, column)
    identity = {"text": without_slash(name), "split": split, "seed": seed, "column": column}
    return TextStream(name, source, identity, passes=passes, every_20th=not has_split)


def text_of(settings: RunConfig, split: Split = "train", *, passes: int | None = 1) -> "TextStream":
    """A run's text; see `open_text`. Held-out text has the same order for every data_seed. Errors name the setting `data`."""
    seed = settings.data_seed if split == "train" else 0
    try:
        return open_text(
            settings.data, split=split, seed=seed, passes=passes, column=settings.text_column
        )
    except TextError as error:
        raise error.within("data") from error


def names_a_file(name: str) -> bool:
    """Whether a text's name is that of a file or folder, which may be missing, and not of a data set on the hub."""
    looks_so = name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES)
    return name != "embedded" and (looks_so or at_home(name).exists())


class TextStream(Iterator[str]):
    """The documents of a text, without blank ones, in a repeatable order.

    Attributes:
        name: the name that was given to `open_text`.
        every_20th: whether every 20th document is held out, as the text has no held-out part of its own.
        number: the number of this pass, from 0.
    """

    def __init__(
        self,
        name: str,
        source: "_Files | _HubSet",
        identity: dict[str, Any],
        *,
        passes: int | None,
        every_20th: bool,
    ):
        self.name = name
        self.every_20th = every_20th
        self._source = source
        self._identity = identity
        self._passes = passes
        self._keep = identity["split"] if every_20th else None
        self.number = 0
        self._index = 0  # how many documents of both splits were read in this pass
        self._documents = source.read(0, None)

    def __next__(self) -> str:
        while self._passes is None or self.number < self._passes:
            is_whole_pass = self._index == 0
            for document in self._documents:
                if document.isspace() or not document:
                    continue
                self._index += 1
                held_out = self._index % HELD_OUT_EVERY == 0
                if self._keep is None or held_out == (self._keep == "heldout"):
                    return document
            if is_whole_pass:
                break  # nothing of this split in the text: another pass would be empty too
            self.number += 1
            self._index = 0
            self._documents = self._source.read(self.number, None)
        raise StopIteration

    @cached_property
    def _fingerprint(self) -> Any:
        held_out = [f"every {HELD_OUT_EVERY}th document is held out"] if self._keep else []
        return [*self._source.fingerprint(), *held_out]

    def state_dict(self) -> dict[str, Any]:
        """The position of the next document, as JSON can hold it. It doesn't include the number of passes."""
        return {
            **self._identity,
            "fingerprint": self._fingerprint,
            "pass": self.number,
            "index": self._index,
            "position": self._source.position(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same text, split and seed. Raises TextError if the text has changed."""
        if state["fingerprint"] != self._fingerprint:
            raise TextError(
                f"the text {self.name!r} has changed since the run was interrupted: expected"
                f" {state['fingerprint']}, found {self._fingerprint}; restore it, or start a new run"
            )
        self.number, self._index = state["pass"], state["index"]
        self._documents = self._source.read(self.number, state["position"])


def _source_of(name: str, split: Split, seed: int, column: str) -> tuple["_Files | _HubSet", bool]:
    """The documents of a split, and whether the text has a held-out split of its own."""
    if name == "embedded":
        return _Passages(split, seed), True
    path = at_home(name)
    if path.exists():
        splits: Any = _splits_of(path)
    elif names_a_file(name):
        what = "file" if name.endswith(SUFFIXES) else "file or folder"
        raise TextError(f"{name}: no such {what}", expected=f"an existing {what}, or embedded")
    else:
        splits = _splits_on_hub(name)
    held_out = next((part for part in ("validation", "test") if part in splits), None)
    part = held_out if held_out and split == "heldout" else "train"
    if part not in splits:
        raise TextError(
            f"{name} has the splits {', '.join(map(str, splits))}", expected="one called train"
        )
    if path.exists():
        return _Files(splits[part], column), held_out is not None
    return _HubSet(splits[part], name, column), held_out is not None


class _Files:
    """The documents of files, in the same order in each pass."""

    def __init__(self, files: list[Path], column: str):
        self._files, self._column = files, column

    def read(self, number: int, position: Any) -> Iterator[str]:
        """The documents of a pass (from 0), from a `position()` on, or all if that is None."""
        self._part, self._row = position or (0, 0)
        return self._rest(self._parts(number)[self._part :])

    def _rest(self, parts: Sequence[Iterable[str]]) -> Iterator[str]:
        for part in parts:
            for document in islice(part, self._row, None):
                self._row += 1
                yield document
            self._part, self._row = self._part + 1, 0

    def _parts(self, number: int) -> Sequence[Iterable[str]]:
        """The documents of each file. A file is opened when its first document is needed."""
        return [read_documents(file, self._column) for file in self._files]

    def position(self) -> list[int]:
        """The position of the next document, as JSON can hold it: a file's number, and the document's in it."""
        return [self._part, self._row]

    def fingerprint(self) -> list[Any]:
        """What changes if the text changes, as JSON can hold it."""
        return fingerprint_of(self._files)


class _Passages(_Files):
    """The embedded text's passages, shuffled anew in each pass."""

    def __init__(self, split: Split, seed: int):
        super().__init__([EMBEDDED_TEXT], "text")
        self._split, self._seed = split, seed

    def _parts(self, number: int) -> Sequence[Iterable[str]]:
        passages = _passages_in(EMBEDDED_TEXT, self._split).copy()
        random.Random(f"{self._seed} {number}").shuffle(passages)
        return [passages]

    def fingerprint(self) -> list[Any]:
        return ["embedded", *super().fingerprint()]


@cache
def _passages_in(file: Path, split: Split) -> list[str]:
    """The passages of a split, which are read only once."""
    columns = (read_documents(file, column) for column in ("text", "split"))
    return [text for text, of in zip(*columns, strict=True) if of == split]


def _splits_of(path: Path) -> dict[str, list[Path]]:
    """The text files of a folder by split, or one file. Raises TextError if there are none."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        parts = file.relative_to(path).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if file.is_file() and file.name.endswith(SUFFIXES) and not is_hidden:
            splits.setdefault(_split_of(parts), []).append(file)
    if not splits:
        raise TextError(
            f"{path}: {'holds no text files' if path.is_dir() else 'not a text file'}",
            expected=f"one of {', '.join(SUFFIXES)}",
        )
    return splits


def _split_of(parts: Sequence[str]) -> str:
    """train, validation or test, by the name of a file of a folder or else of its folders."""
    for name in reversed(parts):
        if match := _SPLIT_NAME.match(name):
            word = match[1].lower()
            return word if word in ("train", "test") else "validation"
    return "train"


class _HubSet:
    """The documents in a column of a `datasets.IterableDataset`, read as `_Files` are."""

    def __init__(self, dataset: Any, name: str, column: str):
        self._dataset = dataset
        self._column = column
        self._name = name

    def read(self, number: int, position: Any) -> Iterator[str]:
        self._start: Any = position
        self._has_started = False
        self._dataset.set_epoch(number)  # a position is only valid in its own pass
        if position is not None:
            self._dataset.load_state_dict(position)
        return self._texts()

    def _texts(self) -> Iterator[str]:
        self._has_started = True
        for row in self._dataset:
            yield text_of_row(row, self._column, f"the data set {self._name!r}")

    def position(self) -> Any:
        return self._dataset.state_dict() if self._has_started else self._start

    def fingerprint(self) -> list[str]:
        return [self._name, str(self._dataset.info.version)]


def _splits_on_hub(name: str) -> Any:
    """A data set on the hub, as a dictionary of its splits."""
    import datasets.config

    path, _, configuration = name.partition(":")
    # datasets 3 can run a data set's own script. Later versions can't, and warn about the argument.
    runs_scripts = hasattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE")
    never: dict[str, Any] = {"trust_remote_code": False} if runs_scripts else {}
    try:
        return datasets.load_dataset(path, configuration or None, streaming=True, **never)
    # OSError: no such data set, or no network. ValueError: no such configuration, or datasets 3 would
    # have to run a script. RuntimeError: later versions would.
    except (OSError, ValueError, RuntimeError) as error:
        raise TextError(
            f"{name}: no such file or folder, and couldn't fetch a data set of this name from the hub"
            f" ({why_not_fetched(error)}); expected embedded, an existing file ({', '.join(SUFFIXES)}) or"
            " folder of such files, or the name of a data set on the hub, e.g. roneneldan/TinyStories"
        ) from error


def why_not_fetched(error: BaseException) -> str:
    """The reason for an error of the hub's libraries, in words."""
    from huggingface_hub import constants

    is_offline = constants.HF_HUB_OFFLINE and isinstance(error, OSError)
    return first_line(error) + (
        "; HF_HUB_OFFLINE is set: unset it to download" if is_offline else ""
    )
