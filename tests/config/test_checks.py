"""Types that pass, and words for messages. What is refused is in tests/test_refusals.py."""

from typing import Literal

import pytest

from dictionary_learning_ext.config.checks import did_you_mean, require_type
from dictionary_learning_ext.errors import ConfigError

Colour = Literal["red", "blue"]


def test_a_misspelt_name_may_stand_for_several():
    names = ["data", "beta", "sigma"]
    assert did_you_mean("sig", names) == "; did you mean 'sigma'?"
    begun = [f"noise_{which}" for which in ("on", "to_signal", "anneal_steps", "seed")]
    assert did_you_mean("noise", begun).count(" or ") == 2, "three at most"
    assert did_you_mean("bet", names) == did_you_mean("betta", names) == "; did you mean 'beta'?"
    assert did_you_mean("bata", names) == "; did you mean 'data' or 'beta'?"
    assert did_you_mean("xyz", names) == ""


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (float, [3, 0.5]),
        (int | None, [3, None]),
        (Colour | None, ["blue", None]),
        (tuple[float, ...], [(0.5, 1), (), [0.5, 1]]),
        (int | str, [3, "often"]),
        (dict[str, int | str], [{"a": 3}, {}]),
    ],
    ids=str,
)
def test_a_value_of_its_type_passes(hint, values):
    for value in values:
        require_type("x", value, hint)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (tuple[int, ...], ["a"], "a list of numbers"),
        (dict[str, int], {"a": "b"}, "a dict"),
        (dict[str, int], [3], "a dict"),
    ],
    ids=str,
)
def test_a_list_or_a_dict_has_values_of_its_type(hint, value, expected):
    with pytest.raises(ConfigError, match=f"expected {expected}$"):
        require_type("x", value, hint)
