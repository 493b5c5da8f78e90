"""Scores of explanations and their intervals against scipy's, and reading explanations.json."""

import dataclasses
import math

import numpy as np
import pytest
from chat_server import words
from scipy import stats

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.features.explanations import (
    LONGEST,
    Explanation,
    Explanations,
    explanations_in,
    mean_of,
    means_of,
    one_line,
    read_explanations,
)


def explained(strong, weak, silent, text="cats", place=0):
    return Explanation(3, place, "", text, {"strong": strong, "weak": weak, "silent": silent})


def wilson(found, n):
    return stats.binomtest(found, n).proportion_ci(method="wilson")


@pytest.mark.parametrize(
    ("strong", "weak", "silent", "found", "left"),
    [
        ("1111111111", "1111100000", "00000000000000000011", (15, 20), (18, 20)),
        ("1111", "", "0000", (4, 4), (4, 4)),
        ("1-1-", "0", "00-1", (2, 3), (2, 3)),
        ("0000", "00", "1111", (0, 6), (0, 4)),
    ],
)
def test_a_score_is_the_balanced_accuracy_with_an_interval(strong, weak, silent, found, left):
    score = explained(strong, weak, silent).score
    shares = [a / n for a, n in (found, left)]
    assert score.value == pytest.approx(np.mean(shares))
    (low_a, high_a), (low_b, high_b) = wilson(*found), wilson(*left)
    assert score.low == pytest.approx(
        score.value - math.hypot(shares[0] - low_a, shares[1] - low_b) / 2, abs=1e-4
    )
    assert score.high == pytest.approx(
        score.value + math.hypot(high_a - shares[0], high_b - shares[1]) / 2, abs=1e-4
    )
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_the_interval_holds_the_true_value_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for p, q in ((0.5, 0.5), (0.9, 0.8), (0.3, 0.95)):
        held = 0
        for _ in range(1000):
            found, left = generator.binomial(20, p), generator.binomial(20, q)
            score = explained("1" * found + "0" * (20 - found), "", "0" * left + "1" * (20 - left))
            held += score.score.low <= (p + q) / 2 <= score.score.high
        assert 0.92 < held / 1000 < 0.99


@pytest.mark.parametrize(
    "one",
    [explained("11", "1", "--"), explained("", "", "00"), explained("11", "1", "00", text=None)],
)
def test_without_answers_about_both_there_is_no_score(one):
    assert one.score is None


def test_shares_are_of_what_was_answered():
    assert explained("11-0", "", "0000").shares == {
        "strong": pytest.approx(2 / 3),
        "weak": None,
        "silent": 0,
    }


def test_a_mean_has_students_interval():
    scores = [0.5, 0.7, 0.65, 0.9]
    mean = mean_of(scores)
    low, high = stats.t.interval(0.95, 3, np.mean(scores), stats.sem(scores))
    assert tuple(mean) == pytest.approx((np.mean(scores), low, high))
    assert mean_of([0.7]) is None


def several(*silent):
    return Explanations(
        features={
            n: explained("11", "1", said, place=-n, text="cats" if said else None)
            for n, said in enumerate(silent)
        },
        places=1,
    )


def test_a_feature_that_was_picked_is_in_no_mean():
    found = several("00", "11")
    picked = explained("11", "1", "00", place=1, text="dogs")
    with_it = dataclasses.replace(found, features=found.features | {7: picked})
    assert with_it.scores == found.scores
    assert len(dataclasses.replace(with_it, places=2).scores) == 3


def test_saes_are_compared_over_equally_many_features_the_first_in_their_order():
    good, bad = several("0011", "00", "00", "00"), several("11", "", "00", "11")
    n, means = means_of({"good": good, "bad": bad, "none": Explanations()})
    assert n == 3, "of the bad one, one has no score"
    assert means["good"].value == pytest.approx(1)
    assert means["bad"].value == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert set(means) == {"good", "bad"}


def test_text_from_outside_is_one_short_printable_line():
    line = one_line("a\n\tb \x1b[31m\u202e \ud800" + "x" * 10_000)
    assert line.startswith("a b ‹U+001B›[31m‹U+202E› ‹U+D800›xx")
    assert len(line) == LONGEST
    line.encode()


@pytest.fixture
def beside(folder_to_explain, chat):
    assert main(words(folder_to_explain, chat)) == 0
    return folder_to_explain


def test_what_is_written_is_read_and_that_of_another_sae_is_not(beside, to_explain, caplog):
    dictionary, _ = load_dictionary(beside)
    found = read_explanations(beside, dictionary)
    path = beside / "explanations.json"
    assert len(found) == 3
    assert found == explanations_in(path)
    assert all(found[feature].score.value > 0.5 for feature in found)
    assert not read_explanations(to_explain, dictionary), "there are none"
    dictionary.b_dec.data += 1
    assert not read_explanations(beside, dictionary)
    assert "another SAE" in caplog.text
