"""Which contexts of a feature the explainer and the scorer are shown, and what is read in an answer."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dictionary_learning_ext.codes.contexts import KeptContext
from dictionary_learning_ext.explain.questions import HELD_OUT, SHOWN, judgements_in, question
from dictionary_learning_ext.features.explanations import SILENT, STRONG, WEAK

WORDS: Any = SimpleNamespace(
    decode=lambda ids: f" w{ids[0]}", convert_ids_to_tokens=lambda token: f"w{token}"
)


def asked_about(activations):
    """The question about a feature with a context of one token for each activation, whose number is its place."""
    n = len(activations)
    kept = [KeptContext(each, [i], [each], 0, i, 0) for i, each in enumerate(activations)]
    contexts = SimpleNamespace(of=lambda feature: kept)
    number_P = np.arange(n, n + 40)
    drawn = SimpleNamespace(
        around=SimpleNamespace(ids_TW=number_P[:, None]),
        context_P=number_P,
        fires=lambda feature: np.zeros(40, dtype=bool),
    )
    statistics: Any = SimpleNamespace(top=contexts, sampled=contexts, drawn=drawn)
    found = question(0, 0, statistics, WORDS)
    assert found is not None
    return found


def shown_in(found):
    """The numbers of the contexts that the explainer is shown, in their order."""
    content = found.messages[-1]["content"]
    return [int(each) for each in re.findall(r"^\d+\. << w(\d+)>>$", content, re.MULTILINE)]


def held_out_in(found, kind):
    return {int(text.removeprefix(" w")) for own, text in found.held_out if own == kind}


def test_the_strongest_contexts_are_those_of_the_largest_magnitude():
    """Whatever their sign, and in whichever order they were kept."""
    found = asked_about([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0])
    assert shown_in(found) == [9, 7, 5, 3, 1]
    assert held_out_in(found, STRONG) == {8, 6, 4, 2, 0}


def test_the_explainer_is_shown_each_context_once():
    """Also where there are fewer than the strongest and the weakest would be."""
    assert shown_in(asked_about([-float(n) for n in range(20, 0, -1)])) == list(range(0, 20, 2))
    many = shown_in(asked_about([float(n) for n in range(60, 0, -1)]))
    assert many == list(range(0, 60, 2))[:SHOWN] + list(range(0, 60, 2))[-SHOWN:]


def test_the_scorer_is_asked_about_the_strongest_the_weakest_and_silent_ones():
    few = asked_about([float(n) for n in range(30, 0, -1)])
    assert held_out_in(few, STRONG) == set(range(1, 2 * HELD_OUT, 2))
    assert held_out_in(few, WEAK) == set(range(2 * HELD_OUT + 1, 30, 2))
    many = asked_about([float(n) for n in range(60, 0, -1)])
    assert held_out_in(many, WEAK) == set(range(1, 60, 2)[-HELD_OUT:])
    assert len(held_out_in(many, SILENT)) == 2 * HELD_OUT
    assert min(held_out_in(many, SILENT)) >= 60


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("[1, 0, 1]", ["1", "0", "1"]),
        ("[1, 1]\nNo: [0,0,1]", ["0", "0", "1"]),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 0, 2]", None),
        ("1, 0, 1", None),
    ],
)
def test_an_answer_has_one_judgement_for_each_context(answer, found):
    assert judgements_in(answer, 3) == found
