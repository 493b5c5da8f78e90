"""An SAE's settings: defaults and checks."""

import dataclasses

import pytest

from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.errors import ConfigError


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_option_an_architecture_uses_is_filled_in_and_no_other(architecture):
    k = {} if "k" not in TRAINED[architecture].option_names else {"k": 8}
    resolved = SAEConfig(architecture=architecture, **k).resolve(500, 64)
    specific = {name for row in TRAINED.values() for name in row.option_names}
    optional = {"noise_anneal_steps", "k_anneal_steps", "log_var_init", "noise_to_signal"}
    for name in specific - optional:
        assert (getattr(resolved, name) is not None) == (
            name in TRAINED[architecture].option_names
        ), name
    assert resolved.warmup_steps == 50


@pytest.mark.parametrize(
    ("normalize", "architecture", "energy", "k"),
    [("sqrt_d", "vsae_top_k", 128, 16), ("unit", "vsae_top_k", 1, 16), ("sqrt_d", "vsae", 128, 64)],
)
def test_noise_to_signal_becomes_sigma_where_the_width_is_known(normalize, architecture, energy, k):
    """r = k sigma^2 / E||x||^2, which is D under sqrt_d and 1 under unit."""
    given = {"k": 16} if architecture == "vsae_top_k" else {}
    config = SAEConfig(architecture, dict_size=64, noise_to_signal=0.3, **given)
    resolved = config.resolve(100, 8)
    assert resolved.sigma is None
    sigma = resolved.with_sigma(128, normalize).sigma
    assert k * sigma**2 / energy == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"noise_to_signal": 0.1, "sigma": 0.3}, "leave out --sigma or --noise-to-signal"),
        ({"noise_to_signal": 0.1, "posterior": "point"}, "posterior point does not use it"),
        ({"noise_to_signal": 0.1, "posterior": "learned"}, "posterior learned does not use it"),
        ({"noise_to_signal": 0.1, "architecture": "top_k"}, "architecture top_k does not use it"),
        ({"noise_to_signal": 0.0}, "noise_to_signal=0.0: expected a number above 0"),
        ({"noise_to_signal": float("inf")}, "noise_to_signal=inf: expected a finite number"),
    ],
    ids=str,
)
def test_noise_to_signal_beside_what_it_does_not_go_with(given, named):
    with pytest.raises(ConfigError, match=named):
        SAEConfig(**given).resolve(100, 8)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_not_every_generator_takes_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed={seed}: expected 0 to 4294967295"):
        SAEConfig(seed=seed).resolve(100, 8)


def test_noise_to_signal_needs_activations_of_a_known_scale():
    resolved = SAEConfig(noise_to_signal=0.1).resolve(100, 8)
    with pytest.raises(ConfigError, match=r"normalize='none'.*--normalize sqrt_d or unit"):
        resolved.with_sigma(128, "none")


def test_an_option_of_two_architectures_has_both_defaults_in_its_help():
    """The help text is made from the groups of options: no second place says a default."""
    (option,) = (each for each in dataclasses.fields(SAEConfig) if each.name == "log_var_init")
    shown = option.metadata["help"]
    assert "Default: -2.0. vaease: The initial log-variance" in shown
    assert "Default: -0.5." in shown


@pytest.mark.parametrize("architecture", TRAINED)
def test_an_option_the_architecture_does_not_use_is_an_error(architecture):
    values = {"k": 4, "beta": 0.0, "l1_penalty": 0.1, "target_l0": 5.0, "group_fractions": (1.0,)}
    for name, value in values.items():
        config = dataclasses.replace(SAEConfig(architecture=architecture), **{name: value})
        if name in TRAINED[architecture].option_names:
            config.resolve(500, 64)
        else:
            flag = "--" + name.replace("_", "-")
            with pytest.raises(ConfigError, match=f"{architecture} does not use it.*{flag}"):
                config.resolve(500, 64)


@pytest.mark.parametrize(
    ("posterior", "given"),
    [
        ("learned", {"sigma": 1.0}),
        ("fixed", {"log_var_init": -2.0}),
        ("point", {"sigma": 0.5}),
        ("point", {"noise_on": "values"}),
        ("point", {"noise_anneal_steps": 5}),
    ],
)
def test_an_option_the_posterior_does_not_use_is_an_error(posterior, given):
    config = SAEConfig(posterior=posterior, **given)
    with pytest.raises(ConfigError, match=f"posterior {posterior} does not use it"):
        config.resolve(500, 64)
    assert config.changed_to(None, posterior).resolve(500, 64).posterior == posterior


def test_an_option_the_schedule_does_not_use_is_an_error():
    config = SAEConfig(kl_schedule="constant", kl_warmup_steps=7)
    message = "kl_warmup_steps=7: kl_schedule constant does not use it; leave out --kl-warmup-steps"
    with pytest.raises(ConfigError, match=message):
        config.resolve(500, 64)
    changed = SAEConfig(kl_warmup_steps=7).changed_to(None, None, "constant")
    resolved = changed.resolve(500, 64)
    assert resolved.kl_schedule == "constant"
    assert resolved.resolve(500, 64) == resolved, "what is resolved is accepted again"


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("kl_warmup_steps", "cosine"),
        ("noise_anneal_steps", "linear"),
        ("k_anneal_steps", "linear"),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(name, schedule):
    config = SAEConfig(kl_schedule=schedule, **{name: 101})
    assert getattr(config.resolve(101, 8), name) == 101
    with pytest.raises(ConfigError, match=f"{name}=101: expected at most steps=100"):
        config.resolve(100, 8)


def test_the_purely_variational_saes_k_is_said_to_be_dict_size():
    with pytest.raises(
        ConfigError, match=r"k=16: architecture vsae does not use it.*its k is dict_"
    ):
        SAEConfig("vsae", k=16).resolve(100, 8)


def test_a_default_is_the_architectures_own():
    learned = SAEConfig(posterior="learned").resolve(100, 8)
    vaease = SAEConfig("vaease").resolve(100, 8)
    assert (learned.log_var_init, learned.gamma_init) == (-2.0, None)
    assert (vaease.log_var_init, vaease.gamma_init, vaease.active_gate) == (-0.5, 0.1, 0.05)


def test_a_given_zero_is_kept():
    resolved = SAEConfig(beta=0.0, auxk_alpha=0.0, warmup_steps=0).resolve(100, 8)
    assert (resolved.beta, resolved.auxk_alpha, resolved.warmup_steps) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"k": 2000}, "k=2000"),
        ({"k": 0}, "k=0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"sigma": "x"}, "sigma='x'"),
        ({"rectify": "yes"}, "rectify='yes': expected true or false"),
        ({"kl_schedule": "sine"}, "kl_schedule='sine'"),
        ({"warmup_steps": 100}, "warmup_steps=100"),
        ({"decay_start": 5}, "decay_start=5"),
        ({"decay_start": 100}, "decay_start=100"),
        ({"architecture": "topk"}, "architecture='topk'"),
        ({"posterior": "gauss"}, "posterior='gauss'"),
        ({"architecture": "matryoshka", "group_fractions": (0.5, 0.4)}, "group_fractions"),
        ({"architecture": "vaease", "log_var_init": 0.5}, "log_var_init=0.5"),
        ({"architecture": "vaease", "gamma_init": 0.0}, "gamma_init=0.0"),
        ({"architecture": "vaease", "active_gate": 1.0}, "active_gate=1.0"),
        ({"architecture": "jump_relu", "target_l0": -1.0}, "target_l0=-1.0"),
        ({"architecture": "relu", "sparsity_warmup_steps": 100}, "sparsity_warmup_steps=100"),
    ],
    ids=str,
)
def test_sae_settings_out_of_range_are_named(given, named):
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        SAEConfig(**given).resolve(100, 8)


def test_another_length_derives_defaults_again_and_keeps_the_share_of_other_schedules():
    anneal = {"noise_anneal_steps": 500, "k_anneal_steps": 250}
    sae = SAEConfig(warmup_steps=50, decay_start=750, **anneal, kl_warmup_steps=0)
    resolved = sae.resolve(1000, 8)
    shorter = resolved.for_steps(1000, 200, 8).resolve(200, 8)
    schedules = ("warmup_steps", "decay_start", *anneal, "kl_warmup_steps")
    assert [getattr(shorter, name) for name in schedules] == [10, 150, 100, 50, 0]
    assert shorter.dead_feature_threshold == 160
    assert resolved.for_steps(1000, 1000, 8).resolve(1000, 8) == resolved


def test_a_default_that_is_capped_stays_the_default_of_a_longer_run():
    resolved = SAEConfig().resolve(20_000, 8)
    assert resolved.warmup_steps == 1000
    assert resolved.for_steps(20_000, 200_000, 8).resolve(200_000, 8).warmup_steps == 1000


def test_a_run_of_one_step_has_no_room_for_a_decay():
    SAEConfig(decay_start=750, noise_anneal_steps=500, k_anneal_steps=9).for_steps(
        1000, 1, 8
    ).resolve(1, 8)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize(
    "given",
    [
        {"warmup_steps": 60, "decay_start": 100},
        {"warmup_steps": 900},
        {"architecture": "relu", "sparsity_warmup_steps": 90, "decay_start": 150},
        {"architecture": "relu", "decay_start": 250},
    ],
    ids=str,
)
def test_schedules_of_a_very_short_run_are_possible(steps, given):
    """A mistake that nobody typed would be said otherwise."""
    SAEConfig(**given).for_steps(1000, steps, 8).resolve(steps, 8)


def test_a_decay_after_the_warm_up_stays():
    given = SAEConfig(warmup_steps=60, decay_start=100)
    assert given.for_steps(1000, 20, 8).decay_start == 2
    assert given.for_steps(1000, 10, 8).decay_start is None


def test_an_sae_that_selects_all_features_takes_no_noise_on_the_selection():
    start = SAEConfig(noise_on="selection")
    assert start.changed_to("vsae", None).resolve(100, 8).noise_on == "both"
    assert start.changed_to("vsae_top_k", None).noise_on == "selection"
    values = SAEConfig(noise_on="values")
    assert values.changed_to("vsae", None).noise_on == "values"
