"""Cut documents into contexts of tokens.

contexts = ContextStream(open_text("embedded"), tokenizer, 128)
input_ids_BL, mask_BL = contexts.next_batch(32)

Shapes: B contexts, L = ctx_len tokens.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..config.checks import require_choice
from ..config.run import Packing, RunConfig, Split, evaluation_batch
from ..errors import ConfigError, TextError
from .positions import PositionRule
from .text import HELD_OUT_EVERY, text_of
from .text_files import cut

_DOCUMENTS_AHEAD = 32  # documents that are read, and pieces that are tokenised, at a time
_CHARACTERS_AHEAD = 1 << 20  # fewer documents are read at a time if they have this many characters
_PIECE = 1 << 15  # characters of a long document that are tokenised together
_CONTEXTS_AT_ONCE = 32


ContextBatches = Iterator[tuple[Tensor, Tensor]]
"""Batches of contexts: input_ids and attention_mask (0 at padding), both int64, (B, L)."""


class SharedTokenizer:
    """A tokenizer for several readers of one text. It tokenises each text once, and keeps the result until all readers
    have asked for it.

    Arguments:
        readers: how many readers there are.
    """

    _KEPT = 64
    """The largest number of kept results. Some stay if readers ask for different texts."""

    def __init__(self, tokenizer: Any, readers: int):
        tokenizer.truncation_side = "right"  # as in a ContextStream
        self._tokenizer, self._readers = tokenizer, readers
        self._kept: dict[Any, tuple[Any, int]] = {}  # result, and how many readers still need it

    def __call__(self, texts: list[str], **options: Any) -> Any:
        asked = tuple(texts), tuple(options.items())
        found, left = self._kept.pop(asked, (None, self._readers))
        if found is None:
            found = self._tokenizer(texts, **options)
        if left > 1:
            self._kept[asked] = found, left - 1
            if len(self._kept) > self._KEPT:
                del self._kept[next(iter(self._kept))]
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class Ranks(NamedTuple):
    """A group of processes that work together, and this process's rank in it."""

    rank: int
    count: int
    gather: Callable[[Any], list[Any]]
    """All-gather of Python objects: returns every process's object, by rank."""


ONE_RANK = Ranks(0, 1, lambda what: [what])


class ContextStream:
    """Cuts a stream of documents into contexts of tokens. Reading can be resumed at any context.

    A long document is tokenised in pieces, to bound the memory. Pieces are cut at spaces, so the tokens at a
    cut can differ from those of the whole document.

    Arguments:
        packing: "pack" joins the documents, with the tokenizer's end-of-text token after each, and
            cuts them every `ctx_len` tokens. A last context that is not full is left out.
            "truncate" makes each document a context, with the special tokens that the tokenizer
            adds. It is cut to its first `ctx_len` tokens, or padded on the right, whatever the
            tokenizer's sides, as models with learned positions count from the left.

    Raises: ConfigError if there is no such packing, or "pack" is given and the tokenizer has no end-of-text token.
    """

    def __init__(
        self,
        text: Iterator[str],
        tokenizer: Any,
        ctx_len: int,
        *,
        packing: Packing = "pack",
    ):
        require_choice("packing", packing, Packing)
        if packing == "pack" and tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end-of-text token to put between documents",
                instead="use text_packing='truncate'",
            )
        tokenizer.truncation_side = "right"
        self.text: Any = iter(text)
        self.tokenizer = tokenizer
        self.ctx_len = ctx_len
        self.packing: Packing = packing
        self._text_state: Any = None  # the text's state before the documents in _pieces
        self._pieces: list[tuple[str, bool]] = []  # a piece, and whether it ends its document
        self._used = 0  # how many pieces were used
        self._tokens: list[Tensor] = []  # tokens of the next pieces, from _pieces[_used] on
        self._offset = 0  # how many tokens of _tokens[0] were used

    @property
    def resumable(self) -> bool:
        """Whether the text has a `state_dict`, as a `TextStream` has and a generator hasn't."""
        return hasattr(self.text, "state_dict")

    @property
    def passes(self) -> int:
        """How many passes over the text are complete."""
        return getattr(self.text, "number", 0)

    def next_batch(self, n: int) -> tuple[Tensor, Tensor]:
        """The next n contexts, or fewer at the end of the text.

        Returns: input_ids and attention_mask (0 at padding), both int64 and (n, L).

        Raises: TextError if the text can't be read.
        """
        return self._pack(n) if self.packing == "pack" else self._truncate(n)

    def batches(self, n: int = _CONTEXTS_AT_ONCE) -> ContextBatches:
        """All contexts that are left, n at a time."""
        while len((batch := self.next_batch(n))[0]):
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position of the next context, as JSON can hold it. Raises TextError if the text can't be resumed."""
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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`. Raises TextError if the text has changed."""
        self.text.load_state_dict(state["text"])
        self._pieces, self._used, self._tokens = [], 0, []
        if state["pieces"] or state["offset"]:
            self._read_pieces()
        self._used, self._offset = state["pieces"], state["offset"]

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
        contexts: list[Tensor] = []
        while len(contexts) < n and self._has_tokens():
            ids_L = self._tokens[0]
            if len(ids_L):  # a document of unknown characters may have no token
                contexts.append(ids_L)
            self._use(len(ids_L))
        return _padded(contexts, self.ctx_len, self.tokenizer)

    def _has_tokens(self) -> bool:
        """Make sure that the next tokens are in _tokens[0]. Returns False at the end of the text."""
        if not self._tokens:
            if self._used == len(self._pieces) and not self._read_pieces():
                return False
            self._tokens = self._tokenize(self._pieces[self._used :][:_DOCUMENTS_AHEAD])
        return True

    def _use(self, n: int) -> None:
        """Mark the next n tokens of _tokens[0] as used."""
        self._offset += n
        if self._offset == len(self._tokens[0]):
            del self._tokens[0]
            self._used += 1
            self._offset = 0

    def _read_pieces(self) -> bool:
        """Read the next documents of the text. Returns False if there are none."""
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
        if self.packing == "truncate":  # few tokens have more than 64 characters
            return [(document[: 64 * self.ctx_len + _PIECE], True)]
        pieces, start = [], 0
        while len(document) - start > _PIECE:
            end = start + cut(document[start : start + _PIECE], _PIECE)
            pieces.append((document[start:end], False))
            start = end
        return [*pieces, (document[start:], True)]

    def _tokenize(self, pieces: list[tuple[str, bool]]) -> list[Tensor]:
        texts = [text for text, _ in pieces]
        # verbose=False: no warning about texts that are longer than the model's positions.
        if self.packing == "truncate":
            limit = {"truncation": True, "max_length": self.ctx_len}
            all_ids = self.tokenizer(texts, **limit, verbose=False)["input_ids"]
            return [torch.tensor(ids, dtype=torch.int64) for ids in all_ids]
        all_ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ends = [[self.tokenizer.eos_token_id] if is_last else [] for _, is_last in pieces]
        return [torch.tensor(a + b, dtype=torch.int64) for a, b in zip(all_ids, ends, strict=True)]


def contexts_of(
    run: RunConfig, split: Split, tokenizer: Any, *, passes: int | None = 1
) -> ContextStream:
    """A run's text, in the contexts of its training."""
    text = text_of(run, split, passes=passes)
    return ContextStream(text, tokenizer, run.ctx_len, packing=run.text_packing)


def held_out_documents(run: RunConfig, tokenizer: Any) -> ContextStream:
    """The documents on which a language model's loss is measured: each is cut to one context."""
    documents = islice(text_of(run, "heldout"), run.eval_documents)
    return ContextStream(documents, tokenizer, run.ctx_len, packing="truncate")


def whole_documents(
    documents: Iterator[str],
    tokenizer: Any,
    ctx_len: int,
    n: int = _CONTEXTS_AT_ONCE,
    *,
    packing: Packing = "pack",
) -> ContextBatches:
    """Split each document into contexts of its own, n at a time. The last context is padded on the right.

    Unlike `ContextStream`, it neither joins nor truncates documents.

    Arguments:
        documents: read as they are needed.
        packing: the packing in training. With "truncate" a document begins with the special tokens that the
            tokenizer adds, with "pack" it has none.
    """
    contexts: list[Tensor] = []
    for document in documents:
        ids = tokenizer(document, add_special_tokens=packing == "truncate", verbose=False)
        ids_N = torch.tensor(ids["input_ids"], dtype=torch.int64)
        contexts += ids_N.split(ctx_len) if len(ids_N) else ()
        while len(contexts) >= n:
            yield _padded(contexts[:n], ctx_len, tokenizer)
            contexts = contexts[n:]
    if contexts:
        yield _padded(contexts, ctx_len, tokenizer)


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its beginning-of-text token before each text, when it adds special tokens."""
    first = tokenizer("", verbose=False)["input_ids"][:1]
    return tokenizer.bos_token_id is not None and list(first) == [tokenizer.bos_token_id]


def _padded(contexts: list[Tensor], ctx_len: int, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, L), of contexts of at most L tokens, padded on the right."""
    padding = tokenizer.pad_token_id or 0  # any token will do, because it is masked
    ids_BL = torch.full((len(contexts), ctx_len), padding, dtype=torch.int64)
    mask_BL = torch.zeros_like(ids_BL)
    for row, ids_L in enumerate(contexts):
        ids_BL[row, : len(ids_L)] = ids_L
        mask_BL[row, : len(ids_L)] = 1
    return ids_BL, mask_BL


def no_context(settings: RunConfig, split: Split) -> TextError:
    """The error for a run's text that has not even one context."""
    part = "training" if split == "train" else "held-out"
    return TextError(
        f"its {part} text has no whole context of {settings.ctx_len} tokens",
        name="data",
        value=settings.data,
        expected="at least one",
        instead="use a longer text or a smaller ctx_len",
    )


def require_held_out(settings: RunConfig, tokenizer: Any) -> None:
    """Raise a TextError unless a run's held-out text fills one batch of an evaluation.

    Outliers count as tokens, as they are only known from activations.
    """
    rule = PositionRule.of(settings, tokenizer)
    contexts = contexts_of(settings, "heldout", tokenizer)
    there, need = 0, evaluation_batch(settings.eval_tokens)
    for ids_BL, mask_BL in contexts.batches():
        there += int(rule.by_token(ids_BL, mask_BL).sum())
        if there >= need:
            return
    which = f" (every {HELD_OUT_EVERY}th document)" if contexts.text.every_20th else ""
    raise TextError(
        f"the held-out part of {settings.data!r}{which} has {there:,} tokens",
        expected=f"at least {need:,} to evaluate on",
        instead="use a longer text, or eval_tokens=0",
    )
