"""Automatic names of run folders: short, and different where a result is."""

import pytest

from dictionary_learning_ext.config.names import LONGEST, automatic_name, is_automatic
from dictionary_learning_ext.config.presets import PRESETS, preset
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
    {"k_anneal_steps": 7},
]


def test_names_tell_all_settings_apart_that_change_the_result():
    names = {automatic_name(TrainConfig().updated(change, "x")) for change in CHANGES}
    assert len(names) == len(CHANGES)
    elsewhere = TrainConfig().updated({"log_steps": 1, "save_dir": "x"}, "x")
    assert automatic_name(elsewhere) in names


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_longest_names_fit_and_say_the_architecture_k_f_and_seed(architecture):
    change = {
        "architecture": architecture,
        "dict_size": 131_072,
        "lr": 0.000123456,
        "seed": 12,
        "data_seed": 345,
        "hook": "blocks.11.hook_mlp_out",
        "model": "/some/where/a-language-model-with-a-long-name",
        "data": "/home/me/my text, which has a long name.txt",
        "steps": 123_456,
    }
    start = preset("recommended").updated({"architecture": architecture}, "x")
    k = {"k": 512} if start.sae.to_flat()["k"] is not None else {}
    name = automatic_name(start.updated(change | k, "x"))
    assert len(name) <= LONGEST, name
    assert is_automatic(name)
    assert "_F131072_" in name
    assert "_seed12_" in name
    assert ("_k512_" in name) == bool(k)
    assert "/" not in name


def named(change):
    return automatic_name(preset("recommended").updated(change, "x")).rpartition("_")[0]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "vsae_k16_F512_seed0"),
        ({"beta": 0.1}, "vsae_k16_F512_beta0.1_seed0"),
        ({"hook": "blocks.2.hook_resid_post", "k": 8}, "vsae_k8_F512_b2_seed0"),
        ({"lr": 0.0005, "seed": 3}, "vsae_k16_F512_lr0.0005_seed3"),
        ({"data_seed": 3}, "vsae_k16_F512_data-seed3_seed0"),
        ({"data": "/home/me/my text"}, "vsae_k16_F512_my-text_seed0"),
        ({"architecture": "top_k"}, "top_k_k16_F512_seed0"),
    ],
)
def test_a_name_has_what_differs_from_the_recommended_preset(change, name):
    assert named(change) == name


def test_a_run_has_one_name_on_all_devices_of_a_kind():
    one, other, cpu = (
        automatic_name(TrainConfig().updated({"device": device}, "x"))
        for device in ("cuda:0", "cuda:1", "cpu")
    )
    assert one == other != cpu


def test_schedules_of_the_same_share_of_a_run_do_not_count_as_different():
    longer = automatic_name(preset("recommended", steps=4000))
    assert longer.startswith("vsae_k16_F512_steps4000_seed0_")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_readable_name(name):
    assert automatic_name(preset(name)).startswith("vsae_k")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trainer_0", True),
        ("vsae_top_k_k16_F512_fixed_selection_beta0.03_seed0_344f4b", True),
        ("vsae_top_k_k16_F512_seed0_blocks.2.hook_resid_post_my-text.txt_344f4b", True),
        ("top_k", False),
        ("vsae_paper", False),
        ("exp_240115", False),
        ("my_decade", False),
        ("vsae_facade", False),
    ],
)
def test_which_names_nobody_chose(name, expected):
    assert is_automatic(name) == expected
