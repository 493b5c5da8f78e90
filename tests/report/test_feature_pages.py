"""The report's example features."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch as t

from dictionary_learning_ext.features.collector import LEAST_SELECTIONS, ranking_of
from dictionary_learning_ext.features.reproducibility import FeatureScores
from dictionary_learning_ext.report.feature_pages import cards

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", ",", " One"]
MANY = list(range(8))


class Words:
    """A vocabulary of the words above."""

    def text(self, token):
        return WORDS[token]


def contexts(tokens_F):
    """Contexts of a single token, 8 of each feature; fewer where fewer tokens are given."""
    padded = [tokens + [-1] * (8 - len(tokens)) for tokens in tokens_F]
    return SimpleNamespace(ids_FTW=t.tensor(padded)[:, :, None], at=0)


def comparison(tokens_F, count_F=None, pages=100):
    count_F = t.tensor([len(tokens) for tokens in tokens_F] if count_F is None else count_F)
    statistics = SimpleNamespace(
        top=contexts(tokens_F),
        sampled=contexts(tokens_F),
        count_F=count_F,
        frequency_F=count_F.double() / 1000,
        alive_F=count_F > 0,
    )
    analysis = SimpleNamespace(
        label="a",
        metrics={"fve": 0.5},
        statistics=statistics,
        ranking=ranking_of(statistics),
        scores=None,
    )
    return SimpleNamespace(analyses=[analysis], options=SimpleNamespace(pages=pages))


def test_the_examples_fire_on_one_token_on_a_few_and_on_many():
    """Most features fire on one token, and yet not all of the examples do."""
    single = [[token] * 8 for token in range(8)]
    few = [[8] * 4 + [3] * 4]
    found = cards(comparison([*single, few[0], [9, *MANY[1:]]]), Words())
    assert [card.n_tokens for card in found] == [1] * 7 + [2, 8]
    assert {card.feature for card in found} >= {8, 9}
    assert found[-1].fires_on == ["ten", "two", "three"]


def test_they_are_of_the_sae_with_the_highest_measured_fve():
    unmeasured, measured = comparison([[0] * 8]), comparison([[1] * 8])
    unmeasured.analyses[0].metrics = {"fve": None}
    measured.analyses[0].label = "b"
    unmeasured.analyses += measured.analyses
    assert [card.sae for card in cards(unmeasured, Words())] == ["b"]


@pytest.mark.parametrize(
    ("tokens", "fires_on"), [([0] * 4 + [11] * 4, ["one"]), ([0] * 4 + [1] * 4, ["one", "two"])]
)
def test_a_card_counts_the_tokens_of_its_random_contexts_whatever_their_case(tokens, fires_on):
    found = comparison([[0] * 8])
    found.analyses[0].statistics.sampled = contexts([tokens])
    (card,) = cards(found, Words())
    assert card.n_tokens == len(fires_on)
    assert card.fires_on == fires_on


def test_two_examples_do_not_show_one_token():
    found = cards(comparison([[2] * 8, [2] * 8, [2] * 5 + [3] * 3, [4] * 8]), Words())
    assert [card.fires_on[0] for card in found] == ["three", "five"]


def test_rare_features_and_punctuation_are_no_examples():
    rare = LEAST_SELECTIONS - 1
    assert cards(comparison([[0] * rare, [10] * 8]), Words()) == []
    (card,) = cards(comparison([[0] * rare, [1] * 8]), Words())
    assert card.feature == 1
    assert cards(comparison([[0] * 8], pages=1), Words()) != []


def test_a_card_says_whether_its_feature_comes_back():
    found = comparison([[0] * 8, [1] * 8])
    assert [card.returns for card in cards(found, Words())] == [None, None]
    found.analyses[0].scores = FeatureScores(np.array([0.9, 0.2]), np.array([2, 0]), 2, 0.1)
    said = {card.feature: card.returns for card in cards(found, Words())}
    assert said == {
        0: "comes back in 2 of 2 seeds, mean match 0.90",
        1: "comes back in 0 of 2 seeds, mean match 0.20",
    }
