"""Whether a text is long enough for a run, found before the run starts."""

import logging
import math
from dataclasses import replace
from typing import Any, NamedTuple

from ..config.options import Split
from ..config.run_config import RunConfig
from ..errors import Setting, TextError, listed
from .position_rule import PositionRule
from .run_inputs import evaluation_batch
from .text import HELD_OUT_EVERY, TextStream, open_text
from .text_files import PARAGRAPHS
from .tokens import ContextStream

logger = logging.getLogger(__name__)

_CONTEXTS_AT_ONCE = 256
_BYTES_PER_TOKEN = 16
"""Files of this many bytes for each token that a run needs aren't counted. Tokens have about 4 bytes
of text, so up to three quarters of a file may be something else."""
_MOST_PASSES = 100
"""More passes over a text than this are not proposed."""
_MANY = 2_000_000
"""Counting more tokens than this takes seconds, which are explained."""


class _Counted(NamedTuple):
    """One pass over a text, or its start."""

    documents: int
    tokens: int
    """Including those after the last whole context."""
    rows: int
    """Tokens of whole contexts that aren't left out by their id."""
    is_whole: bool
    """Whether this is the whole pass."""


_former: dict[Any, _Counted] = {}
"""What this process has counted, by text and settings: the runs of a sweep read one text."""


def require_enough_text(run: RunConfig, tokenizer: Any, processes: int = 1) -> None:
    """Tokenize as much of a run's text as it needs, and refuse it if there is less.

    With several processes, each reads its share of the contexts, and none may be one short.

    A data set on the hub isn't counted, nor is packed text in files far larger than the run needs.
    Tokens that `max_norm_multiple` will leave out are counted: they aren't known yet.

    Raises: TextError, which says how often the text must be read, or how much held-out text is
    missing.
    """
    text = open_text(run.data)
    if text.file_bytes is None:
        return
    need = run.steps * run.batch_size + (processes - 1) * run.ctx_len
    train = _count_train(run, tokenizer, text.file_bytes, need)
    if train is not None and train.documents == 0 and train.is_whole:
        raise TextError(
            "no documents to train on",
            name="data",
            value=run.data,
            expected="at least one",
            instead="use another text",
        )
    faults: list[tuple[str | Setting, ...]] = []
    if train is not None and train.is_whole:
        faults += _too_short(run, train, need)
    if run.eval_tokens:
        held_out = _count(run, tokenizer, "heldout", evaluation_batch(run.eval_tokens))
        if held_out.rows < evaluation_batch(run.eval_tokens):
            whole = _count(run, tokenizer, "train", _MANY)
            faults.append(_no_held_out(run, whole, held_out, text))
    if faults:
        first, *others = faults
        raise TextError((*first, *(part for each in others for part in (". And ", *each))))


def tokens_to_cache(run: RunConfig, tokenizer: Any, need: int) -> int | None:
    """Tokens in the contexts of a run's text, if they are fewer than `need`.

    None if there are enough, or the text isn't counted, see `require_enough_text`.
    """
    if (file_bytes := open_text(run.data).file_bytes) is None:
        return None
    run = replace(run, remove_bos=False)
    train = _count_train(run, tokenizer, file_bytes, need)
    if train is None or not train.is_whole:
        return None
    found = _rows(run, train, run.text_passes)
    return found if found < need else None


def _count_train(run: RunConfig, tokenizer: Any, file_bytes: int, need: int) -> _Counted | None:
    """Count a run's text; None if it is far larger than the run needs."""
    is_packed = run.text_packing == "pack"
    is_far_larger = is_packed and file_bytes * run.text_passes >= _BYTES_PER_TOKEN * need
    return None if is_far_larger else _count(run, tokenizer, "train", need)


def _rows(run: RunConfig, train: _Counted, passes: int) -> int:
    """In some passes of a text of which one was counted."""
    if run.text_packing != "pack":
        return passes * train.rows
    tokens = passes * train.tokens // run.ctx_len * run.ctx_len
    return int(tokens * _share(run, train))


def _share(run: RunConfig, train: _Counted) -> float:
    """Of packed text: the part of the tokens that isn't left out."""
    whole = train.tokens // run.ctx_len * run.ctx_len  # tokens of whole contexts
    return train.rows / whole if whole else 1.0


def _count(run: RunConfig, tokenizer: Any, split: Split, at_most: int) -> _Counted:
    """Count one pass of a run's text, until there are `at_most` rows, unless that is known."""
    text = open_text(run.data, split=split)
    settings = (run.model, run.data, run.text_packing, run.ctx_len, run.remove_bos)
    key = (*settings, split, text.file_bytes)
    former = _former.get(key)
    if former is None or (former.rows < at_most and not former.is_whole):
        _former[key] = _count_again(run, tokenizer, text, at_most)
    return _former[key]


def _count_again(run: RunConfig, tokenizer: Any, text: TextStream, at_most: int) -> _Counted:
    if at_most > _MANY:
        logger.info(
            "counting the tokens of the text %r: the run needs %s", run.data, f"{at_most:,}"
        )
    rule = PositionRule(tokenizer, remove_bos=run.remove_bos)
    contexts = ContextStream(text, tokenizer, run.ctx_len, packing=run.text_packing)
    rows = 0
    while rows < at_most:
        try:
            input_ids_BL, mask_BL = contexts.next_batch(_CONTEXTS_AT_ONCE)
        except StopIteration:
            return _Counted(contexts.documents_read, contexts.tokens_read, rows, True)
        rows += int(rule.by_token(input_ids_BL, mask_BL).sum())
    return _Counted(contexts.documents_read, contexts.tokens_read, rows, False)


def _too_short(run: RunConfig, train: _Counted, need: int) -> list[tuple[str | Setting, ...]]:
    """What to say of a text that ends before the run does."""
    is_packed = run.text_packing == "pack"
    if (found := _rows(run, train, run.text_passes)) >= need:
        return []
    one_pass = train.tokens * _share(run, train) if is_packed else train.rows
    if not one_pass:
        return [
            (f"the text {run.data!r} has no tokens to train on: expected {need:,}; use another",)
        ]
    passes = math.ceil(need / one_pass)
    while _rows(run, train, passes) < need:
        passes += 1
    steps = found // run.batch_size
    has = f"{found:,} tokens"
    if is_packed:
        in_all = f"{int(run.text_passes * one_pass):,} tokens"
        has = f"{in_all}, {found:,} of them in whole contexts of {run.ctx_len}"
    if run.text_passes > 1:
        has = f"in {run.text_passes} passes {has}"
    ways = [Setting("text_passes", passes)] if passes <= _MOST_PASSES else []
    ways += [Setting("steps", steps)] if steps else []
    use = listed(ways) if ways else ("a longer text",)
    is_cut = is_packed and passes <= _MOST_PASSES
    note = " (a context may run on into the next pass)" if is_cut else ""
    return [
        (
            f"the text {run.data!r} has {has}: expected {need:,} for {run.steps:,} steps of"
            f" {run.batch_size:,}; use ",
            *use,
            note,
        )
    ]


def _no_held_out(
    run: RunConfig, train: _Counted, held_out: _Counted, text: TextStream
) -> tuple[str | Setting, ...]:
    """Too little held-out text: how many documents would do."""
    need = evaluation_batch(run.eval_tokens)
    found = f"the held-out part of {run.data!r} has {held_out.rows:,} tokens"
    expected = f"expected at least {need:,} to evaluate on"
    nothing = Setting("eval_tokens", 0)
    if not text.every_20th:
        return f"{found}: {expected}; add to it, or use ", nothing
    documents, tokens = train.documents + held_out.documents, train.tokens + held_out.tokens
    each, cut = max(1, tokens) / max(1, documents), ""
    if run.data.endswith(".txt"):
        cut = f", as a .txt is cut into documents of up to {PARAGRAPHS:,} characters"
        if documents == 1:  # a longer text's documents would hold half of that at least
            each = max(each, tokens * PARAGRAPHS / 2 / max(1, text.file_bytes or 0))
    # One document more, as they differ in length.
    enough = HELD_OUT_EVERY * (math.ceil((need + run.ctx_len) / each) + 1)
    return (
        f"{found} (every {HELD_OUT_EVERY}th document): {expected}; the text has"
        f" {documents:,} document{'' if documents == 1 else 's'} ({tokens:,} tokens{cut}); use one"
        f" of at least {enough:,} documents, or ",
        nothing,
    )
