"""The options of our constructors, as help() and type checkers know them."""

import inspect

import pytest
from written_arguments import CLASSES, FILE, written

import dictionary_learning_ext
from dictionary_learning_ext.config.arguments import arguments_of


def test_type_checkers_are_told_the_options_of_the_settings():
    assert FILE.read_text() == written(), "run `python tests/helpers/written_arguments.py`"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("VariationalTopKTrainer", "VSAETopKArguments"),
        ("VariationalTopKAutoEncoder", "PosteriorArguments"),
        ("ProbabilisticTopKTrainer", "ProbabilisticTopKArguments"),
        ("VAEaseTrainer", "VAEaseTrainerArguments"),
        ("VAEase", "VAEaseArguments"),
    ],
)
def test_help_names_every_option_with_its_default(name, arguments):
    parameters = inspect.signature(getattr(dictionary_learning_ext, name)).parameters
    assert not [each for each in parameters.values() if each.kind is each.VAR_KEYWORD]
    expected = {
        option: default for option, (_, default) in arguments_of(CLASSES[arguments]).items()
    }
    assert {n: parameters[n].default for n in expected} == expected
