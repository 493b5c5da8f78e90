"""What changes in a trainer is taken out and put back. test_base.py takes it through the disk."""

import pytest
from small_trainers import batch, built

from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.trainers.state import load_trainer_state, trainer_state


@pytest.fixture
def state():
    trainer = built("vsae_top_k")
    trainer.update(0, batch(0))
    return trainer_state(trainer)


def test_a_point_of_before_an_option_was_removed_is_taken(state):
    state["attributes"]["learns_prior"] = False
    load_trainer_state(built("vsae_top_k", seed=1), state)


@pytest.mark.parametrize("architecture", ["vsae_top_k", "vaease", "probabilistic_top_k"])
def test_what_draws_no_compiled_noise_resumes_from_earlier_versions(architecture):
    options = {"posterior": "point"} if architecture == "vsae_top_k" else {}
    state = trainer_state(built(architecture, **options))
    assert "noise_stream" not in state["attributes"]
    load_trainer_state(built(architecture, **options), state)


def test_a_state_with_the_noise_of_an_earlier_version_is_refused(state):
    state["attributes"].pop("noise_stream")
    message = r"noise_stream=None, not 2.*; finish the run with that version"
    with pytest.raises(CheckpointError, match=message):
        load_trainer_state(built("vsae_top_k"), state)
