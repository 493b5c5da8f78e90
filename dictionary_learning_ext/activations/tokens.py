"""From documents to contexts of tokens. Reading can be resumed at any context.

contexts = ContextStream(open_text("embedded"), tokenizer, 128)
input_ids, attention_mask = contexts.next_batch(32)
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..config.checks import require, require_choice
from ..config.run import Packing
from ..errors import ConfigError, Setting, TextError
from .text_files import cut, require_no_surrogate

_DOCUMENTS_AHEAD = 32  # documents read, and pieces tokenised, at a time
_CHARACTERS_AHEAD = 1 << 20  # fewer documents if they have this many characters


class Share(NamedTuple):
    """What one of several processes reads: every `count`-th context, from number `rank` on."""

    rank: int = 0
    count: int = 1


WHOLE = Share()
"""What a single process reads: all."""


class TokenContexts(Protocol):
    """Contexts of tokens, in an order."""

    def next_batch(self, n: int) -> tuple[Tensor, Tensor]:
        """The next n contexts, see `ContextStream.next_batch`."""
        ...


class ContextStream:
    """Cuts a stream of documents into contexts of tokens.

    A long document is tokenised in pieces, so memory does not grow with it. Pieces are cut at
    spaces. A token at a cut can differ from the one that the whole document would have there.

    Arguments:
        text: the documents.
        tokenizer: the language model's tokenizer.
        ctx_len: tokens in a context.
        packing: "pack" joins the documents, with the tokenizer's end-of-text token after each, and
            cuts them every `ctx_len` tokens. A last context that is not full is left out.
            "truncate" makes each document a context, with the special tokens that the tokenizer
            adds. It is cut to `ctx_len` tokens, or padded on the right, whatever the tokenizer's side
            is: a model with learned positions counts them from the left.
        piece_characters: the length of a piece of a long document.
        share: which of the contexts are handed out. The others are tokenised too.

    Attributes:
        documents_read: documents used to their end.
        tokens_read: tokens used, including those between documents, excluding padding. Of all shares.

    Raises: ConfigError if a setting is out of range or does not suit the tokenizer.
    """

    def __init__(
        self,
        text: Iterator[str],
        tokenizer: Any,
        ctx_len: int,
        *,
        packing: Packing = "pack",
        piece_characters: int = 1 << 15,
        share: Share = WHOLE,
    ):
        require(ctx_len >= 1, "ctx_len", ctx_len, "at least 1")
        require_choice("packing", packing, Packing)
        if packing == "pack" and tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end-of-text token to put between documents",
                instead=("use ", Setting("text_packing", "truncate")),
            )
        self.text: Any = iter(text)
        self.tokenizer = tokenizer
        self.ctx_len = ctx_len
        self.packing: Packing = packing
        self._piece_characters = piece_characters
        self._share = share
        self.documents_read = 0
        self.tokens_read = 0
        self._text_state: Any = None  # the text's state before the documents in _pieces
        self._pieces: list[tuple[str, bool]] = []  # a piece, and whether it ends its document
        self._used = 0  # pieces used
        self._tokens: list[Tensor] = []  # tokens of the next pieces, from _pieces[_used] on
        self._offset = 0  # tokens used of _tokens[0]

    @property
    def resumable(self) -> bool:
        """Whether the text has a state. A `TextStream` has one, a generator doesn't."""
        return hasattr(self.text, "state_dict")

    def next_batch(self, n: int) -> tuple[Tensor, Tensor]:
        """The next n contexts, or all that are left if fewer.

        Returns:
            input_ids and attention_mask (0 at padding), both int64 and (n, ctx_len).

        Raises:
            StopIteration: no context is left.
            TextError: the text can't be read.
        """
        rank, count = self._share
        read = self._pack if self.packing == "pack" else self._truncate
        input_ids, mask = (tokens[rank::count] for tokens in read(n * count))
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
            raise TextError(
                f"a text of type {kind} can't be resumed: expected a TextStream; use"
                " open_text(name)"
            )
        fresh = self._used == len(self._pieces)
        return {
            "text": self.text.state_dict() if fresh else self._text_state,
            "pieces": 0 if fresh else self._used,
            "offset": self._offset,
            "documents_read": self.documents_read,
            "tokens_read": self.tokens_read,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises TextError if the text does."""
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
        used = filled - filled % self.ctx_len
        input_ids = rearrange(tokens[:used], "(b l) -> b l", l=self.ctx_len)
        return input_ids, torch.ones_like(input_ids)

    def _truncate(self, n: int) -> tuple[Tensor, Tensor]:
        padding = self.tokenizer.pad_token_id or 0  # any token will do, because it is masked
        input_ids = torch.full((n, self.ctx_len), padding, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        row = 0
        while row < n and self._has_tokens():
            part = self._tokens[0]
            input_ids[row, : len(part)] = part
            mask[row, : len(part)] = 1
            row += 1 if len(part) else 0  # a document of unknown characters may have no token
            self._use(len(part))
        return input_ids[:row], mask[:row]

    def _has_tokens(self) -> bool:
        """Whether any token is left. If so, the next ones are in _tokens[0]."""
        if not self._tokens:
            if self._used == len(self._pieces) and not self._read_pieces():
                return False
            self._tokens = self._tokenize(self._pieces[self._used :][:_DOCUMENTS_AHEAD])
        return True

    def _use(self, n: int) -> None:
        """Mark the next n tokens of _tokens[0] as used."""
        self.tokens_read += n
        self._offset += n
        if self._offset == len(self._tokens[0]):
            self.documents_read += self._pieces[self._used][1]
            del self._tokens[0]
            self._used += 1
            self._offset = 0

    def _read_pieces(self) -> bool:
        """Read the next documents of the text. Returns whether there were any."""
        self._text_state = self.text.state_dict() if self.resumable else None
        self._pieces, self._used = [], 0
        documents = characters = 0
        for document in self.text:
            if not document.isascii():
                require_no_surrogate(document, f"document {self.documents_read + documents + 1}")
            self._pieces += self._cut(document)
            documents += 1
            characters += len(document)
            if documents == _DOCUMENTS_AHEAD or characters >= _CHARACTERS_AHEAD:
                break
        return documents > 0

    def _cut(self, document: str) -> list[tuple[str, bool]]:
        if self.packing == "truncate":  # few tokens have more than 64 characters
            return [(document[: 64 * self.ctx_len + self._piece_characters], True)]
        pieces, start, length = [], 0, self._piece_characters
        while len(document) - start > length:
            end = start + cut(document[start : start + length], length)
            pieces.append((document[start:end], False))
            start = end
        return [*pieces, (document[start:], True)]

    def _tokenize(self, pieces: list[tuple[str, bool]]) -> list[Tensor]:
        texts = [text for text, _ in pieces]
        # verbose=False: no warning about texts that are longer than the model's context.
        if self.packing == "truncate":
            limit = {"truncation": True, "max_length": self.ctx_len}
            all_ids = self.tokenizer(texts, **limit, verbose=False)["input_ids"]
            return [torch.tensor(ids, dtype=torch.int64) for ids in all_ids]
        all_ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ends = [[self.tokenizer.eos_token_id] if is_last else [] for _, is_last in pieces]
        return [torch.tensor(a + b, dtype=torch.int64) for a, b in zip(all_ids, ends, strict=True)]
