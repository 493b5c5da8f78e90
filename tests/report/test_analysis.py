"""What the SAEs of a report are called."""

import pytest

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.report.analysis import short_names


def test_alike_names_are_told_apart():
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["one/a", "two/a"]) == ["one/a", "two/a"]
    with pytest.raises(ConfigError, match="runs/a is given twice"):
        short_names(["runs/a", "runs/../runs/a"])
