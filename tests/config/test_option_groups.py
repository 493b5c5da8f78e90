"""What a method that takes options names in its signature, and refuses."""

import inspect
from dataclasses import dataclass

import pytest

from dictionary_learning_ext.config.option_groups import Options, takes
from dictionary_learning_ext.errors import ConfigError


@dataclass(frozen=True)
class Colours(Options):
    hue: float = 0.5
    """Where on the wheel."""


def older(self, size: int, hue: float = 0.1, shade: int = 3):
    """What another library has."""


class Painter:
    @takes(Colours, beside=older)
    def __init__(self, size: int, *, brush: str = "fine", **options):
        self.colours, self.rest = Colours.taken(options), options


def test_the_signature_names_own_arguments_options_and_those_of_the_other_once():
    parameters = inspect.signature(Painter).parameters
    assert list(parameters) == ["size", "brush", "hue", "shade", "options"]
    assert parameters["hue"].default == 0.5
    assert parameters["shade"].default == 3


def test_options_are_taken_and_the_rest_is_left():
    painter = Painter(3, hue=0.25, shade=7, brush="broad")
    assert (painter.colours.hue, painter.rest) == (0.25, {"shade": 7})


@pytest.mark.parametrize(
    ("wrong", "instead"),
    [
        ({"heu": 1.0}, "Painter has no option 'heu'; did you mean 'hue'\\?"),
        ({"brushes": "x"}, "'brushes'; did you mean 'brush'"),
        ({"shades": 1}, "'shades'; did you mean 'shade'"),
        ({"zzzz": 1}, "'zzzz'; expected one of size, brush, hue, shade$"),
        ({"self_": 1}, "Painter has no option 'self_'"),
    ],
)
def test_an_unknown_option_is_named_with_the_class_and_the_closest(wrong, instead):
    with pytest.raises(ConfigError, match=instead):
        Painter(3, **wrong)


def test_an_options_type_is_checked():
    with pytest.raises(ConfigError, match="hue='red': expected a finite number"):
        Painter(3, hue="red")
