"""What the comparison of two commits trains."""

import pytest

from dictionary_learning_ext import SAEConfig
from dictionary_learning_ext.config.architectures import TRAINED
from experiments.robustness.same_numbers import OF_ARCHITECTURES, STEPS, settings


def test_every_architecture_is_trained_with_settings_that_are_allowed():
    found = settings()
    assert {own.get("architecture") for own in found.values()} >= TRAINED.keys()
    for own in found.values():
        SAEConfig(**own).resolve(STEPS, 512)


def test_an_architecture_without_settings_is_refused(monkeypatch):
    monkeypatch.delitem(OF_ARCHITECTURES, "probabilistic_top_k")
    with pytest.raises(
        RuntimeError, match="no settings in OF_ARCHITECTURES for probabilistic_top_k"
    ):
        settings()
