"""Checks of values: what passes, and one form of message."""

import math
from types import SimpleNamespace
from typing import Literal

import pytest

from dictionary_learning_ext.config.checks import (
    meant,
    require,
    require_at_least_one,
    require_choice,
    require_lr_schedule,
    require_max_norm_multiple,
    require_type,
)
from dictionary_learning_ext.errors import ConfigError

Colour = Literal["red", "blue"]


def message(check, *arguments):
    with pytest.raises(ConfigError) as raised:
        check(*arguments)
    return str(raised.value)


def test_a_message_says_what_was_given_and_what_was_expected():
    require(True, "k", 3, "at least 1")
    assert message(require, False, "k", "3", "at least 1") == "k='3': expected at least 1"


def test_counts_are_one_or_more():
    one = SimpleNamespace(steps=1, batch_size=0)
    require_at_least_one(one, "steps")
    expected = "batch_size=0: expected at least 1"
    assert message(require_at_least_one, one, "steps", "batch_size") == expected


def test_a_multiple_of_the_median_norm_is_above_1():
    require_max_norm_multiple(None)
    require_max_norm_multiple(1.1)
    expected = "max_norm_multiple=1.0: expected above 1 (10 leaves out attention sinks)"
    assert message(require_max_norm_multiple, 1.0) == expected


def test_a_choice_is_one_of_a_literals():
    require_choice("colour", "red", Colour)
    assert message(require_choice, "colour", "bleu", Colour).endswith("; did you mean 'blue'?")
    expected = "colour='green': expected one of red, blue"
    assert message(require_choice, "colour", "green", Colour) == expected


def test_a_misspelt_name_may_stand_for_several():
    """bata shares three of its four letters, in their order, with both."""
    names = ["data", "beta", "sigma"]
    assert meant("bata", names) == "; did you mean 'beta' or 'data'?"
    assert meant("sig", names) == "; did you mean 'sigma'?"
    begun = [f"noise_{which}" for which in ("on", "to_signal", "anneal_steps", "seed")]
    assert meant("noise", begun).count(" or ") == 2, "three at most"
    assert meant("bet", names) == meant("betta", names) == "; did you mean 'beta'?"
    assert meant("xyz", names) == ""


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
        ([0.5, 1], tuple[float, ...]),
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
        (True, float, "a finite number"),
        ("1", float, "a finite number"),
        (math.inf, float, "a finite number"),
        (math.nan, float, "a finite number"),
        (10**400, float, "a finite number"),
        (1, bool, "true or false"),
        (1, str, "text"),
        (None, int, "a whole number"),
        ("a", int | None, "a whole number or None"),
        ("green", Colour, "one of red, blue"),
        (3, Colour | None, "one of red, blue or None"),
        (0.5, tuple[float, ...], "a list of numbers"),
        ((0.5, math.inf), tuple[float, ...], "a list of numbers"),
        ((0.5, "1"), tuple[float, ...], "a list of numbers"),
        ((0.5, True), tuple[float, ...], "a list of numbers"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named_with_the_type_in_words(value, hint, expected):
    assert message(require_type, "x", value, hint) == f"x={value!r}: expected {expected}"


def test_a_learning_rate_and_its_schedule_fit_the_run():
    require_lr_schedule(10, None, None)
    require_lr_schedule(10, 1e-3, 0, decay_start=1)
    require_lr_schedule(10, 1e-3, 3, decay_start=9, sparsity_warmup_steps=8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr": 0.0}, "lr=0.0: expected above 0"),
        ({"lr": -1.0}, "lr=-1.0: expected above 0"),
        ({"lr": math.nan}, "lr=nan: expected a finite number or None"),
        ({"lr": math.inf}, "lr=inf: expected a finite number or None"),
        ({"lr": "1e-3"}, "lr='1e-3': expected a finite number or None"),
        ({"warmup_steps": 10}, "warmup_steps=10: expected 0 or more, and less than steps=10"),
        ({"warmup_steps": -1}, "warmup_steps=-1: expected 0 or more, and less than steps=10"),
        ({"warmup_steps": 0.5}, "warmup_steps=0.5: expected a whole number or None"),
        (
            {"sparsity_warmup_steps": 12},
            "sparsity_warmup_steps=12: expected 0 or more, and less than steps=10",
        ),
        ({"decay_start": 3}, "decay_start=3: expected between 3 and steps=10"),
        ({"decay_start": 10}, "decay_start=10: expected between 3 and steps=10"),
        (
            {"decay_start": 5, "sparsity_warmup_steps": 5},
            "decay_start=5: expected between 5 and steps=10",
        ),
    ],
    ids=str,
)
def test_a_learning_rate_or_a_schedule_that_does_not_fit_is_named_with_the_runs_steps(
    given, expected
):
    with pytest.raises(ConfigError) as raised:
        require_lr_schedule(10, **{"lr": 1e-3, "warmup_steps": 3} | given)
    assert str(raised.value) == expected
