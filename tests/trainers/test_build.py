"""From a configuration to a trainer: every architecture builds, and its options arrive."""

import inspect

import pytest
import torch as t
from small_trainers import STEPS, F, batch, built

from dictionary_learning_ext.config.architectures import TRAINED, import_class
from dictionary_learning_ext.config.sae import CONFIGS
from dictionary_learning_ext.trainers.upstream import UpstreamTrainer

OPTIONS = {
    "vsae_top_k": {"k": 5, "beta": 0.3, "sigma": 0.2, "noise_on": "values", "rectify": True},
    "vsae": {"beta": 0.3, "posterior": "learned", "log_var_init": -1.0},
    "vaease": {"gamma_init": 0.3, "active_gate": 0.1, "prior_std": 0.7},
    "top_k": {"k": 5, "auxk_alpha": 0.25},
    "probabilistic_top_k": {"k": 5, "temperature_start": 2.0, "auxk_alpha": 0.25},
    "batch_top_k": {"k": 5, "auxk_alpha": 0.25},
    "relu": {"l1_penalty": 0.3, "sparsity_warmup_steps": 7},
    "jump_relu": {"sparsity_penalty": 0.3, "target_l0": 3.0, "sparsity_warmup_steps": 7},
    "matryoshka": {"k": 5, "auxk_alpha": 0.25, "group_fractions": (0.25, 0.75)},
}
"""Some options of each, none at its default."""


def found(trainer, name):
    """An option's value in a trainer: an attribute, or an entry of its config."""
    attributes = vars(trainer.state())
    return attributes[name] if name in attributes else trainer.config[name]


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_builds_with_its_options_and_trains(architecture):
    row, options = TRAINED[architecture], OPTIONS[architecture]
    trainer = built(architecture, lr=3e-3, warmup_steps=4, seed=3, **options)
    assert type(trainer.state()) is import_class(row.trainer)
    assert type(trainer.ae) is import_class(row.dictionary)
    is_ours = row.trainer.startswith("dictionary_learning_ext") and architecture != "jump_relu"
    assert isinstance(trainer, UpstreamTrainer) != is_ours
    config = trainer.config
    assert (config["lr"], config["seed"], config["submodule_name"]) == (
        3e-3,
        3,
        "blocks.0.hook_resid_post",
    )
    for name, value in options.items():
        value = list(value) if isinstance(value, tuple) else value
        assert found(trainer, name) == value, name
    weights = {name: value.clone() for name, value in trainer.ae.state_dict().items()}
    for step in range(3):
        trainer.update(step, batch(step))
    assert any(not t.equal(v, weights[n]) for n, v in trainer.ae.state_dict().items())


@pytest.mark.parametrize("architecture", TRAINED)
def test_the_seed_decides_the_initial_weights(architecture):
    one, again, other = (built(architecture, seed=s).ae.state_dict() for s in (0, 0, 1))
    assert all(t.equal(one[name], again[name]) for name in one)
    assert any(not t.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "architecture",
    [n for n, cls in CONFIGS.items() if "dead_feature_threshold" in cls().options],
)
def test_dead_feature_threshold_reaches_the_attribute(architecture):
    """Upstream's TopK trainers take no such argument."""
    trainer = built(architecture, dead_feature_threshold=77)
    assert trainer.state().dead_feature_threshold == 77


def test_k_is_dict_size_where_the_architecture_says_so():
    assert built("vsae").ae.k == F
    assert built("vsae_top_k", k=5).ae.k == 5


@pytest.mark.parametrize(
    "architecture", ["vsae_top_k", "top_k", "probabilistic_top_k", "batch_top_k", "matryoshka"]
)
def test_the_threshold_starts_within_a_short_run(architecture):
    assert built(architecture).state().threshold_start_step == STEPS // 2


def test_noise_to_signal_is_no_argument_of_the_trainer():
    """It has been resolved to sigma before."""
    trainer = built("vsae_top_k", noise_to_signal=0.1)
    assert "noise_to_signal" not in inspect.signature(type(trainer)).parameters


@pytest.mark.parametrize("architecture", ["vsae_top_k", "vaease", "probabilistic_top_k"])
def test_ours_take_the_dtype_as_an_option(architecture):
    assert built(architecture, dtype="bfloat16").config["dtype"] == "bfloat16"
