"""What trainers take as **options, for type checkers, is what their settings have."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from dictionary_learning_ext.config.sae import (
    SCHEDULES,
    PosteriorArguments,
    PosteriorOptions,
    ProbabilisticTopKArguments,
    ProbabilisticTopKConfig,
    VAEaseArguments,
    VAEaseConfig,
    VSAEArguments,
    VSAETopKConfig,
    require_known,
)

ELSEWHERE = {"k", "auxk_alpha"}, {"noise_to_signal"}
"""Upstream's own arguments, and what needs the activations' energy: `trainer_options` resolves it."""


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (PosteriorArguments, PosteriorOptions),
        (VSAEArguments, VSAETopKConfig),
        (ProbabilisticTopKArguments, ProbabilisticTopKConfig),
        (VAEaseArguments, VAEaseConfig),
    ],
)
def test_the_names_and_types_are_those_of_the_settings(arguments, settings):
    own = (
        {f.name for f in fields(settings)}
        if settings is PosteriorOptions
        else set(settings().options)
    )
    types = get_type_hints(settings)  # without what Annotated adds
    expected = {
        **{name: types[name] for name in own.difference(*ELSEWHERE, SCHEDULES)},
        **{SCHEDULES[name].in_steps: int | None for name in own & SCHEDULES.keys()},
    }
    assert get_type_hints(arguments) == expected


def test_an_option_of_another_trainer_is_refused_as_python_refuses_it():
    with pytest.raises(TypeError, match=r"^Trainer\(\) .*'noise_to_signal'"):
        require_known({"beta": 1.0, "noise_to_signal": 0.3}, VSAEArguments, "Trainer")
