"""What a language model is asked about a feature: which contexts it is shown, in which words, and how its answers are
read.

The method is that of delphi (Paulo et al. 2024, arXiv:2410.13928): an explanation from contexts in which the feature
fires, then detection in others. delphi itself (eai-delphi 0.1.3) is not used: importing any of it imports vllm, which
pins torch and transformers, and its client retries nothing that fails, drops what failed, and can't resume.

A feature's contexts are those that `FeatureTable` keeps. Those in which it fires are dealt in turn, in the
order of strength, to the explainer and to the scorer, so that the scorer sees none that the explainer saw.
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
"""Contexts that `FeatureTable` keeps of each feature: this many of the strongest, and of drawn ones."""
DRAWN = 512
"""Contexts that it draws whatever fires there. Those where a feature doesn't fire are its silent ones."""
SHOWN = 8
"""The strongest, and the weakest, that the explainer is shown: this many each."""
HELD_OUT = 10
"""The strongest, and the weakest, that the scorer is asked about: this many each, and as many silent ones as both."""
LEAST = 4
"""A feature with fewer contexts for either of them is not explained."""
PER_REQUEST = 10
"""Contexts in one request of the scorer."""
_MARKED = 0.3
"""Tokens are marked if the feature's activation there is at least this share of the context's largest."""

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
    """All that is asked about one feature."""

    feature: int
    place: int
    """See `Explanation.place`."""
    messages: list[Message]
    """What the explainer is asked."""
    held_out: list[tuple[str, str]]
    """The kind and the text of each context that the scorer is asked about, in an order drawn at random."""

    @property
    def parts(self) -> list[list[tuple[str, str]]]:
        """The contexts of each request of the scorer."""
        starts = range(0, len(self.held_out), PER_REQUEST)
        return [self.held_out[start : start + PER_REQUEST] for start in starts]

    @property
    def asked(self) -> str:
        """A hash of everything that is asked, but for the explanation, which answers the first request."""
        content = [self.messages, detection("", self.held_out), [kind for kind, _ in self.held_out]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def unanswered(self) -> Explanation:
        """What is known before anything was asked."""
        kinds = [kind for kind, _ in self.held_out]
        said = {kind: MISSING * kinds.count(kind) for kind in KINDS}
        return Explanation(self.feature, self.place, self.asked, None, said)


def question(feature: int, place: int, statistics: FeatureTable, tokenizer: Any) -> Question | None:
    """What to ask about a feature; None if it fires in too few contexts, or in nearly all."""
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
    """A context as text, the tokens where a feature fires marked if its activations are given."""
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
    """What the scorer is asked about some contexts."""
    example = _detection(_ANSWER.removeprefix("Explanation: "), _ASKED)
    asked = _detection(explanation, [text for _, text in contexts])
    return _conversation(_DETECT, _SAID, example, asked)


def _detection(explanation: str, texts: list[str]) -> str:
    lines = [f"{number}. {text}" for number, text in enumerate(texts, start=1)]
    how = _HOW_TO_DETECT.format(len(texts))
    return "\n".join([f"Explanation: {explanation}", "", *lines, "", how])


def _conversation(task: str, answer: str, example: str, content: str) -> list[Message]:
    """A task with one example of it, and the example's answer."""
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": example},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": content},
    ]


# --- answers


def explanation_in(answer: str) -> str | None:
    """The explanation in an answer; None if it hasn't the form that was asked for."""
    found = re.findall(
        r"^[^\w\n]*Explanation\W?\W?:\**\s*(\S.*)$", answer, re.MULTILINE | re.IGNORECASE
    )
    return one_line(found[-1]) or None if found else None


def judgements_in(answer: str, n: int) -> list[str] | None:
    """For each of n contexts YES or NO; None if the answer hasn't the form that was asked for."""
    found = re.findall(r"\[([\s01,]*)\]", answer)
    numbers = re.findall(r"[01]", found[-1]) if found else []
    return [YES if number == "1" else NO for number in numbers] if len(numbers) == n else None
