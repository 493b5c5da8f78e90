"""What a config.json says, as settings."""

from pathlib import Path

from dictionary_learning_ext.run_folder.sae_folder import SAEFolder


def sae_of(trainer=None, **settings):
    content = {"trainer": {"dict_class": "X", **(trainer or {})}}
    run = {"run": {"settings": settings}} if settings else {}
    return SAEFolder("x", Path("x"), content | run)


def test_a_folder_of_upstreams_has_the_settings_of_its_trainer():
    upstreams = sae_of({"lr": 2e-4, "k": 8, "lm_name": "x", "steps": 10, "decay_start": 5})
    assert upstreams.settings == {"lr": 2e-4, "k": 8, "steps": 10, "decay_start": 5}


def test_a_folder_without_a_run_has_no_settings_of_its_own_and_may_name_its_seed():
    upstreams = sae_of({"lr": 2e-4, "seed": 3})
    assert upstreams.run_settings == {}
    assert upstreams.seeds == (3, None)
    assert sae_of(architecture="top_k", seed=1, data_seed=2).seeds == (1, 2)
