"""What a config.json says, as settings."""

from dictionary_learning_ext.run_folder.settings import own_settings, seeds_of, settings_of


def config(trainer=None, **settings):
    content = {"trainer": {"dict_class": "X", **(trainer or {})}}
    return content | ({"run": {"settings": settings}} if settings else {})


def test_what_was_left_to_the_trainer_is_what_it_chose():
    assert settings_of(config({"lr": 2e-4}, architecture="top_k", lr=None))["lr"] == 2e-4
    assert settings_of(config({"lr": 2e-4}, architecture="top_k", lr=1e-3))["lr"] == 1e-3
    upstreams = config({"lr": 2e-4, "k": 8, "lm_name": "x", "steps": 10, "decay_start": 5})
    assert settings_of(upstreams) == {"lr": 2e-4, "k": 8, "steps": 10, "decay_start": 0.5}


def test_an_option_that_an_sae_does_not_use_is_none_of_its_settings():
    vsae = config(architecture="vsae_top_k", posterior="fixed", sigma=1.0, noise_anneal=None)
    point = config(architecture="vsae_top_k", posterior="point", sigma=None)
    top_k = config(architecture="top_k", posterior=None, sigma=None, noise_anneal=None)
    assert {"sigma", "noise_anneal"} <= settings_of(vsae).keys()
    assert "sigma" not in settings_of(point)
    assert not {"posterior", "sigma", "noise_anneal"} & settings_of(top_k).keys()


def test_a_folder_without_a_run_has_no_settings_of_its_own_and_may_name_its_seed():
    upstreams = config({"lr": 2e-4, "seed": 3})
    assert own_settings(upstreams) == {}
    assert seeds_of(upstreams) == (3, None)
    assert seeds_of(config(architecture="top_k", seed=1, data_seed=2)) == (1, 2)
