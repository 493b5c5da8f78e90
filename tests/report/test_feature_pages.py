"""The report's example features."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch as t

from dictionary_learning_ext.codes.contexts import KeptContext
from dictionary_learning_ext.codes.table import LEAST_SELECTIONS
from dictionary_learning_ext.report import feature_pages
from dictionary_learning_ext.report.analysis import Vocabulary
from dictionary_learning_ext.report.feature_pages import cards

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS = [*(f" {word}" for word in NUMBERS), ",", " One", "ing", "\ufffd"]
COMMA, ONE, FRAGMENT, BYTE = range(10, 14)
MANY = list(range(8))


class Words:
    """A tokenizer of the words above. It spells the last, a part of a character, as byte-level BPE does."""

    def decode(self, ids):
        (token,) = ids
        return WORDS[token]

    def convert_ids_to_tokens(self, token):
        return "ðŁĺ" if token == BYTE else WORDS[token]


def contexts(tokens_F):
    """Contexts of a single token, 8 of each feature; fewer where fewer tokens are given."""

    def of(feature):
        return [KeptContext(1.0, [token], [1.0], 0, 0, 0) for token in tokens_F[feature]]

    def tokens(feature, n=4):
        return [token for token, _ in Counter(tokens_F[feature]).most_common(n)]

    return SimpleNamespace(of=of, tokens=tokens)


def comparison(tokens_F, count_F=None, pages=100, promoted=None):
    """A report on an SAE whose features fire on these tokens, and promote those."""
    count_F = t.tensor([len(tokens) for tokens in tokens_F] if count_F is None else count_F)
    features = SimpleNamespace(
        strongest=contexts(tokens_F),
        sampled=contexts(tokens_F),
        ranking=sorted(range(len(tokens_F)), key=lambda one: len(set(tokens_F[one]))),
    )
    analysis = SimpleNamespace(
        label="a",
        metrics={"fve": 0.5},
        features=features,
        codes=SimpleNamespace(count_F=count_F, firing_rate_F=count_F.double() / 1000),
        logits=promoted and (SimpleNamespace(indices_Fn=t.tensor(promoted)), None),
        vocabulary=Vocabulary(Words()),
        scores=None,
    )
    return SimpleNamespace(analyses=[analysis], options=SimpleNamespace(pages=pages))


def shown(report):
    """Its cards, without the headings of their groups."""
    return [card for _, group in cards(report) for card in group]


def test_the_examples_fire_on_one_token_on_a_few_and_on_many():
    """Most features fire on one token, and yet not all of the examples do."""
    single = [[token] * 8 for token in range(8)]
    found = shown(comparison([*single, [8] * 4 + [3] * 4, [9, *MANY[1:]]]))
    assert sorted(card["n_tokens"] for card in found) == [1] * 7 + [2, 8]
    assert [card["n_tokens"] for card in found[:3]] == [8, 2, 1], "what is not a single word first"
    assert found[0]["fires_on"] == ["ten", "two", "three"]


def test_without_seeds_they_are_of_the_sae_with_the_highest_measured_fve():
    report, measured = comparison([[0] * 8]), comparison([[1] * 8])
    report.analyses[0].metrics = {"fve": None}
    measured.analyses[0].label = "b"
    report.analyses += measured.analyses
    assert [(heading, len(group)) for heading, group in cards(report)] == [("", 1)]
    assert [card["sae"] for card in shown(report)] == ["b"]
    assert [card["alike"] for card in shown(report)] == [None]


@pytest.mark.parametrize(
    ("tokens", "fires_on"),
    [([0] * 4 + [ONE] * 4, ["one"]), ([0] * 4 + [1] * 4, ["one", "two"])],
)
def test_a_card_counts_the_tokens_of_its_random_contexts_whatever_their_case(tokens, fires_on):
    report = comparison([[0] * 8])
    report.analyses[0].features.sampled = contexts([tokens])
    (card,) = shown(report)
    assert card["n_tokens"] == len(fires_on)
    assert card["fires_on"] == fires_on


def test_a_page_has_the_active_tokens_of_a_context_their_places_and_signs():
    kept = KeptContext(2.0, [3, 4, 5], [0.0, -1.5, 2.0], 2, 7, 0)
    ((strength, _, _, tokens, active),) = feature_pages._contexts(
        SimpleNamespace(of=lambda _: [kept]), 0, Vocabulary(Words())
    )
    assert (strength, len(tokens)) == (2.0, 3)
    assert active == [1, -1.5, 2, 2.0]


def test_an_excerpt_at_the_start_of_a_context_has_what_is_before():
    kept = KeptContext(2.0, [3, 4, 5], [0.0, 2.0, 0.0], 1, 7, 0)
    found = feature_pages._excerpts(SimpleNamespace(of=lambda _: [kept]), 0, Vocabulary(Words()))
    assert found == [(" four", " five", " six")]


def test_two_examples_do_not_show_one_token():
    found = shown(comparison([[2] * 8, [2] * 8, [2] * 5 + [3] * 3, [4] * 8]))
    assert sorted(card["fires_on"][0] for card in found) == ["five", "three"]


def test_rare_features_punctuation_and_fragments_are_no_examples():
    rare = LEAST_SELECTIONS - 1
    assert shown(comparison([[0] * rare, [COMMA] * 8, [FRAGMENT] * 8, [BYTE] * 8])) == []
    (card,) = shown(comparison([[0] * rare, [1] * 8]))
    assert card["feature"] == 1
    assert shown(comparison([[0] * 8], pages=1)) != []


def test_what_is_promoted_is_left_out_where_it_is_mostly_fragments():
    """And features that promote words come first."""
    noise, mixed, words = (
        [FRAGMENT, BYTE, FRAGMENT, 3],
        [4, 5, 6, FRAGMENT],
        [7, 8, 9, 3],
    )
    found = shown(comparison([[0] * 8, [1] * 8, [2] * 8], promoted=[noise, mixed, words]))
    assert [card["feature"] for card in found] == [1, 2, 0]
    assert [card["promotes"] for card in found] == [
        [" five", " six", " seven"],
        [" eight", " nine", " ten", " four"],
        [],
    ]


def test_there_are_four_pairs_at_most():
    report = comparison([[token] * 8 for token in range(10)])
    report.analyses[0].scores = SimpleNamespace(correlation_F=np.array([0.1, 0.9] * 5))
    assert [len(group) for _, group in cards(report)] == [4, 4]


def test_with_seeds_examples_are_pairs_of_one_rate_of_which_one_comes_back():
    report, other = comparison([[token] * 8 for token in range(10)]), comparison([[0] * 8])
    report.analyses.insert(0, other.analyses[0])  # no seeds of it are known, whatever its FVE
    other.analyses[0].metrics = {"fve": 0.9}
    analysis = report.analyses[1]
    correlation_F = np.array([0.1, 0.9, 0.2, 0.9, 0.3, 0.6, *[0.9] * 4])
    analysis.scores = SimpleNamespace(correlation_F=correlation_F)
    analysis.codes.count_F = t.tensor([10, 100, 100, 12, 1000, 50, 30, 30, 30, 30])
    (back, some), (lost, others) = cards(report)
    assert (back, lost) == ("These come back in what they do", "These fire as often, and don't")
    assert [card["feature"] for card in others] == [0, 2], "nothing fires as often as 4"
    assert [card["feature"] for card in some] == [3, 1]
    assert [card["alike"] for card in (*some, *others)] == [0.9, 0.9, 0.1, 0.2]
