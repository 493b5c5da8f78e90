"""Each option's default, help and check stand once, in its group."""

import inspect
import math
from dataclasses import asdict, fields
from typing import get_type_hints

import pytest
import torch as t

from dictionary_learning_ext.config.architectures import ARCHITECTURES, TRAINED, import_class
from dictionary_learning_ext.config.help_texts import help_texts
from dictionary_learning_ext.config.options import (
    SCALE_LIMITS,
    AuxKOptions,
    GateOptions,
    ObjectiveOptions,
    PosteriorOptions,
    TopKOptions,
    VAEaseOptions,
)
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.probabilistic_top_k import ProbabilisticTopKTrainer
from dictionary_learning_ext.trainers.vaease import VAEase, VAEaseTrainer
from dictionary_learning_ext.trainers.variational_auto_encoder import VariationalTopKAutoEncoder
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKTrainer

GROUPS = tuple(dict.fromkeys(group for row in ARCHITECTURES.values() for group in row.options))
D, F, K = 8, 16, 4
POSTERIOR, OBJECTIVE = asdict(PosteriorOptions()), asdict(ObjectiveOptions())
VAEASE = asdict(VAEaseOptions())
STARTED = {"steps": 40, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
STARTED |= {"warmup_steps": 4, "seed": 0, "device": "cpu"}
"""What a trainer is given beside its options."""


@pytest.mark.parametrize(
    "row",
    [row for row in TRAINED.values() if row.is_ours or row.name == "probabilistic_top_k"],
    ids=lambda row: row.name,
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
        (ProbabilisticTopKTrainer, {"k": K}, asdict(GateOptions()) | asdict(AuxKOptions())),
    ],
    ids=["vsae", "vaease", "probabilistic_top_k"],
)
def test_a_trainer_without_options_has_the_defaults_of_its_groups(trainer, given, defaults):
    bare, told = trainer(**STARTED, **given), trainer(**STARTED, **given, **defaults)
    assert bare.config == told.config
    chosen = {name: value for name, value in defaults.items() if value is not None}
    assert bare.config.items() >= chosen.items()
    assert_same_weights(bare.ae, told.ae)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_option_has_a_help_text(group):
    texts = help_texts(group)
    for option in fields(group):
        assert len(texts[option.name]) > 10, option.name


def test_options_are_taken_out_of_arguments():
    arguments = {"sigma": 0.5, "lr": 1e-3}
    assert PosteriorOptions.taken(arguments).sigma == 0.5
    assert arguments == {"lr": 1e-3}


def test_upstreams_trainers_have_the_defaults_that_our_groups_say():
    """The help texts say them, and upstream's trainers take what is not given from themselves."""
    compared = set()
    for row in TRAINED.values():
        if row.is_ours or row.name == "probabilistic_top_k":  # it reads them from our groups
            continue
        classes = [cls for cls in import_class(row.trainer).__mro__ if "trainers" in cls.__module__]
        parameters = {n: p for cls in classes for n, p in inspect.signature(cls).parameters.items()}
        for group in row.options:
            for option in fields(group):
                theirs = getattr(parameters.get(option.name), "default", inspect.Parameter.empty)
                if option.default is not None and theirs is not inspect.Parameter.empty:
                    assert theirs == option.default, (row.name, option.name)
                    compared.add(option.name)
    ours = {"threshold_twice"}
    assert compared == {"auxk_alpha", "l1_penalty", "sparsity_penalty", "target_l0"} | ours


def test_a_schedule_that_is_not_given_is_a_share_of_the_run():
    options = ObjectiveOptions().for_steps(100)
    assert options.kl_warmup_steps == 10
    assert options.for_steps(100) == options, "a config builds the same again"
    assert ObjectiveOptions(kl_warmup_steps=0).for_steps(100).kl_warmup_steps == 0


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"kl_warmup_steps": -1}, "0 .no warm-up. or more"),
        ({"noise_anneal_steps": 0}, "for no noise use posterior=point .--posterior point."),
        ({"k_anneal_steps": 0}, "above 0, or none for a k that stays"),
    ],
)
def test_steps_without_a_meaning_are_refused_with_what_to_use(given, instead):
    with pytest.raises(ConfigError, match=instead):
        (TopKOptions if "k_anneal_steps" in given else ObjectiveOptions)(**given)


FLOATS = [
    (group, option.name)
    for group in sorted(GROUPS, key=lambda group: group.__name__)
    for option in fields(group)
    if get_type_hints(group)[option.name] in (float, float | None)
]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "x", True])
@pytest.mark.parametrize(("group", "name"), FLOATS, ids=str)
def test_an_option_that_is_not_a_finite_number_is_named(group, name, value):
    with pytest.raises(ConfigError, match=f"^{name}={value!r}: expected a finite number"):
        group(**{name: value})


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (PosteriorOptions, "sigma"),
        (PosteriorOptions, "prior_std"),
        (VAEaseOptions, "prior_std"),
        (VAEaseOptions, "gamma_init"),
    ],
    ids=str,
)
def test_a_scale_whose_square_is_no_number_in_float32_is_refused(group, name):
    for value in (1e-46, 1e-20, 1e20, 0.0, -1.0):
        with pytest.raises(
            ConfigError, match=f"^{name}={value}: expected above 0".replace("+", r"\+")
        ):
            group(**{name: value})
    for value in SCALE_LIMITS:
        group(**{name: value})
        square = t.tensor(value).square()
        assert square > 0
        assert square.isfinite()
        assert square.reciprocal().isfinite()


@pytest.mark.parametrize("name", ["kl_warmup_steps", "noise_anneal_steps"])
def test_a_schedule_longer_than_the_run_is_refused_with_both_numbers(name):
    ObjectiveOptions(**{name: 40}).require_fit(40)
    longer = ObjectiveOptions(**{name: 41})
    for check in (longer.require_fit, longer.for_steps):
        with pytest.raises(ConfigError, match=f"^{name}=41: expected at most steps=40$"):
            check(40)


def test_the_help_text_of_an_inherited_option_is_found():
    assert help_texts(ObjectiveOptions)["auxk_alpha"].startswith("Weight of the auxiliary loss")
