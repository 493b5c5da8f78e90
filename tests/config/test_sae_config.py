"""Settings: defaults, checks, presets and their files."""

import contextlib
import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dictionary_learning_ext.config.presets import PRESETS, preset, quickstart
from dictionary_learning_ext.config.run_config import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae_config import USES, SAEConfig
from dictionary_learning_ext.errors import ConfigError, UserError


@pytest.mark.parametrize("architecture", USES)
def test_every_option_an_architecture_uses_is_filled_in_and_no_other(architecture):
    k = {} if "k" not in USES[architecture] else {"k": 8}
    resolved = SAEConfig(architecture=architecture, **k).resolve(500, 64)
    specific = {name for names in USES.values() for name in names}
    optional = {"noise_anneal_steps", "log_var_init"}
    for name in specific - optional:
        assert (getattr(resolved, name) is not None) == (name in USES[architecture]), name
    assert resolved.warmup_steps == 50


@pytest.mark.parametrize("architecture", USES)
def test_an_option_the_architecture_does_not_use_is_an_error(architecture):
    values = {"k": 4, "beta": 0.0, "l1_penalty": 0.1, "target_l0": 5.0, "group_fractions": (1.0,)}
    for name, value in values.items():
        config = dataclasses.replace(SAEConfig(architecture=architecture), **{name: value})
        if name in USES[architecture]:
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


def test_a_default_is_the_architectures_own():
    learned = SAEConfig(posterior="learned").resolve(100, 8)
    vaease = SAEConfig("vaease").resolve(100, 8)
    assert (learned.log_var_init, learned.gamma_init) == (-2.0, None)
    assert (vaease.log_var_init, vaease.gamma_init, vaease.active_gate) == (-0.5, 0.1, 0.05)


def test_a_given_zero_is_kept():
    resolved = SAEConfig(beta=0.0, auxk_alpha=0.0, free_bits=0.0, warmup_steps=0).resolve(100, 8)
    assert (resolved.beta, resolved.auxk_alpha, resolved.warmup_steps) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"k": 2000}, "k=2000"),
        ({"k": 0}, "k=0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"lr": 0.0}, "lr=0.0"),
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


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"normalize": "max"},
        {"text_packing": "cut"},
        {"dtype": "float16"},
        {"wandb": "on"},
        {"eval_tokens": -1},
        {"max_norm_multiple": 0.5},
        {"save_steps": "often"},
        {"save_steps": "100,9999999"},
        {"save_steps": "linear:x"},
    ],
    ids=str,
)
def test_run_settings_out_of_range_are_named(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        RunConfig(**given)


def test_save_points():
    def points(save_steps):
        return RunConfig(steps=1000, save_steps=save_steps).save_points()

    assert points("none") == []
    assert points("linear:4") == [200, 400, 600, 800]
    assert points("log:2") == [10, 100]
    assert points("7,3") == [3, 7]


def test_presets_are_whole_and_keep_to_the_paper():
    for name in PRESETS:
        config = preset(name)
        config.sae.resolve(config.run.steps, config.run.batch_size)
    paper = preset("paper")
    assert (paper.run.steps, paper.run.dtype, paper.sae.dict_size) == (20_000, "bfloat16", 2048)
    as_run = preset("paper-as-run")
    assert (as_run.sae.posterior, as_run.sae.rectify, as_run.sae.lr) == ("point", True, 8e-4)
    assert (as_run.run.normalize, as_run.run.batch_size) == ("unit", 192)


def test_a_presets_schedules_scale_with_its_steps():
    own, longer = preset("recommended"), preset("recommended", steps=4000)
    assert (own.sae.decay_start, own.sae.noise_anneal_steps, own.run.steps) == (750, 500, 1000)
    assert (longer.sae.decay_start, longer.sae.noise_anneal_steps, longer.run.steps) == (
        3000,
        2000,
        4000,
    )
    assert preset("paper", steps=7).run.steps == 7


def test_the_quickstarts_saes_differ_only_in_the_posterior():
    saes = [sae.resolve(100, 8) for sae in quickstart(steps=100, seed=3).values()]
    differ = {f.name for f in dataclasses.fields(SAEConfig)} - {
        f.name
        for f in dataclasses.fields(SAEConfig)
        if len({getattr(sae, f.name) for sae in saes}) == 1
    }
    variational = set(USES["vsae_top_k"]) - set(USES["top_k"])
    assert differ <= {"architecture"} | variational


def test_unknown_settings_get_the_closest_name():
    with pytest.raises(ConfigError, match="unknown setting 'betta'; did you mean 'beta'"):
        TrainConfig().updated({"betta": 1}, "x")


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(SAEConfig)]),
        st.none() | st.integers(-5, 50) | st.floats(-2, 2) | st.sampled_from(["vsae", "point", ""]),
        max_size=4,
    )
)
def test_whatever_is_given_only_named_errors_come_out(values):
    with contextlib.suppress(UserError):
        TrainConfig().updated(values, "x").sae.resolve(100, 8)


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", "64"), ("k", 6.5), ("k", True), ("beta", "1e-4"), ("rectify", 1), ("seed", None)],
)
def test_a_value_of_another_type_is_named(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value!r}: expected"):
        TrainConfig().updated({name: value}, "x")


def test_names_tell_all_settings_apart_that_change_the_result():
    changes = [
        {},
        {"seed": 1},
        {"beta": 0.5},
        {"posterior": "learned", "log_var_init": -1.0},
        {"posterior": "learned", "log_var_init": -3.0},
        {"auxk_alpha": 0.0},
        {"hook": "blocks.1.hook_resid_post"},
        {"steps": 7},
    ]
    names = {TrainConfig().updated(change, "x").name for change in changes}
    assert len(names) == len(changes)
    assert TrainConfig().updated({"log_steps": 1, "save_dir": "x"}, "x").name in names
    assert all("/" not in name for name in names)


def test_importing_the_configuration_imports_no_torch():
    code = "import sys, dictionary_learning_ext.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
