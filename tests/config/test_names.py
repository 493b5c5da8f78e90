"""Automatic names of run folders: short, and different where a result is."""

import re

import pytest

from dictionary_learning_ext.config.names import (
    LONGEST_IN_SWEEP,
    automatic_name,
    is_automatic,
    names_in_sweep,
)
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import CONFIGS

CHANGES = [
    {},
    {"seed": 1},
    {"beta": 0.5},
    {"posterior": "learned", "log_var_init": -1.0},
    {"posterior": "learned", "log_var_init": -3.0},
    {"auxk_alpha": 0.0},
    {"hook": "blocks.1.hook_resid_post"},
    {"steps": 7},
    {"data_seed": 1},
    {"data_seed": 2},
]


def test_names_tell_all_settings_apart_that_change_the_result():
    names = {automatic_name(TrainConfig().with_settings(change, "x")) for change in CHANGES}
    assert len(names) == len(CHANGES)
    elsewhere = TrainConfig().with_settings({"device": "cpu", "log_steps": 1, "save_dir": "x"}, "x")
    assert automatic_name(elsewhere) in names


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_name_says_the_architecture_k_f_and_seed(architecture):
    start = TrainConfig().with_settings({"architecture": architecture}, "x")
    change = {"dict_size": 131_072, "seed": 12}
    k = {"k": 512} if "k" in start.sae.to_dict() else {}
    name = automatic_name(start.with_settings(change | k, "x"))
    sizes = "_k512_F131072_seed12_" if k else "_F131072_seed12_"
    assert re.fullmatch(f"[a-z_]+{sizes}[0-9a-f]{{6}}", name)
    assert is_automatic(name)


def named_in_sweep(*assignments):
    """The names of runs, which may say `seed` for their data seed."""
    values = [
        one | ({"data_seed": one["seed"]} if "data_seed" in one else {}) for one in assignments
    ]
    configs = [preset("recommended").with_settings(each, "x") for each in values]
    return names_in_sweep(assignments, configs)


@pytest.mark.parametrize(
    ("assignments", "names"),
    [
        ([{"k": 8, "lr": 0.001}, {"k": 16, "lr": 0.002}], ["vsae_k8_lr0.001", "vsae_k16_lr0.002"]),
        ([{"beta": 0.1, "k": 8}, {"beta": 0.1, "k": 16}], ["vsae_k8", "vsae_k16"]),
        (
            [{"hook": "blocks.0.hook_resid_post"}, {"hook": "blocks.3.hook_mlp_out"}],
            ["vsae_blocks.0.hook_resid_post", "vsae_blocks.3.hook_mlp_out"],
        ),
        ([{"data": "/home/me/my text"}, {"data": "b/"}], ["vsae_datamy-text", "vsae_datab"]),
        (
            [
                {"architecture": name, "dict_size": 64 * n}
                for n, name in enumerate(("relu", "top_k"), 1)
            ],
            ["relu_dict_size64", "top_k_dict_size128"],
        ),
        ([{"seed": seed, "data_seed": "seed"} for seed in (1, 2)], ["vsae_seed1", "vsae_seed2"]),
        ([{"k": 8, "log_steps": 1}, {"k": 16, "log_steps": 2}], ["vsae_k8", "vsae_k16"]),
        ([{}], ["vsae"]),
    ],
)
def test_the_names_of_a_sweep_say_what_differs_in_it(assignments, names):
    assert named_in_sweep(*assignments) == names


def test_a_hash_tells_runs_of_a_sweep_apart_where_the_settings_in_their_names_do_not():
    near, nearer, far = named_in_sweep({"lr": 0.0010001}, {"lr": 0.0010002}, {"lr": 0.002})
    assert far == "vsae_lr0.002"
    assert near != nearer
    assert is_automatic(near)
    assert is_automatic(nearer)
    same, again, _ = named_in_sweep({"k": 8}, {"k": 8}, {"k": 16})
    assert same == again


def test_long_names_of_a_sweep_differ():
    many = ("lr", "beta", "prior_std", "adam_beta1", "auxk_alpha", "max_norm_multiple")
    change = {name: 1.2345e-5 for name in many if name in TrainConfig().to_dict()}
    change |= {"max_norm_multiple": 12.345, "data": "a" * LONGEST_IN_SWEEP}
    first, second = named_in_sweep(change, {name: 2 * value for name, value in change.items()})
    assert first != second
    assert max(len(first), len(second)) <= LONGEST_IN_SWEEP


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trainer_0", True),
        ("top_k", False),
        ("vsae_paper", False),
        ("my_decade", False),
        ("vsae_k8_seed0", False),
    ],
)
def test_which_names_nobody_chose(name, expected):
    assert is_automatic(name) == expected


def test_a_run_that_is_typed_again_has_the_name_that_it_had():
    names = [automatic_name(preset(name)) for name in ("recommended", "paper")]
    assert names == ["vsae_k16_F512_seed0_a2b565", "vsae_k64_F2048_seed0_209b41"]
