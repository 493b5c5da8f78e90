"""Each option's default, help and check stand once, in its group."""

import inspect
from dataclasses import asdict, fields

import pytest
import torch as t

from dictionary_learning_ext.config.architectures import ARCHITECTURES, TRAINED, import_class
from dictionary_learning_ext.config.options import (
    ObjectiveOptions,
    PosteriorOptions,
    VAEaseOptions,
)
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.vaease import VAEase, VAEaseTrainer
from dictionary_learning_ext.trainers.variational_top_k import (
    VariationalTopKAutoEncoder,
    VariationalTopKTrainer,
)

GROUPS = {group for row in ARCHITECTURES.values() for group in row.options}
D, F, K = 8, 16, 4
POSTERIOR, OBJECTIVE = asdict(PosteriorOptions()), asdict(ObjectiveOptions())
VAEASE = asdict(VAEaseOptions())
STARTED = {"steps": 40, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
STARTED |= {"warmup_steps": 4, "seed": 0, "device": "cpu"}
"""What a trainer is given beside its options."""


@pytest.mark.parametrize(
    "row", [row for row in TRAINED.values() if row.is_ours], ids=lambda row: row.name
)
def test_our_trainers_name_every_option_in_their_signature(row):
    named = set(inspect.signature(import_class(row.trainer)).parameters)
    assert set(row.option_names) - {"noise_to_signal"} <= named  # which is resolved to sigma


def assert_same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(t.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("model", "given", "defaults"),
    [(VariationalTopKAutoEncoder, (D, F, K), POSTERIOR), (VAEase, (D, F), VAEASE)],
    ids=["vsae", "vaease"],
)
def test_a_model_without_options_has_the_defaults_of_its_group(model, given, defaults):
    t.manual_seed(0)
    bare = model(*given)
    t.manual_seed(0)
    assert_same_weights(bare, model(*given, **defaults))


@pytest.mark.parametrize(
    ("trainer", "given", "defaults"),
    [
        (VariationalTopKTrainer, {"k": K}, POSTERIOR | OBJECTIVE),
        (VAEaseTrainer, {}, VAEASE),
    ],
    ids=["vsae", "vaease"],
)
def test_a_trainer_without_options_has_the_defaults_of_its_groups(trainer, given, defaults):
    bare, told = trainer(**STARTED, **given), trainer(**STARTED, **given, **defaults)
    assert bare.config == told.config
    chosen = {name: value for name, value in defaults.items() if value is not None}
    assert bare.config.items() >= chosen.items()
    assert_same_weights(bare.ae, told.ae)


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
        ({"noise_anneal_steps": 0}, "use posterior=point .--posterior point. for none"),
    ],
)
def test_steps_without_a_meaning_are_refused_with_what_to_use(given, instead):
    with pytest.raises(ConfigError, match=instead):
        ObjectiveOptions(**given)


def test_the_help_text_of_an_inherited_option_is_found():
    assert ObjectiveOptions.help_texts()["auxk_alpha"].startswith("Weight of the auxiliary loss")
