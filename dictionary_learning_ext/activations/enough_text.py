"""Whether a text is long enough for a run, found before the run starts."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from ..config.run import RunConfig, Split, evaluation_batch
from ..errors import Setting, TextError, listed
from .positions import PositionRule
from .text import HELD_OUT_EVERY, open_text
from .tokens import ContextStream

_CONTEXTS_AT_ONCE = 256
_BYTES_PER_TOKEN = 16
"""Files of this many bytes for each token that a run needs aren't counted. Tokens have about 4 bytes
of text, so up to three quarters of a file may be something else."""


class _Counted(NamedTuple):
    """One pass over a text, or its start."""

    documents: int
    tokens: int
    """Including those after the last whole context."""
    rows: int
    """Tokens of whole contexts that aren't left out by their id."""
    is_whole: bool
    """Whether this is the whole pass."""


def require_enough_text(run: RunConfig, tokenizer: Any, processes: int = 1) -> None:
    """Tokenize as much of a run's text as it needs, and refuse it if there is less.

    With several processes, each reads its share of the contexts, and none may be one short.

    A data set on the hub isn't counted, nor is packed text in files far larger than the run needs.
    Tokens that `max_norm_multiple` will leave out are counted: they aren't known yet.

    Raises: TextError, which says how often the text must be read, or that held-out text is missing.
    """
    need = run.steps * run.batch_size + (processes - 1) * run.ctx_len
    train = _count_train(run, tokenizer, need)
    if train is not None and train.is_whole:
        _require_rows(run, train, need)
    text = open_text(run.data, split="heldout")
    if run.eval_tokens and text.file_bytes is not None:
        need = evaluation_batch(run.eval_tokens)
        if (held_out := _count(run, tokenizer, "heldout", need)).rows < need:
            which = f" (every {HELD_OUT_EVERY}th document)" if text.every_20th else ""
            raise TextError(
                f"the held-out part of {run.data!r}{which} has {held_out.rows:,} tokens",
                expected=f"at least {need:,} to evaluate on",
                instead=("use a longer text, or ", Setting("eval_tokens", 0)),
            )


def tokens_to_cache(run: RunConfig, tokenizer: Any, need: int) -> int | None:
    """Tokens in the contexts of a run's text, if they are fewer than `need`.

    None if there are enough, or the text isn't counted, see `require_enough_text`.
    """
    run = replace(run, remove_bos=False)
    train = _count_train(run, tokenizer, need)
    if train is None or not train.is_whole:
        return None
    found = _rows(run, train, run.text_passes)
    return found if found < need else None


def _count_train(run: RunConfig, tokenizer: Any, need: int) -> _Counted | None:
    """Count a run's text; None if it is on the hub, or far larger than the run needs."""
    file_bytes, is_packed = open_text(run.data).file_bytes, run.text_packing == "pack"
    if file_bytes is None or (
        is_packed and file_bytes * run.text_passes >= _BYTES_PER_TOKEN * need
    ):
        return None
    return _count(run, tokenizer, "train", need)


def _count(run: RunConfig, tokenizer: Any, split: Split, at_most: int) -> _Counted:
    """Count one pass of a run's text, until there are `at_most` rows."""
    rule = PositionRule(tokenizer, remove_bos=run.remove_bos)
    text = open_text(run.data, split=split)
    contexts = ContextStream(text, tokenizer, run.ctx_len, packing=run.text_packing)
    rows, is_whole = 0, False
    while rows < at_most and not is_whole:
        try:
            input_ids_BL, mask_BL = contexts.next_batch(_CONTEXTS_AT_ONCE)
            rows += int(rule.by_token(input_ids_BL, mask_BL).sum())
        except StopIteration:
            is_whole = True
    return _Counted(contexts.documents_read, contexts.tokens_read, rows, is_whole)


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


def _require_rows(run: RunConfig, train: _Counted, need: int) -> None:
    """Raise a TextError if a text of which one pass was counted ends before the run does."""
    if train.documents == 0:
        raise TextError(
            "no documents to train on",
            name="data",
            value=run.data,
            expected="at least one",
            instead="use another text",
        )
    if (found := _rows(run, train, run.text_passes)) >= need:
        return
    ways: list[Setting] = []
    one_pass = train.tokens * _share(run, train) if run.text_packing == "pack" else train.rows
    if one_pass:
        passes = math.ceil(need / one_pass)
        while _rows(run, train, passes) < need:
            passes += 1
        ways.append(Setting("text_passes", passes))
    if steps := found // run.batch_size:
        ways.append(Setting("steps", steps))
    raise TextError(
        f"the text {run.data!r} has {found:,} tokens in whole contexts of {run.ctx_len}: expected"
        f" {need:,} for {run.steps:,} steps of {run.batch_size:,}",
        instead=("use ", *listed(ways)) if ways else "use a longer text",
    )
