"""Checks of values: what passes, and one form of message."""

from typing import Literal

import pytest

from dictionary_learning_ext.config.checks import require, require_choice, require_type
from dictionary_learning_ext.errors import ConfigError

Colour = Literal["red", "blue"]


def message(check, *arguments):
    with pytest.raises(ConfigError) as raised:
        check(*arguments)
    return str(raised.value)


def test_a_message_says_what_was_given_and_what_was_expected():
    require(True, "k", 3, "at least 1")
    assert message(require, False, "k", "3", "at least 1") == "k='3': expected at least 1"


def test_a_choice_is_one_of_a_literals():
    require_choice("colour", "red", Colour)
    expected = "colour='green': expected one of red, blue"
    assert message(require_choice, "colour", "green", Colour) == expected


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (3, float),
        (0.5, float),
        (True, bool),
        ("a", str),
        (None, int | None),
        (3, int | None),
        ("blue", Colour),
        (None, Colour | None),
        ((0.5, 1), tuple[float, ...]),
        ((), tuple[float, ...]),
        ("often", int | str),
    ],
    ids=str,
)
def test_a_value_of_its_type_passes(value, hint):
    require_type("x", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (0.5, int, "a whole number"),
        (3.0, int, "a whole number"),
        (True, int, "a whole number"),
        (True, float, "a number"),
        ("1", float, "a number"),
        (1, bool, "true or false"),
        (1, str, "text"),
        (None, int, "a whole number"),
        ("a", int | None, "a whole number or None"),
        ("green", Colour, "one of red, blue"),
        (3, Colour | None, "one of red, blue or None"),
        ([0.5], tuple[float, ...], "a list of numbers"),
        ((0.5, "1"), tuple[float, ...], "a list of numbers"),
        ((0.5, True), tuple[float, ...], "a list of numbers"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named_with_the_type_in_words(value, hint, expected):
    assert message(require_type, "x", value, hint) == f"x={value!r}: expected {expected}"
