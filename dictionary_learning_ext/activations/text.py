"""Text: a stream of documents. Reading can be resumed at any document.

documents = open_text("embedded")    # an iterator of str
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.options import Split
from ..errors import ConfigError, TextError
from .text_files import SUFFIXES
from .text_sources import DocumentSource, Files, Passages, files_of, open_hub_set

HELD_OUT_EVERY = 20  # where a source has no split of its own


def open_text(name: str, *, split: Split = "train", seed: int = 0, passes: int = 1) -> "TextStream":
    """Open a text as a stream of documents.

    Arguments:
        name: "embedded" (the books shipped with the package); a .txt, .jsonl, .jsonl.zst or
            .parquet file, or a folder of such files, read in the order of their names; or a set
            of the Hugging Face hub, as "roneneldan/TinyStories" or "name:configuration". A file
            or folder that exists goes before a set of the same name.
        split: "heldout" is the embedded text's own held-out part, a hub set's `validation` or
            else `test`, a folder's files named validation* or else test*. Where there is none
            of these, it is every 20th document, and "train" is the others.
        seed: of the order of the embedded text, another in each pass. Other sources keep theirs.
        passes: how often the text is read before it ends.

    Raises:
        TextError: there is no such text, or it can't be reached.
        ConfigError: `split` or `passes` is none that there is.
    """
    if split not in ("train", "heldout"):
        raise ConfigError(f"there is no split {split!r} of a text: give 'train' or 'heldout'")
    if passes < 1:
        raise ConfigError(f"a text can't be read {passes} times: give passes 1 or more")
    path = Path(name).expanduser()
    if name == "embedded":
        source, has_split = Passages(split, seed), True
    elif path.exists():
        files, has_split = files_of(path, split)
        source = Files(files)
    elif name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES):
        raise TextError(
            f"there is no text {name!r}: give 'embedded', an existing file or folder, or the"
            " name of a set on the hub"
        )
    else:
        source, has_split = open_hub_set(name, split)
    return TextStream(name, source, split=split, seed=seed, passes=passes, every_20th=not has_split)


class TextStream(Iterator[str]):
    """Documents that are not blank, in an order that repeats; ends after the last pass.

    Attributes:
        name: as given to `open_text`.
        documents_read: how many documents it has yielded, over all passes.
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
        self._source = source
        self._identity = {"text": name, "split": split, "seed": seed}
        self._passes = passes
        self._keep = split if every_20th else None
        self._pass = 0
        self._index = 0  # documents met in this pass, of both splits
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
                break  # empty, and no pass will change that
            self._pass += 1
            self._index = 0
            self._source.start(self._pass, None)
        raise StopIteration

    @cached_property
    def _fingerprint(self) -> Any:
        return self._source.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """The place of the next document, small and fit for JSON. Passes are not part of it."""
        return {
            **self._identity,
            "fingerprint": self._fingerprint,
            "pass": self._pass,
            "index": self._index,
            "position": self._source.position(),
            "documents_read": self.documents_read,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            TextError: it was taken from another text, split or seed, or the text has changed.
        """
        was = {key: state[key] for key in self._identity}
        if was != self._identity:
            raise TextError(
                f"a run on the text {was} can't go on with {self._identity}: give the former"
            )
        if state["fingerprint"] != self._fingerprint:
            raise TextError(
                f"the text {self.name!r} has changed since the run was stopped, from"
                f" {state['fingerprint']} to {self._fingerprint} (name, bytes, hash): put the"
                " former back, or start again"
            )
        self._pass, self._index = state["pass"], state["index"]
        self.documents_read = state["documents_read"]
        self._source.start(self._pass, state["position"])
