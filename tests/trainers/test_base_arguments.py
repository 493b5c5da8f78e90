"""What our trainers are given: upstream's arguments, activations, noise; and what they refuse."""

import inspect
import logging
import math
import re

import pytest
import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from small_trainers import D, F, K, batch

from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.probabilistic_top_k import ProbabilisticTopKTrainer
from dictionary_learning_ext.trainers.vaease import VAEase, VAEaseTrainer
from dictionary_learning_ext.trainers.variational_top_k import (
    VariationalTopKAutoEncoder,
    VariationalTopKTrainer,
)

WITH_OWN_DICTIONARY = [
    (VariationalTopKTrainer, VariationalTopKAutoEncoder),
    (VAEaseTrainer, VAEase),
]
OURS = [*WITH_OWN_DICTIONARY, (ProbabilisticTopKTrainer, AutoEncoderTopK)]


def made(trainer, **options):
    """As upstream's examples make one."""
    k = {} if trainer is VAEaseTrainer else {"k": K}
    given = {"steps": 50, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
    return trainer(**given | k | {"warmup_steps": 5, "seed": 0, "device": "cpu"} | options)


@pytest.mark.parametrize(("trainer", "ours"), WITH_OWN_DICTIONARY)
def test_upstreams_dict_class_is_ignored_with_a_warning(trainer, ours, caplog):
    plain = made(trainer)
    assert not caplog.records
    same = made(trainer, dict_class=AutoEncoderTopK)
    assert f"{trainer.__name__} trains a {ours.__name__}" in caplog.text
    assert type(same.ae) is ours
    assert same.config == plain.config
    caplog.clear()
    assert type(made(trainer, dict_class=ours).ae) is ours
    assert not caplog.records


@pytest.mark.parametrize(("trainer", "ours"), WITH_OWN_DICTIONARY)
def test_a_subclass_of_the_dictionary_is_trained(trainer, ours, tmp_path):
    class Doubled(ours):
        def decode(self, f):
            return 2 * super().decode(f)

    one = made(trainer, dict_class=Doubled)
    assert type(one.ae) is Doubled
    assert one.config["dict_class"] == "Doubled", "not loaded as another class"
    one.update(0, batch(0))
    t.save(one.ae.state_dict(), tmp_path / "ae.pt")
    loaded = Doubled.from_pretrained(tmp_path / "ae.pt")
    assert type(loaded) is Doubled
    assert t.equal(loaded(batch(1)), one.ae(batch(1)))


@pytest.mark.parametrize("wrong", [BatchTopKSAE, "AutoEncoderTopK", print], ids=str)
@pytest.mark.parametrize(("trainer", "ours"), OURS)
def test_another_dict_class_is_refused_by_name(trainer, ours, wrong):
    name = getattr(wrong, "__name__", repr(wrong))
    expected = (
        f"^dict_class of a {trainer.__name__} is {name}; expected {ours.__name__} or a subclass"
    )
    with pytest.raises(ConfigError, match=expected):
        made(trainer, dict_class=wrong)


@pytest.mark.parametrize(("trainer", "_"), OURS)
def test_a_misspelt_option_names_our_trainer_and_the_closest(trainer, _):
    with pytest.raises(ConfigError, match=f"{trainer.__name__} has no option 'warmup_step'; did"):
        made(trainer, warmup_step=3)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        (
            "noise_to_signal",
            r"sigma = sqrt\(noise_to_signal E\|\|x\|\|\^2 / k\), or .*trainer_options",
        ),
        ("kl_coeff", "it is called 'beta'$"),
        ("kl_anneal_steps", "it is called 'kl_warmup_steps'$"),
    ],
)
def test_what_an_option_is_called_elsewhere_is_known(name, instead):
    with pytest.raises(
        ConfigError, match=f"VariationalTopKTrainer has no option '{name}'; .*{instead}"
    ):
        made(VariationalTopKTrainer, **{name: 1})
    with pytest.raises(ConfigError) as raised:
        made(VAEaseTrainer, **{name: 1})
    assert "sigma" not in str(raised.value)
    assert "it is called" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": "16"}, "^k='16': expected a whole number"),
        ({"k": 16.0}, "^k=16.0: expected a whole number"),
        ({"k": 0}, f"^k=0: expected between 1 and dict_size={F}"),
        ({"dict_size": float(F)}, f"^dict_size={F}.0: expected a whole number"),
        ({"activation_dim": 0}, "^activation_dim=0: expected at least 1"),
        ({"steps": 50.0}, "^steps=50.0: expected a whole number"),
        ({"device": "gpu"}, "^device='gpu': expected cpu, cuda or cuda:N"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("trainer", "_"), OURS)
def test_a_size_or_a_device_that_is_not_possible_is_named(trainer, _, wrong, message):
    if "k" in wrong and trainer is VAEaseTrainer:
        message = "VAEaseTrainer has no option 'k'"
    with pytest.raises(ConfigError, match=message):
        made(trainer, **wrong)


@pytest.mark.parametrize(("trainer", "_"), OURS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": -1.0}, "lr=-1.0: expected above 0"),
        ({"warmup_steps": 50}, "warmup_steps=50: .*less than steps=50"),
        ({"decay_start": 5}, "decay_start=5: expected between 5 and steps=50"),
    ],
    ids=str,
)
def test_a_learning_rate_or_schedule_that_does_not_fit_is_named(trainer, _, wrong, message):
    with pytest.raises(ConfigError, match=message):
        made(trainer, **wrong)


@pytest.mark.parametrize("trainer", [VariationalTopKTrainer, ProbabilisticTopKTrainer])
def test_none_is_no_threshold_and_no_sigma(trainer):
    with pytest.raises(ConfigError, match="dead_feature_threshold=None: expected a whole number"):
        made(trainer, dead_feature_threshold=None)
    if trainer is VariationalTopKTrainer:
        for made_by in (
            lambda: made(trainer, sigma=None),
            lambda: VariationalTopKAutoEncoder(D, F, 2, sigma=None),
        ):
            with pytest.raises(ConfigError, match="sigma=None: expected a finite number"):
                made_by()


@pytest.mark.parametrize("trainer", [VariationalTopKTrainer, ProbabilisticTopKTrainer])
def test_trainers_of_top_k_have_upstreams_arguments_in_upstreams_places(trainer):
    theirs = inspect.signature(TopKTrainer).parameters
    ours = inspect.signature(trainer).parameters
    own = {"dict_class", "wandb_name"}
    assert {n: p.default for n, p in ours.items() if n in theirs.keys() - own} == {
        n: p.default for n, p in theirs.items() if n not in own
    }
    by_position = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == list(theirs)[: len(by_position)]


@pytest.mark.parametrize("shape", [(2, 3, D), (D,), ()])
@pytest.mark.parametrize(("trainer", "_"), OURS)
def test_activations_of_another_shape_are_named_with_what_to_give(trainer, _, shape):
    one = made(trainer, submodule_name="blocks.0.hook_resid_post")
    x = t.zeros(shape)
    calls = [lambda: one.update(0, x), lambda: one.loss(x, 0), lambda: one.loss(x, 0, logging=True)]
    for call in calls:
        with pytest.raises(ConfigError) as raised:
            call()
        assert str(raised.value) == (
            f"activations of shape {shape} from blocks.0.hook_resid_post: expected (batch, "
            f"activation_dim={D}); give x.reshape(-1, {D})"
        )
    if shape:
        one.update(0, x.reshape(-1, D))


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"sigma": 2.0}, "sigma="),
        ({"posterior": "learned", "log_var_init": 2.0}, "log_var_init="),
    ],
    ids=str,
)
def test_noise_that_drowns_the_activations_is_warned_of_once_with_what_to_set(
    options, instead, caplog
):
    trainer = made(VariationalTopKTrainer, **options)
    x = batch(0) / 2
    ratio = trainer.loss(x, 0, logging=True).losses["noise_to_signal"]
    assert ratio > 0.2
    trainer.update(0, x)
    trainer.update(1, x)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"noise_to_signal={ratio:.3g}" in record.message
    name, _, value = record.message.partition("set ")[2].split()[0].partition("=")
    assert f"{name}=" == instead
    advised = made(VariationalTopKTrainer, **options | {name: float(value)})
    logged = advised.loss(x, 0, logging=True).losses["noise_to_signal"]
    assert logged == pytest.approx(0.1, rel=0.02)
    fading = re.search(r"noise_anneal_steps=(\d+)$", record.message)
    assert fading is not None
    assert int(fading[1]) == 25
    caplog.clear()
    made(VariationalTopKTrainer, **options | {"noise_anneal_steps": 25}).update(0, x)
    assert not caplog.records


@pytest.mark.parametrize(
    "options",
    [{"sigma": 0.1}, {"sigma": 2.0, "noise_anneal_steps": 20}, {"posterior": "point"}],
    ids=str,
)
def test_noise_that_is_small_or_ends_is_not_warned_of(options, caplog):
    made(VariationalTopKTrainer, **options).update(0, batch(0))
    assert not caplog.records


def test_a_first_batch_that_is_not_finite_or_is_zero_is_not_called_noisy(caplog):
    for x in (batch(0) * math.nan, batch(0) * 0):
        made(VariationalTopKTrainer, posterior="learned").update(0, x)
    assert not caplog.records


@pytest.mark.parametrize(
    ("choice", "unused"),
    [
        ({"posterior": "learned"}, {"sigma": 0.3}),
        ({"posterior": "fixed"}, {"log_var_init": -1.0}),
        ({"posterior": "point"}, {"noise_anneal_steps": 9}),
        ({"kl_schedule": "constant"}, {"kl_warmup_steps": 9}),
    ],
    ids=str,
)
def test_an_option_without_effect_is_warned_of_by_name(choice, unused, caplog):
    trainer = made(VariationalTopKTrainer, **choice, **unused)
    ((name, value),), ((key, chosen),) = unused.items(), choice.items()
    assert [record.message for record in caplog.records] == [
        f"{name}={value}: {key}={chosen} does not use it"
    ]
    assert trainer.config[name] == value
    caplog.clear()
    config = made(VariationalTopKTrainer, **choice).config
    del config["trainer_class"], config["dict_class"]
    VariationalTopKTrainer(**config)
    assert not caplog.records, "what a config holds is not a user's choice"


def test_a_relu_before_a_selection_by_magnitude_is_said_in_one_line(caplog):
    made(VariationalTopKTrainer, rectify=True, select_by="magnitude")
    (line,) = caplog.messages
    assert line.startswith("select_by='magnitude' with rectify=True: after the ReLU no mean is")
    caplog.clear()
    made(VariationalTopKTrainer, select_by="magnitude")
    made(VariationalTopKTrainer, rectify=True)
    assert not caplog.messages
