"""What changes in a trainer is taken out and put back."""

import pytest
import torch as t
from interrupted_runs import assert_equal, sae_of
from small_trainers import batch, built

from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.run_folder.resume_points import load_point, save_point
from dictionary_learning_ext.trainers.state import load_trainer_state, trainer_state
from dictionary_learning_ext.trainers.upstream import build_trainer


def test_a_trainers_state_survives_the_disk_and_one_of_another_trainer_is_refused(tmp_path):
    def small(architecture, seed):
        sae = sae_of(architecture, seed=seed).resolve(100, 8)
        return build_trainer(
            sae,
            steps=100,
            activation_dim=16,
            layer=0,
            lm_name="tiny",
            hook="h",
            device="cpu",
            dtype="float32",
            name="x",
        )

    one, other = small("vsae_top_k", 0), small("vsae_top_k", 1)
    batches = t.randn(8, 8, 16, generator=t.Generator().manual_seed(0))
    for step, x_BD in enumerate(batches[:5]):
        one.update(step, x_BD)
    save_point(tmp_path, 5, trainer_state(one), {"anything": [1, None, "x"]})
    point = load_point(tmp_path, 5)
    assert point.run == {"anything": [1, None, "x"]}
    point.trainer["attributes"]["learns_prior"] = False  # as in points with the option `prior`
    load_trainer_state(other, point.trainer)
    for step, x_BD in enumerate(batches[5:], start=5):
        one.update(step, x_BD)
        other.update(step, x_BD)
    assert_equal(trainer_state(one), trainer_state(other))
    with pytest.raises(CheckpointError, match="to another trainer than TopKTrainer"):
        load_trainer_state(small("top_k", 0).state(), point.trainer)
    del point.trainer["attributes"]["noise_stream"]  # as before noise was compiled
    with pytest.raises(
        CheckpointError, match=r"noise_stream=None, not 2.*; finish the run with that version"
    ):
        load_trainer_state(other, point.trainer)


@pytest.mark.parametrize("architecture", ["vsae_top_k", "vaease", "probabilistic_top_k"])
def test_what_draws_no_compiled_noise_resumes_from_earlier_versions(architecture):
    options = {"posterior": "point"} if architecture == "vsae_top_k" else {}
    state = trainer_state(built(architecture, **options))
    assert "noise_stream" not in state["attributes"]
    load_trainer_state(built(architecture, **options), state)


def test_a_state_whose_optimizer_has_other_parameters_is_refused():
    trainer = built("vsae_top_k")
    trainer.update(0, batch(0))
    state = trainer_state(trainer)
    state["optimizer"]["param_groups"][0]["params"].pop()
    with pytest.raises(CheckpointError, match="to another trainer than VariationalTopKTrainer"):
        load_trainer_state(built("vsae_top_k"), state)
