"""One-sided tests of paired differences, and their correction."""

import pytest

from experiments.paired_tests import holm, sign_flip


def test_a_sign_flip_test_counts_the_flips_that_are_as_large():
    assert sign_flip([1.0, 2.0, 3.0]) == 1 / 8, "the floor of three pairs"
    assert sign_flip([-1.0, -2.0, -3.0]) == 1
    # Of +-1 +-2 +-3, 1 + 2 - 3 = 0 is reached or passed by 5 of 8.
    assert sign_flip([1.0, 2.0, -3.0]) == 5 / 8


def test_holm_multiplies_by_what_is_left_and_never_falls():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
