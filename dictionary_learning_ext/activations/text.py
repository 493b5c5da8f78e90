"""Text: documents out of a source, and contexts of tokens out of documents. Both can be resumed.

stream = open_text("embedded")                      # an iterator of str
contexts = ContextStream(stream, tokenizer, 128)    # .next_batch(n): input_ids, attention_mask
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, TextError
from .text_files import SUFFIXES, cut
from .text_sources import (
    Files,
    Passages,
    Source,
    Split,
    files_of,
    open_hub_set,
)

Packing = Literal["pack", "truncate"]

HELD_OUT_EVERY = 20  # where a source has no split of its own
_DOCUMENTS_AHEAD = 32  # documents read, and pieces tokenised, at a time
_CHARACTERS_AHEAD = 1 << 20  # but no further documents once these are reached
_PIECE = 1 << 15  # characters tokenised as one


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
        self, name: str, source: Source, *, split: Split, seed: int, passes: int, every_20th: bool
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


class ContextStream:
    """Contexts of tokens out of a stream of documents.

    With packing "pack", documents follow each other with the tokenizer's end-of-text token after
    each, cut every `ctx_len` tokens; a last context that the text can't fill is left out. With
    "truncate" a context is one document, with the special tokens that the tokenizer adds, cut at
    `ctx_len` tokens or padded to it on the tokenizer's padding side.

    A document over 32,768 characters is tokenised in pieces cut at spaces, which can change a
    token at a cut, so that memory does not grow with the document.

    Attributes:
        documents_read: documents used to their end.
        tokens_read: tokens used, those between documents included and padding excluded.
    """

    def __init__(
        self, text: Iterator[str], tokenizer: Any, ctx_len: int, *, packing: Packing = "pack"
    ):
        if ctx_len < 1:
            raise ConfigError(f"a context can't have {ctx_len} tokens: give ctx_len 1 or more")
        if packing not in ("pack", "truncate"):
            raise ConfigError(f"there is no packing {packing!r}: give 'pack' or 'truncate'")
        if packing == "pack" and tokenizer.eos_token_id is None:
            raise ConfigError(
                "packing 'pack' puts the tokenizer's end-of-text token between documents and this"
                " tokenizer has none: give packing 'truncate'"
            )
        self.text: Any = iter(text)
        self.tokenizer = tokenizer
        self.ctx_len = ctx_len
        self.packing: Packing = packing
        self.documents_read = 0
        self.tokens_read = 0
        self._text_state: Any = None  # the text's, before the documents that _pieces are of
        self._pieces: list[tuple[str, bool]] = []  # of documents; whether it is the last of its
        self._used = 0  # of the pieces
        self._tokens: list[Tensor] = []  # of the pieces from _used on, as far as tokenised
        self._offset = 0  # tokens used of _tokens[0]

    @property
    def resumable(self) -> bool:
        """Whether the text has a state, as a `TextStream` does and a generator does not."""
        return hasattr(self.text, "state_dict")

    def next_batch(self, n: int) -> tuple[Tensor, Tensor]:
        """The next n contexts, or those that are left if they are fewer.

        Returns:
            input_ids and attention_mask (0 at padding), both int64 and (n, ctx_len).

        Raises:
            StopIteration: none is left.
            TextError: the text can't be read.
        """
        input_ids, mask = self._pack(n) if self.packing == "pack" else self._truncate(n)
        if len(input_ids) == 0:
            raise StopIteration
        return input_ids, mask

    def state_dict(self) -> dict[str, Any]:
        """The place of the next context, fit for JSON.

        Raises:
            TextError: the text has no state.
        """
        if not self.resumable:
            kind = type(self.text).__name__
            raise TextError(f"a text given as a {kind} can't be resumed: open it with open_text")
        fresh = self._used == len(self._pieces)
        return {
            "text": self.text.state_dict() if fresh else self._text_state,
            "pieces": 0 if fresh else self._used,
            "offset": self._offset,
            "documents_read": self.documents_read,
            "tokens_read": self.tokens_read,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises TextError where the text does."""
        self.text.load_state_dict(state["text"])
        self._pieces, self._used, self._tokens = [], 0, []
        if state["pieces"] or state["offset"]:
            self._read_pieces()
        self._used, self._offset = state["pieces"], state["offset"]
        self.documents_read, self.tokens_read = state["documents_read"], state["tokens_read"]

    def _pack(self, n: int) -> tuple[Tensor, Tensor]:
        tokens = torch.empty(n * self.ctx_len, dtype=torch.int64)
        filled = 0
        while filled < len(tokens) and self._has_tokens():
            part = self._tokens[0][self._offset :][: len(tokens) - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            self._use(len(part))
        whole = filled // self.ctx_len
        input_ids = tokens[: whole * self.ctx_len].view(whole, self.ctx_len)
        return input_ids, torch.ones_like(input_ids)

    def _truncate(self, n: int) -> tuple[Tensor, Tensor]:
        padding = self.tokenizer.pad_token_id or 0  # masked, so any will do
        input_ids = torch.full((n, self.ctx_len), padding, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        row = 0
        while row < n and self._has_tokens():
            part = self._tokens[0]
            start = self.ctx_len - len(part) if self.tokenizer.padding_side == "left" else 0
            real = slice(start, start + len(part))
            input_ids[row, real] = part
            mask[row, real] = 1
            row += 1 if len(part) else 0  # nothing is left of a document of unknown characters
            self._use(len(part))
        return input_ids[:row], mask[:row]

    def _has_tokens(self) -> bool:
        """Whether the text goes on; if so, _tokens[0] is there."""
        if not self._tokens:
            if self._used == len(self._pieces) and not self._read_pieces():
                return False
            self._tokens = self._tokenize(self._pieces[self._used :][:_DOCUMENTS_AHEAD])
        return True

    def _use(self, n: int) -> None:
        """Count n further tokens of _tokens[0] as used."""
        self.tokens_read += n
        self._offset += n
        if self._offset == len(self._tokens[0]):
            self.documents_read += self._pieces[self._used][1]
            del self._tokens[0]
            self._used += 1
            self._offset = 0

    def _read_pieces(self) -> bool:
        """Read some documents of the text; whether there were any."""
        self._text_state = self.text.state_dict() if self.resumable else None
        self._pieces, self._used = [], 0
        documents = characters = 0
        for document in self.text:
            self._pieces += self._cut(document)
            documents += 1
            characters += len(document)
            if documents == _DOCUMENTS_AHEAD or characters >= _CHARACTERS_AHEAD:
                break
        return documents > 0

    def _cut(self, document: str) -> list[tuple[str, bool]]:
        if self.packing == "truncate":  # a token of more than 64 characters is rare
            return [(document[: 64 * self.ctx_len + _PIECE], True)]
        pieces, start = [], 0
        while len(document) - start > _PIECE:
            end = start + cut(document[start : start + _PIECE], _PIECE)
            pieces.append((document[start:end], False))
            start = end
        return [*pieces, (document[start:], True)]

    def _tokenize(self, pieces: list[tuple[str, bool]]) -> list[Tensor]:
        texts = [text for text, _ in pieces]
        # verbose=False: no warning of texts longer than the model can take at once.
        if self.packing == "truncate":
            limit = {"truncation": True, "max_length": self.ctx_len}
            all_ids = self.tokenizer(texts, **limit, verbose=False)["input_ids"]
            return [torch.tensor(ids, dtype=torch.int64) for ids in all_ids]
        all_ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ends = [[self.tokenizer.eos_token_id] if is_last else [] for _, is_last in pieces]
        return [torch.tensor(a + b, dtype=torch.int64) for a, b in zip(all_ids, ends, strict=True)]
