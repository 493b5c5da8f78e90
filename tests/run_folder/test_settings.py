"""What a config.json says, as settings."""

from dictionary_learning_ext.run_folder.settings import compared_settings, run_settings, seeds_of


def config(trainer=None, **settings):
    content = {"trainer": {"dict_class": "X", **(trainer or {})}}
    return content | ({"run": {"settings": settings}} if settings else {})


def test_a_folder_of_upstreams_has_the_settings_of_its_trainer():
    upstreams = config({"lr": 2e-4, "k": 8, "lm_name": "x", "steps": 10, "decay_start": 5})
    assert compared_settings(upstreams) == {"lr": 2e-4, "k": 8, "steps": 10, "decay_start": 5}


def test_a_folder_without_a_run_has_no_settings_of_its_own_and_may_name_its_seed():
    upstreams = config({"lr": 2e-4, "seed": 3})
    assert run_settings(upstreams) == {}
    assert seeds_of(upstreams) == (3, None)
    assert seeds_of(config(architecture="top_k", seed=1, data_seed=2)) == (1, 2)
