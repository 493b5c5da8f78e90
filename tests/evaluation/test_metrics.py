"""A metric's row: how a value of it is shown, which is best, and where it is shown."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch as t

from dictionary_learning_ext.evaluation.metrics import (
    TABLES,
    Metric,
    Number,
    computed,
    description_length,
    shown_in,
)


def number(**options):
    return Number("key", "label", "definition", **options)


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (0.123456, ".4f", "0.1235"),
        (3.0, ".0f", "3"),
        (9.9994, ".4f", "9.9994"),
        (10, ".4f", "10.0"),
        (-12.34, ".4f", "-12.3"),
        (12.34, ".0f", "12"),
        (0.5, ".1%", "50.0%"),
        (math.inf, ".4f", "inf"),
        (math.nan, ".4f", "–"),
        (None, ".4f", "–"),
    ],
)
def test_a_value_as_tables_show_it(value, form, expected):
    assert number(form=form).text(value, missing="–") == expected


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
    assert number(better=better).best(values) == best


def test_each_table_shows_fve_and_no_label_twice():
    for table in TABLES:
        labels = [row.label for row in shown_in(table)]
        assert "FVE" in labels
        assert len(set(labels)) == len(labels), table


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_null_and_the_reason_said(value):
    totals: Any = None
    row = Metric("key", "label", "definition", formula=lambda totals: value)
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
