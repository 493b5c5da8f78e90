"""What a config.json says, as settings."""

import pytest

from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder.settings import own_settings, seeds_of, settings_of


def config(trainer=None, **settings):
    content = {"trainer": {"dict_class": "X", **(trainer or {})}}
    return content | ({"run": {"settings": settings}} if settings else {})


def test_a_folder_of_upstreams_has_the_settings_of_its_trainer():
    upstreams = config({"lr": 2e-4, "k": 8, "lm_name": "x", "steps": 10, "decay_start": 5})
    assert settings_of(upstreams) == {"lr": 2e-4, "k": 8, "steps": 10, "decay_start": 5}


def test_settings_of_version_0_3_are_read_as_todays():
    """It wrote schedules as shares of the run, the options of all architectures, and sigma beside what gave it."""
    shared = {"steps": 4000, "lr": 1e-3, "seed": 0, "k": 16, "dict_size": 512, "init_from": None}
    shares = {"warmup": 0.1, "decay_start": 0.75, "kl_warmup": None, "noise_anneal": 0.5}
    vsae = shared | shares | {"architecture": "vsae_top_k", "posterior": "fixed"}
    vsae |= {"noise_to_signal": 0.3, "sigma": 3.1, "survival": None, "group_fractions": None}
    read = settings_of(config(**vsae))
    counts = {"warmup_steps": 400, "decay_start": 3000, "noise_anneal_steps": 2000}
    assert read.items() >= (counts | {"noise_to_signal": 0.3}).items()
    assert not read.keys() & {"sigma", "group_fractions", "kl_warmup", "kl_warmup_steps"}
    resolved = TrainConfig().with_settings(read, "x").resolved
    assert (resolved.sae.noise, resolved.sae.kl_warmup_steps) == (("noise_to_signal", 0.3), 400)
    light = settings_of(config(**vsae | {"noise_to_signal": None, "sigma": None, "survival": 0.6}))
    assert light["survival"] == 0.6
    with pytest.raises(ConfigError, match="removed: give --noise-to-signal"):
        TrainConfig().with_settings(light, "x")
    top_k = shared | shares | {"architecture": "top_k", "posterior": None, "beta": None}
    assert not settings_of(config(**top_k)).keys() & {"posterior", "beta", "noise_anneal_steps"}


def test_a_folder_without_a_run_has_no_settings_of_its_own_and_may_name_its_seed():
    upstreams = config({"lr": 2e-4, "seed": 3})
    assert own_settings(upstreams) == {}
    assert seeds_of(upstreams) == (3, None)
    assert seeds_of(config(architecture="top_k", seed=1, data_seed=2)) == (1, 2)
