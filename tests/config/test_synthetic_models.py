"""Synthetic models: which there are, and what a run on one has no use for."""

import json

import huggingface_hub
import pytest

from dictionary_learning_ext.commands.train import starting_point
from dictionary_learning_ext.config.names import automatic_name
from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.config.synthetic_models import (
    NO_HOOK,
    SYNTHETIC_MODELS,
    SyntheticSettings,
    is_synthetic,
    require_synthetic_run,
    settings_of_run,
    synthetic_settings,
)
from dictionary_learning_ext.errors import ConfigError

SMALL = "synthetic:small"


def test_a_name_is_a_row_of_the_table():
    assert synthetic_settings(SMALL) is SYNTHETIC_MODELS["small"]
    assert (SYNTHETIC_MODELS["small"].features, SYNTHETIC_MODELS["small"].width) == (1024, 128)
    assert is_synthetic(SMALL)
    assert not is_synthetic("runs/synthetic:small")


def test_a_forest_fits_into_the_features():
    for settings in SYNTHETIC_MODELS.values():
        trees = settings.config["hierarchy"]
        levels = range(trees["max_depth"] + 1)
        in_a_tree = sum(trees["branching_factor"] ** level for level in levels)
        assert trees["total_root_nodes"] * in_a_tree < settings.features


def test_a_name_may_be_a_folder_or_a_repository_on_the_hub(tmp_path, monkeypatch):
    config = SYNTHETIC_MODELS["small"].config | {"hidden_dim": 16, "num_features": 200}
    (tmp_path / "synthetic_model_config.json").write_text(json.dumps(config))
    expected = SyntheticSettings(config, folder=tmp_path)
    assert synthetic_settings(f"synthetic:{tmp_path}") == expected
    assert (expected.width, expected.features, expected.noise_std) == (16, 200, 0.0)

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path)
    )
    for _ in range(2):
        assert synthetic_settings("synthetic:owner/a-bench") == expected
    assert asked == ["owner/a-bench"]


def test_a_repository_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="'synthetic:owner/nothing': "):
        synthetic_settings("synthetic:owner/nothing")


def test_a_run_says_that_there_is_no_hook_point_and_no_text():
    run = RunConfig(**settings_of_run(SMALL))
    require_synthetic_run(run)
    assert (run.hook, run.data) == (NO_HOOK, SMALL)
    name = automatic_name(TrainConfig(SAEConfig(architecture="top_k", dict_size=8, k=2), run))
    assert name.startswith("top_k_k2_F8_synthetic-small_"), name


def test_the_command_takes_its_defaults_from_the_model():
    run = starting_point({"model": SMALL, "steps": "10"}).run
    assert {name: getattr(run, name) for name in settings_of_run(SMALL)} == settings_of_run(SMALL)
    assert run.steps == 10
    assert starting_point({}).run.max_norm_multiple is not None
