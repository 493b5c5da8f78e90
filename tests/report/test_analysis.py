"""What the SAEs of a report are called."""

import pytest

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.report.analysis import labels_of


def test_alike_names_are_told_apart():
    assert labels_of(["runs/a", "runs/b"]) == ["a", "b"]
    assert labels_of(["one/a", "two/a"]) == ["one/a", "two/a"]
    with pytest.raises(ConfigError, match="runs/a is given twice"):
        labels_of(["runs/a", "runs/../runs/a"])
