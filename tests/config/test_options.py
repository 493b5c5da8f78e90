"""Each option's default, help and check stand once, in its group."""

import inspect
from dataclasses import fields

import pytest

from dictionary_learning_ext.config.architectures import ARCHITECTURES, TRAINED, import_class
from dictionary_learning_ext.config.options import (
    ObjectiveOptions,
    PosteriorOptions,
    VAEaseOptions,
)
from dictionary_learning_ext.errors import ConfigError

GROUPS = {group for row in ARCHITECTURES.values() for group in row.options}
OURS = {row.trainer: row for row in TRAINED.values() if row.is_ours}


@pytest.mark.parametrize("row", OURS.values(), ids=lambda row: row.name)
def test_signatures_have_the_defaults_of_the_groups(row):
    """Of models and trainers alike: every option of their groups, with its default."""
    groups = [group for group in row.options if group.__module__.endswith("config.options")]
    expected = {o.name: o.default for group in groups for o in fields(group)}
    for path in (row.trainer, row.dictionary):
        parameters = inspect.signature(import_class(path)).parameters
        found = {n: parameters[n].default for n in expected if n in parameters and n != "k"}
        assert found
        assert found == {n: expected[n] for n in found}
    trainer = inspect.signature(import_class(row.trainer)).parameters
    assert set(expected) - {"noise_to_signal"} <= set(trainer)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_option_has_a_help_text(group):
    texts = group.help_texts()
    for option in fields(group):
        assert len(texts[option.name]) > 10, option.name


def test_options_are_taken_out_of_arguments():
    arguments = {"sigma": 0.5, "lr": 1e-3}
    assert PosteriorOptions.taken(arguments).sigma == 0.5
    assert arguments == {"lr": 1e-3}
    with pytest.raises(TypeError, match="unknown arguments lr; expected log_var_init"):
        VAEaseOptions.taken(arguments, all_of=True)


def test_upstreams_trainers_have_the_defaults_that_our_groups_say():
    """The help texts say them, and upstream's trainers take what is not given from themselves."""
    compared = set()
    for row in TRAINED.values():
        if row.is_ours:
            continue
        parameters = inspect.signature(import_class(row.trainer)).parameters
        for group in row.options:
            for option in fields(group):
                theirs = getattr(parameters.get(option.name), "default", inspect.Parameter.empty)
                if option.default is not None and theirs is not inspect.Parameter.empty:
                    assert theirs == option.default, (row.name, option.name)
                    compared.add(option.name)
    assert compared == {"auxk_alpha", "l1_penalty", "sparsity_penalty", "target_l0"}


def test_a_schedule_that_is_not_given_is_a_share_of_the_run():
    options = ObjectiveOptions(kl_cycle_steps=7).for_steps(100)
    assert (options.kl_warmup_steps, options.kl_cycle_steps) == (10, 7)
    assert ObjectiveOptions(kl_warmup_steps=0).for_steps(100).kl_warmup_steps == 0


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"kl_warmup_steps": -1}, "0 .no warm-up. or more"),
        ({"kl_cycle_steps": 0}, "use kl_schedule=constant"),
        ({"noise_anneal_steps": 0}, "use posterior=point for none"),
    ],
)
def test_steps_without_a_meaning_are_refused_with_what_to_use(given, instead):
    with pytest.raises(ConfigError, match=instead):
        ObjectiveOptions(**given)


def test_the_help_text_of_an_inherited_option_is_found():
    assert ObjectiveOptions.help_texts()["auxk_alpha"].startswith("Weight of the auxiliary loss")
