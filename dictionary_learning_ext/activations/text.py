"""Text: a stream of documents. Reading can be resumed at any document.

documents = open_text("embedded")    # an iterator of str
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.checks import require, require_choice
from ..config.run import Split, without_slash
from ..errors import TextError
from .text_files import SUFFIXES
from .text_sources import DocumentSource, Files, Passages, files_holding, open_hub_set

HELD_OUT_EVERY = 20  # if a text has no held-out part of its own


def open_text(name: str, *, split: Split = "train", seed: int = 0, passes: int = 1) -> "TextStream":
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
        passes: how often the text is read before it ends.

    Raises:
        TextError: there is no such text, or the hub can't be reached.
        ConfigError: `split` or `passes` is out of range.
    """
    require_choice("split", split, Split)
    require(passes >= 1, "passes", passes, "at least 1")
    path = Path(name).expanduser()
    if name == "embedded":
        source, has_split = Passages(split, seed), True
    elif path.exists():
        files, has_split = files_holding(path, split)
        source = Files(files)
    elif name.endswith(SUFFIXES):
        raise TextError(
            f"no file {name!r}: expected an existing file, or 'embedded'; correct the path"
        )
    elif names_a_file(name):
        raise TextError(
            f"no file or folder {name!r}: expected 'embedded', an existing file or folder, or the"
            " name of a data set on the hub, e.g. roneneldan/TinyStories"
        )
    else:
        source, has_split = open_hub_set(name, split)
    return TextStream(name, source, split=split, seed=seed, passes=passes, every_20th=not has_split)


def names_a_file(name: str) -> bool:
    """Whether a text is a file or folder, there or not, rather than the embedded one or the hub's."""
    looks_so = name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES)
    return name != "embedded" and (looks_so or Path(name).expanduser().exists())


class TextStream(Iterator[str]):
    """The documents of a text that are not blank, in an order that can be repeated.

    Attributes:
        name: as given to `open_text`.
        documents_read: documents yielded, over all passes.
        every_20th: whether the text has no held-out part of its own.
        file_bytes: the size of its files, held-out part included. None on the hub.
    """

    def __init__(
        self,
        name: str,
        source: DocumentSource,
        *,
        split: Split,
        seed: int,
        passes: int,
        every_20th: bool,
    ):
        self.name = name
        self.documents_read = 0
        self.every_20th = every_20th
        self.file_bytes = source.file_bytes
        self._source = source
        self._identity = {"text": without_slash(name), "split": split, "seed": seed}
        self._passes = passes
        self._keep = split if every_20th else None
        self._pass = 0
        self._index = 0  # documents read in this pass, of both splits
        source.start(0, None)

    def __next__(self) -> str:
        while self._pass < self._passes:
            for document in self._source:
                if document.isspace() or not document:
                    continue
                self._index += 1
                held_out = self._index % HELD_OUT_EVERY == 0
                if self._keep is None or held_out == (self._keep == "heldout"):
                    self.documents_read += 1
                    return document
            if self._index == 0:
                break  # an empty text: another pass would be empty too
            self._pass += 1
            self._index = 0
            self._source.start(self._pass, None)
        raise StopIteration

    @cached_property
    def _fingerprint(self) -> Any:
        return self._source.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """The place of the next document, fit for JSON. The number of passes is not part of it."""
        return {
            **self._identity,
            "fingerprint": self._fingerprint,
            "pass": self._pass,
            "index": self._index,
            "position": self._source.position(),
            "documents_read": self.documents_read,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            TextError: it was taken from another text, split or seed, or the text has changed.
        """
        was = {key: state[key] for key in self._identity} | {"text": without_slash(state["text"])}
        if was != self._identity:
            raise TextError(
                f"the run read {was} and can't resume with {self._identity}: expected the same"
                " text, split and seed; use these, or start a new run"
            )
        if state["fingerprint"] != self._fingerprint:
            raise TextError(
                f"the text {self.name!r} has changed since the run was interrupted: expected"
                f" {state['fingerprint']}, found {self._fingerprint} (name, bytes, hash); restore"
                " it, or start a new run"
            )
        self._pass, self._index = state["pass"], state["index"]
        self.documents_read = state["documents_read"]
        self._source.start(self._pass, state["position"])
