"""`vsae explain`: asks for the explanations and scores that explanations.json lacks, and writes answers as they come.

explained = explain("runs/mine", Endpoint("http://localhost:8000/v1"), "llama-3.1-8b")
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..codes.table import FeatureTable
from ..config.run import ExplainOptions
from ..errors import ConfigError, EndpointError
from ..evaluation.folders import open_folders, require_feature
from ..features.explanations import MISSING, Explanation, Explanations, explanations_in
from ..features.return_score import return_scores_if_any
from ..run_folder.comparing import measured_on
from ..run_folder.files import EXPLANATIONS, locked, require_writable
from ..run_folder.reading import read_config
from ..run_folder.sae_names import results_folder
from ..run_folder.tensors import hash_of
from .endpoint import Endpoint
from .questions import (
    DRAWN,
    KEPT,
    LEAST,
    Question,
    detection,
    explanation_in,
    judgements_in,
    question,
)

_OUT = "out"
_CHARACTERS_PER_TOKEN = 4
_TOKENS_OF_AN_EXPLANATION = 40
_MOST_FAILURES = 10
"""The number of failed requests in a row after which the endpoint counts as down."""


class Plan(NamedTuple):
    """The size of what will be asked."""

    features: int
    requests: int
    tokens: int
    """An estimate of the tokens sent and answered, at 4 characters per token."""
    order: str
    """What the features are ordered by."""


@dataclass(frozen=True)
class Explained:
    """The result of `explain`."""

    path: Path
    explanations: Explanations
    features: list[int]
    """The chosen features, in their order."""
    failed: dict[int, str]
    """Features with a failed request, and why it failed."""

    @property
    def missing(self) -> list[int]:
        """The chosen features whose explanation or score is incomplete although no request failed."""
        found = {feature: self.explanations.get(feature) for feature in self.features}
        whole = {feature for feature, each in found.items() if each and each.is_complete}
        return [each for each in self.features if each not in whole and each not in self.failed]


def explain(
    folder: str | Path,
    endpoint: Endpoint,
    explainer: str,
    *,
    scorer: str | None = None,
    options: ExplainOptions | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    keep: bool = True,
    on_step: Callable[[str], None] = lambda step: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_answer: Callable[[], object] = lambda: None,
    **where: Any,
) -> Explained:
    """Ask for explanations of an SAE's features and for their scores, and write explanations.json.

    Answers that it already holds are not asked for again.

    Arguments:
        folder: the name of the SAE, see run_folder/sae_names.py.
        explainer, scorer: the names of the language models at the endpoint. The scorer's default is the explainer.
        out: see `results_folder`.
        overwrite: start over if explanations.json holds those of another SAE, explainer or text.
        dry_run: measure, but ask nothing.
        keep: read and keep the SAE's codes, see `OpenedFolders.codes`.
        on_plan: called with the plan before anything is asked.
        on_answer: called after each request.
        where: model, hook, data and the like, see `evaluation.folders.open_folders`.

    Raises: EndpointError if the endpoint doesn't answer; a UserError for other mistakes. Single requests that fail are listed
    in `failed`.
    """
    options, scorer = options or ExplainOptions(), scorer or explainer
    size = read_config(folder)["trainer"].get("dict_size")
    for feature in options.only if size else ():
        require_feature(feature, size)
    path = results_folder(folder, out) / EXPLANATIONS
    require_writable(path, _OUT)
    with locked(path.parent, _OUT):
        if not dry_run:
            on_step(f"asking {endpoint.url} whether it answers")
            asyncio.run(_check(endpoint, dict.fromkeys([explainer, scorer])))
        on_step(f"reading {options.tokens:,} tokens of held-out text, or what is kept of it")
        measured = _read_features(folder, options.tokens, keep, where)
        models = {"explainer": explainer, "scorer": scorer}
        settings = models | {"tokens": options.tokens} | measured.settings
        chosen = _chosen(measured, options)
        fresh = Explanations(hash_of(measured.dictionary), settings, measured.order_by, {})
        known = _existing(path, fresh, overwrite)
        if not options.only:
            known = replace(known, places=max(known.places, chosen[-1].place + 1))
        asked = [each for each in chosen if not _explanation_for(known, each).is_complete]
        on_plan(_plan(known, asked, measured.order_by))
        failed: dict[int, str] = {}
        in_a_row = 0

        def note(found: Explanation, failure: str) -> None:
            """Keep the explanation of a feature after a request, and write the file."""
            nonlocal in_a_row
            on_answer()
            in_a_row = in_a_row + 1 if failure else 0
            if failure:
                failed[found.feature] = failure
            if not failure or found.text is not None or found.feature not in known:
                known.features[found.feature] = found
            known.write(path)
            if in_a_row >= _MOST_FAILURES:
                raise EndpointError(
                    f"{_MOST_FAILURES} requests in a row failed, the last one: {failure}",
                    instead="run the same command again later: what was answered is kept",
                )

        if not dry_run:
            todo = [(each, _explanation_for(known, each)) for each in asked]
            try:
                asyncio.run(_ask(endpoint, explainer, scorer, todo, options.at_once, note))
            finally:
                known.write(path)
    return Explained(path, known, [each.feature for each in chosen], failed)


# --- what to ask


class _Measured(NamedTuple):
    dictionary: Any
    tokenizer: Any
    statistics: FeatureTable
    order: list[int]
    """The features that were selected, in the order in which they are explained."""
    order_by: str
    settings: dict[str, Any]
    """The settings that they were measured with."""


def _read_features(folder: str | Path, tokens: int, keep: bool, where: dict[str, Any]) -> _Measured:
    opened = open_folders([folder], **where)
    run = opened.run
    tokenizer = opened.tokenizer(
        "explanations are of tokens",
        "for a language model's, give activations=None and model",
    )
    ((dictionary, _),) = opened.saes.values()
    (codes,) = opened.codes(tokens, keep=keep).values()
    statistics = FeatureTable(codes, top=KEPT, sampled=KEPT, drawn=DRAWN)
    scores = return_scores_if_any(codes, dictionary)
    by, key_F = (
        ("firing rate", statistics.firing_rate_F.numpy())
        if scores is None
        else ("return score", scores.score_F)
    )
    alive = statistics.alive_F.nonzero().flatten().tolist()
    order = sorted(alive, key=lambda feature: (-key_F[feature], feature))
    return _Measured(dictionary, tokenizer, statistics, order, by, measured_on(run))


def _chosen(measured: _Measured, options: ExplainOptions) -> list[Question]:
    """The questions about the features that are explained, in their order.

    Raises: ConfigError if one of `only` has too few contexts, or none has enough.
    """
    place_of = {feature: place for place, feature in enumerate(measured.order)}

    def of(feature: int) -> Question | None:
        place = place_of.get(feature)
        if place is None:
            return None
        return question(feature, place, measured.statistics, measured.tokenizer)

    too_few = (
        f"has fewer than {2 * LEAST} contexts in which it fires, or than {LEAST} in which it doesn't, in "
        f"{measured.statistics.tokens:,} tokens"
    )
    if options.only:
        found = {number: of(number) for number in dict.fromkeys(options.only)}
        if none := [number for number, each in found.items() if each is None]:
            more = "leave it out, or give more tokens"
            raise ConfigError(f"feature {none[0]} {too_few}", instead=more)
        return sorted((each for each in found.values() if each), key=lambda each: each.place)
    found = list(islice(filter(None, map(of, measured.order)), options.features))
    if not found:
        raise ConfigError(f"every feature {too_few}", instead="give more tokens")
    return found


def _existing(path: Path, fresh: Explanations, overwrite: bool) -> Explanations:
    """The explanations in explanations.json; `fresh` if there are none.

    Raises: ConfigError if they are of another SAE, explainer, scorer or text.
    """
    if overwrite or not path.exists():
        return fresh
    there = explanations_in(path)
    other = [name for name in fresh.settings if there.settings.get(name) != fresh.settings[name]]
    if there.sae != fresh.sae:
        other = ["SAE"]
    if other:
        differ = ", ".join(f"{n} {there.settings.get(n)!r}" for n in other if n != "SAE")
        raise ConfigError(
            f"{path} holds explanations of another {'SAE' if not differ else f'kind: {differ}'}",
            instead="give another out, or replace them with overwrite=True",
        )
    return there


def _explanation_for(known: Explanations, about: Question) -> Explanation:
    """The explanation of a feature. It is empty if it answered other questions."""
    found = known.get(about.feature)
    return about.unanswered() if found is None or found.asked != about.asked else found


def _plan(known: Explanations, asked: list[Question], order_by: str) -> Plan:
    requests = characters = 0
    for each in asked:
        found = _explanation_for(known, each)
        parts = [part for part, _ in _missing_parts(each, found)]
        explaining = [] if found.text is not None else [each.messages]
        sent = explaining + [detection("", part) for part in parts]
        requests += len(sent)
        characters += sum(len(message["content"]) for messages in sent for message in messages)
        answers = len(sent) * _TOKENS_OF_AN_EXPLANATION
        characters += _CHARACTERS_PER_TOKEN * (answers + len(parts) * _TOKENS_OF_AN_EXPLANATION)
    return Plan(len(asked), requests, characters // _CHARACTERS_PER_TOKEN, order_by)


# --- asking


Part = list[tuple[str, str]]


def _missing_parts(about: Question, found: Explanation) -> list[tuple[Part, list[tuple[str, int]]]]:
    """The unanswered requests to the scorer: their contexts, and each context's place in `said`."""
    counts: dict[str, int] = {}
    parts = []
    for part in about.parts:
        places = []
        for kind, _ in part:
            places.append((kind, counts.get(kind, 0)))
            counts[kind] = counts.get(kind, 0) + 1
        if any(found.said[kind][place] == MISSING for kind, place in places):
            parts.append((part, places))
    return parts


async def _check(endpoint: Endpoint, models: Iterable[str]) -> None:
    async with endpoint:
        for model in models:
            await endpoint.check(model)


async def _ask(
    endpoint: Endpoint,
    explainer: str,
    scorer: str,
    todo: list[tuple[Question, Explanation]],
    at_once: int,
    note: Callable[[Explanation, str], None],
) -> None:
    """Ask about features, `at_once` of them at a time.

    Arguments:
        note: called after each request with the feature's explanation so far, and why the request failed ("" if it
            didn't). An error that it raises ends the asking.
    """
    waiting = iter(todo)

    async def ask_in_turn() -> None:
        for about, found in waiting:
            await _ask_about(endpoint, explainer, scorer, about, found, note)

    async with endpoint:
        tasks = [asyncio.create_task(ask_in_turn()) for _ in range(min(at_once, len(todo)))]
        try:
            await asyncio.gather(*tasks)
        finally:  # of one that failed; the others end, too
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask_about(
    endpoint: Endpoint,
    explainer: str,
    scorer: str,
    about: Question,
    found: Explanation,
    note: Callable[[Explanation, str], None],
) -> None:
    if found.text is None:
        text, failure = await _answer(endpoint, explainer, about.messages, explanation_in)
        found = replace(found, text=text)
        note(found, failure)
    if (explanation := found.text) is None:
        return
    for part, places in _missing_parts(about, found):
        read = partial(judgements_in, n=len(part))
        answers, failure = await _answer(endpoint, scorer, detection(explanation, part), read)
        said = dict(found.said)
        for (kind, place), answer in zip(places, answers or [], strict=bool(answers)):
            said[kind] = said[kind][:place] + answer + said[kind][place + 1 :]
        found = replace(found, said=said)
        note(found, failure)


async def _answer(
    endpoint: Endpoint, model: str, messages: Any, read: Callable[[str], Any]
) -> tuple[Any, str]:
    """The parsed answer of a model, and why the request failed ("" if it didn't). An answer of the wrong form is asked for once
    more; None if that has the wrong form, too."""
    try:
        for _ in range(2):
            if (found := read(await endpoint.answer(model, messages))) is not None:
                return found, ""
    except EndpointError as error:
        return None, str(error)
    return None, ""
