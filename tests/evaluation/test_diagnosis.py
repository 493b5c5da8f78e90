"""A bad run is called one, with a flag to change, and a good one is not."""

import dataclasses
import re

import pytest

from dictionary_learning_ext.commands.train import TrainFlags
from dictionary_learning_ext.config.run_config import RunConfig
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.evaluation.diagnosis import symptoms

GOOD = {"fve": 0.95, "frac_recovered": 0.98, "alive": 0.97, "noise_to_signal": 0.1}
FLAGS = {
    field.name
    for flags in (SAEConfig, RunConfig, TrainFlags)
    for field in dataclasses.fields(flags)
}


def test_a_good_run_has_no_symptom():
    assert symptoms(GOOD, SAEConfig()) == []


@pytest.mark.parametrize(
    ("metric", "bad", "limit", "said"),
    [
        ("fve", 0.2, 0.5, "FVE is 0.20"),
        ("frac_recovered", 0.3, 0.5, "CE recovered is 0.30"),
        ("alive", 0.75, 0.76, "Only 75% of the features"),
        ("noise_to_signal", 0.5, 0.3, "noise has 0.50 of the activations' energy"),
    ],
)
def test_each_symptom_is_said_with_flags_that_there_are(metric, bad, limit, said):
    (line,) = symptoms(GOOD | {metric: bad}, SAEConfig())
    assert said in line
    named = [name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", line)]
    assert named
    assert set(named) <= FLAGS
    assert symptoms(GOOD | {metric: limit}, SAEConfig()) == []


def test_what_was_not_measured_is_no_symptom():
    assert symptoms(dict.fromkeys(GOOD), SAEConfig()) == []
    assert symptoms({}, SAEConfig(architecture="relu")) == []


def test_noise_that_is_annealed_away_is_no_symptom():
    assert symptoms(GOOD | {"noise_to_signal": 0.5}, SAEConfig(noise_anneal_steps=5)) == []
