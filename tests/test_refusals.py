"""Wrong calls in Python: the error's class, and how its message starts or what it names.

In a table so that a new setting's refusals are a line each. Mistakes on the command line are in
tests/commands/test_refusals.py.
"""

import math
import re
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch as t

from dictionary_learning_ext import RunConfig, trainer_options
from dictionary_learning_ext.config.checks import _SCALE_LIMITS
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import TrainConfig, require_same
from dictionary_learning_ext.config.sae import (
    CONFIGS,
    PosteriorOptions,
    VAEaseConfig,
    VSAETopKConfig,
    sae_settings,
)
from dictionary_learning_ext.errors import ConfigError


def sae(architecture="vsae_top_k", **options):
    """Settings for a run of 100 steps."""
    return sae_settings(architecture, options).resolve(100)


def in_units(normalize):
    sae(noise_to_signal=0.1).require_units(normalize)


def options(**given):
    sizes = {"activation_dim": 8, "dict_size": 48, "k": 4, "steps": 40}
    return trainer_options(**sizes | given)


def updated(**given):
    return TrainConfig().with_settings(given, "a/config.json")


def resumed(**given):
    require_same(
        TrainConfig().resolved.to_dict(),
        updated(**given).resolved.to_dict(),
        "runs/a",
        advice="give {former}",
    )


REFUSED = {
    sae: [
        # names
        (dict(betta=1.0), "betta: no such option of vsae_top_k; did you mean 'beta'?"),
        (dict(architecture="relu", k=8), "k: relu does not use it; it uses sparsity_warmup_steps"),
        (dict(architecture="topk"), "architecture='topk': expected one of … did you mean 'top_k'?"),
        # types
        (dict(k="64"), "k='64': expected a whole number"),
        (dict(warmup=0.1), "warmup: no such option of vsae_top_k; did you mean 'warmup_steps'"),
        (dict(warmup_steps=0.5), "warmup_steps=0.5: expected a whole number"),
        # ranges
        (dict(k=2000), "k=2000: expected 1 to dict_size=512"),
        (dict(sigma=-1.0), "sigma=-1.0: expected above 0 (1e-18 to 1e+18)… for no noise"),
        (dict(kl_warmup_steps=200), "kl_warmup_steps=200: expected 0 to steps=100"),
        (dict(decay_start=5), "decay_start=5: expected between 10 and steps=100, or none"),
        (
            dict(noise_anneal_steps=0),
            "noise_anneal_steps=0: expected at least 1, or none… posterior='point'",
        ),
        (
            dict(architecture="relu", sparsity_warmup_steps=50, decay_start=50),
            "decay_start=50: expected between 50 and steps=100",
        ),
        (dict(architecture="matryoshka", group_fractions=(0.5, 0.4)), "… shares that sum to 1"),
        (
            dict(architecture="probabilistic_top_k", temperature_start=1e-4),
            "temperature_start=0.0001: expected between temperature_end=0.001 and 1e+06",
        ),
        # beside other options and the run
        (
            dict(noise_to_signal=0.1, sigma=0.3),
            "sigma=0.3 and … leave out sigma or noise_to_signal",
        ),
        (
            dict(kl_schedule="constant", kl_warmup_steps=7),
            "kl_warmup_steps=7: kl_schedule constant does not",
        ),
    ],
    in_units: [
        (
            dict(normalize="none"),
            "normalize='none': expected sqrt_d or unit, with noise_to_signal; … give sigma",
        ),
    ],
    RunConfig: [
        (dict(steps=0), "steps=0: expected at least 1"),
        (
            dict(eval_every=5, eval_tokens=0),
            "eval_every=5: expected eval_tokens above 0, as it measures on held-out tokens",
        ),
        (dict(hook="a,a"), "hook='a,a': expected different hook points separated by commas"),
        (dict(max_norm_multiple=1.0), "max_norm_multiple=1.0: expected above 1"),
        (dict(save_every="often"), "save_every='often': expected steps (e.g. 500), a time"),
        (
            dict(save_steps="often"),
            "save_steps='often': expected none, linear:N or log:N (N at least 1)",
        ),
        (dict(save_steps="100,9999999"), "save_steps='100,9999999': … steps below 8000"),
    ],
    options: [
        (dict(name="recomended"), "preset='recomended': expected one of recommended"),
        (dict(k=49), "k=49: expected between 1 and dict_size=48"),
        (dict(mean_squared_norm=0), "mean_squared_norm=0: expected above 0"),
    ],
    updated: [
        (dict(k="many"), "a/config.json: k='many': expected a whole number; correct it there"),
        (dict(betta=1), "a/config.json: unknown setting 'betta'; did you mean 'beta'?"),
    ],
    resumed: [
        (dict(data_seed=1), "runs/a: the run has data_seed=0, not 1; give data_seed=0"),
        (dict(k=8), "runs/a: the run has k=16, not 8; give k=16"),
    ],
    preset: [(dict(name="x"), "preset='x': expected one of recommended, paper")],
}
"""By call: what is given, and the message's start; … stands for anything."""
CALLS = [(call, *row) for call, rows in REFUSED.items() for row in rows]


@pytest.mark.parametrize(
    ("call", "given", "named"), CALLS, ids=[f"{each[0].__name__} {each[1]}" for each in CALLS]
)
def test_a_wrong_call_is_named(call, given, named):
    with pytest.raises(ConfigError, match=".*".join(map(re.escape, named.split("…")))) as raised:
        call(**given)
    said = str(raised.value)
    assert said.startswith(named.partition("…")[0])
    assert "\n" not in said


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=lambda cls: cls.__name__)
def test_a_number_is_finite(cls):
    hints = get_type_hints(cls)
    for name in (each.name for each in fields(cls) if hints[each.name] in (float, float | None)):
        for value in (math.inf, -math.inf, math.nan, "x", True):
            with pytest.raises(ConfigError, match=f"^{name}={value!r}: expected a finite number"):
                cls(**{name: value})


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (VSAETopKConfig, "sigma"),
        (PosteriorOptions, "prior_std"),
        (VAEaseConfig, "prior_std"),
        (VAEaseConfig, "gamma_init"),
    ],
)
def test_a_scale_whose_square_is_no_number_in_float32_is_refused(cls, name):
    for value in (1e-46, 1e-20, 1e20, 0.0, -1.0):
        with pytest.raises(ConfigError, match=re.escape(f"{name}={value}: expected above 0")):
            cls(**{name: value})
    for value in _SCALE_LIMITS:
        cls(**{name: value})
        square = t.tensor(value).square()
        assert square > 0
        assert square.isfinite()
        assert square.reciprocal().isfinite()
