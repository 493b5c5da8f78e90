"""A metric's row: how a value of it is shown, which is best, and where it is shown."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch as t

from dictionary_learning_ext.evaluation.metrics import (
    TABLES,
    Metric,
    computed,
    description_length,
    shown_in,
)


def metric(**options):
    return Metric("key", "definition", "label", lambda totals: None, **options)


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.123456, 4, "0.1235"),
        (3.0, 0, "3"),
        (9.994, 2, "9.99"),
        (10, 4, "10.0"),
        (-12.34, 4, "-12.3"),
        (math.inf, 4, "inf"),
        (math.nan, 4, "nan"),
        (None, 4, "-"),
    ],
)
def test_a_value_as_tables_show_it(value, digits, expected):
    assert metric(digits=digits).text(value) == expected
    assert metric().text(None, missing="–") == "–"


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("higher", [None, 0.0, 2.0, -1.0, None], 2.0),
        ("lower", [None, 0.0, 2.0, -1.0], -1.0),
        ("lower", [0.5, 0.0], 0.0),
        (None, [0.0, 2.0], None),
        ("higher", [None, None], None),
        ("lower", [], None),
    ],
)
def test_the_best_of_some_values(better, values, best):
    assert metric(better=better).best(values) == best


def test_each_table_shows_fve_and_no_label_twice():
    for table in TABLES:
        labels = [row.label for row in shown_in(table)]
        assert "FVE" in labels
        assert len(set(labels)) == len(labels), table


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_null_and_the_reason_said(value):
    totals: Any = None
    row = Metric("key", "definition", "label", lambda totals: value)
    reason = f"undefined for these activations (the formula gives {value})"
    assert computed(totals, [row]) == {"key": None, "not_measured": {"key": reason}}


def test_the_description_length_counts_the_choice_of_features_and_what_is_left():
    """In nats: the logarithm of how many sets of 2 of 6 features there are, and of a Gaussian residual of 8
    numbers whose variance is a quarter."""
    x = t.tensor([[2.0] * 8, [-2.0] * 8])
    totals: Any = SimpleNamespace(
        dict_size=6, activation_dim=8, residual=float(x.pow(2).sum()) / 4, mean=lambda name: 2.0
    )
    totals.total_variance = float(x.pow(2).sum())
    assert description_length(totals) == pytest.approx(math.log(15) - 4 * math.log(4))
