"""A bad run is called one, with flags to change that it has, and a good one is not."""

import dataclasses
import math
import re

import pytest

from dictionary_learning_ext.commands.train import TrainFlags
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run_config import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.evaluation.diagnosis import symptoms

GOOD = {"fve": 0.95, "frac_recovered": 0.98, "alive": 0.97, "noise_to_signal": 0.1}
BAD = {"fve": 0.2, "frac_recovered": 0.3, "alive": 0.75, "noise_to_signal": 0.5}
OF_ALL = {
    field.name for flags in (RunConfig, TrainFlags) for field in dataclasses.fields(flags)
} | {"dict_size", "lr"}


def config(**given):
    return TrainConfig(SAEConfig(**given).resolve(1200, 1024))


def named(line):
    """The flags in a line, as settings."""
    return {name.replace("-", "_") for name in re.findall(r"--([a-z0-9-]+)", line)}


def test_a_good_run_has_no_symptom():
    assert symptoms(GOOD, config()) == []


@pytest.mark.parametrize(
    ("metric", "limit", "said"),
    [
        ("fve", 0.5, "FVE is 0.20: "),
        ("frac_recovered", 0.5, "CE recovered is 0.30: "),
        ("alive", 0.76, "Only 75% of the features were"),
        (
            "noise_to_signal",
            0.2,
            "The noise has 0.50 of the activations' energy, and stays to the end",
        ),
    ],
)
def test_each_symptom_is_said_beyond_its_limit(metric, limit, said):
    (line,) = symptoms(GOOD | {metric: BAD[metric]}, config())
    assert line.startswith(said)
    assert symptoms(GOOD | {metric: limit}, config()) == []


@pytest.mark.parametrize("architecture", TRAINED)
def test_advice_names_only_flags_that_the_architecture_takes(architecture):
    lines = symptoms(BAD, config(architecture=architecture))
    assert len(lines) == 3 + ("noise_anneal_steps" in TRAINED[architecture].option_names)
    for line in lines:
        assert named(line)
        assert named(line) <= OF_ALL | set(TRAINED[architecture].option_names), line
        assert line.endswith(".")


def test_advice_that_the_run_follows_already_is_not_given():
    for own in (preset("recommended"), preset("recommended", steps=50)):
        assert not {"preset", "max_norm_multiple"} & named(" ".join(symptoms(BAD, own)))
    said = " ".join(symptoms(BAD, preset("paper")))
    assert {"preset", "max_norm_multiple", "k", "beta"} <= named(said)
    at_their_ends = config(k=64, dict_size=64, beta=0.0)
    assert not {"k", "beta"} & named(" ".join(symptoms(BAD, at_their_ends)))


def test_advice_names_what_differs_from_the_preset_with_numbers_to_type():
    start = preset("recommended", steps=100)
    changes = {"beta": 3.0, "noise_on": "both", "noise_to_signal": 1.0, "noise_anneal_steps": None}
    bad = dataclasses.replace(start, sae=dataclasses.replace(start.sae, **changes))
    noise, fve, *_ = symptoms(BAD | {"noise_to_signal": 1.0}, bad)
    assert noise.endswith(
        " Use --noise-to-signal 0.1 or let the noise fade away by --noise-anneal-steps 50."
    )
    assert fve.endswith(
        " Raise --steps to 1000, use --noise-on selection --noise-to-signal 0.3 --noise-anneal-steps 50"
        " --beta 0.03 (as --preset recommended) or raise --k to 32."
    )


def better_fit(metrics=(), run=None, **options):
    """The advice to a poor fit."""
    own = TrainConfig(SAEConfig(**options), run or RunConfig(steps=1200, batch_size=1024))
    return symptoms(GOOD | {"fve": 0.2} | dict(metrics), own)[-1]


def test_noise_that_costs_nothing_is_left_as_it_is():
    for given in ({"sigma": 0.01}, {"posterior": "learned"}):
        said = named(better_fit({"noise_to_signal": 0.001}, noise_on="both", **given))
        assert not {"noise_to_signal", "noise_on", "posterior", "noise_anneal_steps"} & said
    stays = named(better_fit({"noise_to_signal": 0.05}, noise_on="both", sigma=0.1))
    assert {"noise_on", "noise_anneal_steps"} <= stays
    assert "noise_to_signal" not in stays


def test_a_posterior_without_noise_gets_none():
    said = better_fit({"noise_to_signal": 0.0}, posterior="point", beta=1.0)
    assert "use --kl-scope selected --beta 0.03 (as --preset recommended)" in said
    assert "preset" not in better_fit({"noise_to_signal": 0.0}, posterior="point", beta=0.0)


def test_a_learned_posterior_with_much_noise_becomes_a_fixed_one():
    said = better_fit({"noise_to_signal": 0.5}, posterior="learned")
    assert "--posterior fixed --noise-to-signal 0.3" in said


def test_numbers_of_the_preset_come_with_its_unit():
    """beta 0.03 under `unit` is as much as 0.03 D under `sqrt_d`."""
    unit = RunConfig(normalize="unit", steps=1200, batch_size=1024)
    options = {"posterior": "point", "kl_scope": "selected"}
    assert "--beta 0.03 --normalize sqrt_d" in better_fit(run=unit, beta=1e-3, **options)
    assert "normalize" not in better_fit(run=unit, beta=0.0, **options)
    raw = RunConfig(normalize="none", steps=1200, batch_size=1024)
    assert "--normalize sqrt_d" in better_fit(run=raw, beta=0.0, **options)


def test_a_larger_k_is_a_whole_number():
    assert "raise --k to 16384" in better_fit(k=8192, dict_size=65536)
    assert "raise --k to 12000" in better_fit(k=8192, dict_size=12000)


def test_a_run_of_many_steps_is_told_twice_as_many():
    assert (
        better_fit(run=RunConfig(steps=3000, batch_size=1024)).count("Raise --steps to 6000") == 1
    )


def test_dying_features_get_fewer_of_them_a_lower_lr_and_more_auxk():
    few = GOOD | {"alive": 0.5}
    (line,) = symptoms(few, config(k=4, dict_size=64, lr=2e-3, auxk_alpha=0.25))
    assert "Lower --dict-size to 32, lower --lr to 0.001, " in line
    assert line.endswith("or raise --auxk-alpha to 0.5.")
    (line,) = symptoms(few, config(k=40, dict_size=64, auxk_alpha=0.0))
    assert "dict-size" not in line, "k must fit"
    assert line.endswith("or raise --auxk-alpha to 0.03125.")


def test_a_learned_posterior_becomes_a_fixed_one_to_lower_its_noise():
    line = symptoms(GOOD | {"noise_to_signal": 0.5}, config(posterior="learned"))[0]
    assert "Use --posterior fixed --noise-to-signal 0.1 or" in line


@pytest.mark.parametrize(("posterior", "given"), [("fixed", "sigma"), ("learned", "log_var_init")])
def test_the_sigma_to_type_gives_the_noise_aimed_at(posterior, given):
    """The ratio goes with sigma squared, which is exp(log_var)."""
    own = config(posterior=posterior)
    (line,) = symptoms(
        GOOD | {"noise_to_signal": 0.4}, TrainConfig(own.sae, RunConfig(normalize="none"))
    )
    value = float(re.findall(r"--(?:sigma|log-var-init) (\S+)", line)[0])
    was = getattr(own.sae, given)
    factor = (value / was) ** 2 if given == "sigma" else math.exp(value - was)
    assert 0.4 * factor == pytest.approx(0.1, rel=0.02)


def test_without_normalisation_less_noise_is_a_smaller_sigma():
    raw = RunConfig(normalize="none")
    noisy = GOOD | {"noise_to_signal": 0.5}
    for posterior, flag in (("fixed", "sigma"), ("learned", "log_var_init")):
        (line,) = symptoms(noisy, TrainConfig(config(posterior=posterior).sae, raw))
        assert named(line) == {flag, "noise_anneal_steps"}


def test_few_tokens_say_nothing_of_the_features_that_are_alive():
    """At k/F = 1/16 the average feature is selected 10 times in 160 tokens."""
    few = GOOD | {"alive": 0.5}
    assert symptoms(few | {"tokens": 159}, config(k=4, dict_size=64)) == []
    assert len(symptoms(few | {"tokens": 160}, config(k=4, dict_size=64))) == 1
    relu = config(architecture="relu", dict_size=64)
    assert symptoms(few | {"tokens": 159, "l0": 4.0}, relu) == []
    assert len(symptoms(few | {"tokens": 160, "l0": 4.0}, relu)) == 1


def test_what_was_not_measured_is_no_symptom():
    assert symptoms(dict.fromkeys(GOOD), config()) == []
    assert symptoms({}, config(architecture="relu")) == []


def test_noise_that_is_annealed_away_is_no_symptom():
    assert symptoms(GOOD | {"noise_to_signal": 0.5}, config(noise_anneal_steps=5)) == []
