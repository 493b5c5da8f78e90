"""The questions about a feature to a language model: the contexts it is shown, the prompts, and how answers are parsed.

The method is that of delphi (Paulo et al. 2024, arXiv:2410.13928): explain the feature from contexts in which it fires, then
detect it in others. delphi itself (eai-delphi 0.1.3) is not used. Importing it imports vllm, which pins torch and
transformers, and its client doesn't retry, drops failures and can't resume.

A feature's contexts are those that `FeatureTable` keeps. Those in which it fires are dealt out in the order of strength,
alternating between explainer and scorer. So the scorer sees no context that the explainer saw.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..codes.contexts import KeptContext, token_text, visible
from ..codes.table import FeatureTable
from ..features.explanations import (
    KINDS,
    MISSING,
    NO,
    SILENT,
    STRONG,
    WEAK,
    YES,
    Explanation,
    one_line,
)
from .endpoint import Message

KEPT = 20
"""How many of the strongest contexts of each feature `FeatureTable` keeps, and how many drawn ones."""
DRAWN = 512
"""How many contexts it draws from all. Those in which a feature doesn't fire are its silent ones."""
SHOWN = 8
"""How many of the strongest and how many of the weakest contexts the explainer is shown."""
HELD_OUT = 10
"""How many of the strongest and how many of the weakest contexts the scorer is asked about. It is asked about as many silent
ones as both together."""
LEAST = 4
"""The fewest contexts for each of the two. A feature with fewer is not explained."""
PER_REQUEST = 10
"""The number of contexts in a request to the scorer."""
_MARKED = 0.3
"""A token is marked if its activation is at least this share of the largest in the context."""

_EXPLAIN = """\
You find out what a feature of a language model stands for. You are shown excerpts of text in which the feature fires. \
The tokens where it fires are marked with << and >>. It fires most strongly in the first excerpts. A line break is \
shown as ↵.
Say what the marked tokens have in common, or the text around or before them, so that somebody who reads only your \
explanation can tell in which other texts the feature fires. Be specific and short: one sentence of at most 20 words. \
If it fires on one word or a part of a word, name it. Don't mention the marks or the excerpts."""
_HOW_TO_EXPLAIN = (
    'What does the feature fire on? End with one line that begins with "Explanation:".'
)
_EXCERPTS = """\
1. he was <<over the moon>> to find
2. we'll be laughing <<till the cows come home>>! Pro
3. but really there's more <<than meets the eye>>! I'd"""
_ANSWER = "Explanation: idioms that express delight or surprise"
_DETECT = """\
You are given an explanation of what a feature of a language model stands for, and numbered excerpts of text. Say of each \
excerpt whether the feature fires somewhere in it: 1 if a part of it fits the explanation, 0 if none does. It may be in \
all of them, or in none."""
_HOW_TO_DETECT = (
    "Answer with a list of {} numbers, 0 or 1, in the order of the excerpts, and nothing else."
)
_ASKED = [
    "the committee met on Tuesday to vote",
    "when she heard, she was on cloud nine",
    "he walked to the station and bought a ticket",
]
_SAID = "[0, 1, 0]"


@dataclass(frozen=True)
class Question:
    """All questions about one feature."""

    feature: int
    place: int
    """See `Explanation.place`."""
    messages: list[Message]
    """The question to the explainer."""
    held_out: list[tuple[str, str]]
    """The kind and the text of each context that the scorer is asked about, in random order."""

    @property
    def parts(self) -> list[list[tuple[str, str]]]:
        """The contexts of each request to the scorer."""
        starts = range(0, len(self.held_out), PER_REQUEST)
        return [self.held_out[start : start + PER_REQUEST] for start in starts]

    @property
    def asked(self) -> str:
        """A hash of all questions. The explanation, which is the answer to the first, counts as empty."""
        content = [self.messages, detection("", self.held_out), [kind for kind, _ in self.held_out]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def unanswered(self) -> Explanation:
        """The feature's `Explanation` before anything was asked."""
        kinds = [kind for kind, _ in self.held_out]
        said = {kind: MISSING * kinds.count(kind) for kind in KINDS}
        return Explanation(self.feature, self.place, self.asked, None, said)


def question(feature: int, place: int, statistics: FeatureTable, tokenizer: Any) -> Question | None:
    """The questions about a feature; None if it fires in too few contexts, or in nearly all."""
    firing = _firing(statistics, feature)
    shown, kept = firing[::2], firing[1::2]
    shown_contexts = {each.context for each in shown}
    drawn = statistics.drawn
    silent = [
        row
        for row in np.flatnonzero(~drawn.fires(feature)).tolist()
        if int(drawn.context_P[row]) not in shown_contexts
    ]
    if min(len(shown), len(kept), len(silent)) < LEAST:
        return None
    chosen = random.Random(feature)  # the same at a second call
    strong = [(STRONG, _text(each.ids, tokenizer)) for each in kept[:HELD_OUT]]
    weak = [(WEAK, _text(each.ids, tokenizer)) for each in kept[HELD_OUT:][-HELD_OUT:]]
    rows = chosen.sample(silent, min(len(silent), 2 * HELD_OUT))
    held_out = [*strong, *weak]
    held_out += [(SILENT, _text(drawn.around.ids_TW[row].tolist(), tokenizer)) for row in rows]
    chosen.shuffle(held_out)
    shown = shown[:SHOWN] + shown[SHOWN:][-SHOWN:]
    lines = [
        f"{number}. {_text(each.ids, tokenizer, each.activations)}"
        for number, each in enumerate(shown, start=1)
    ]
    contents = (f"{each}\n\n{_HOW_TO_EXPLAIN}" for each in (_EXCERPTS, "\n".join(lines)))
    messages = _conversation(_EXPLAIN, _ANSWER, *contents)
    return Question(feature, place, messages, held_out)


def _firing(statistics: FeatureTable, feature: int) -> list[KeptContext]:
    """The kept contexts in which a feature fires, each once, the strongest first."""
    kinds = (statistics.top, statistics.sampled)
    all_kept = chain.from_iterable(kind.of(feature) for kind in kinds)
    found: dict[int, KeptContext] = {}
    for each in all_kept:
        found.setdefault(each.context, each)
    return sorted(found.values(), key=lambda each: -abs(each.activation))


def _text(ids: list[int], tokenizer: Any, activations: list[float] | None = None) -> str:
    """The text of a context. If activations are given, the tokens where the feature fires are marked."""
    sizes = [abs(each) for each in activations or [0.0] * len(ids)]
    least = max(_MARKED * max(sizes), 1e-30)
    words: list[str] = []
    is_marked = False
    for token, size in zip(ids, sizes, strict=True):
        if token < 0:
            continue
        if (size >= least) != is_marked:
            words.append(">>" if is_marked else "<<")
            is_marked = not is_marked
        words.append(visible(token_text(tokenizer, token)))
    return "".join(words + [">>"] * is_marked)


def detection(explanation: str, contexts: list[tuple[str, str]]) -> list[Message]:
    """The question to the scorer about some contexts."""
    example = _detection(_ANSWER.removeprefix("Explanation: "), _ASKED)
    asked = _detection(explanation, [text for _, text in contexts])
    return _conversation(_DETECT, _SAID, example, asked)


def _detection(explanation: str, texts: list[str]) -> str:
    lines = [f"{number}. {text}" for number, text in enumerate(texts, start=1)]
    how = _HOW_TO_DETECT.format(len(texts))
    return "\n".join([f"Explanation: {explanation}", "", *lines, "", how])


def _conversation(task: str, answer: str, example: str, content: str) -> list[Message]:
    """A conversation with a task, an example with its answer, and the content to answer."""
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": example},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": content},
    ]


# --- answers


def explanation_in(answer: str) -> str | None:
    """The explanation in an answer; None if the answer doesn't have the requested form."""
    found = re.findall(
        r"^[^\w\n]*Explanation\W?\W?:\**\s*(\S.*)$", answer, re.MULTILINE | re.IGNORECASE
    )
    return one_line(found[-1]) or None if found else None


def judgements_in(answer: str, n: int) -> list[str] | None:
    """YES or NO for each of n contexts; None if the answer doesn't have the requested form."""
    found = re.findall(r"\[([\s01,]*)\]", answer)
    numbers = re.findall(r"[01]", found[-1]) if found else []
    return [YES if number == "1" else NO for number in numbers] if len(numbers) == n else None
