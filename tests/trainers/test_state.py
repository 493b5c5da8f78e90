"""What changes in a trainer is taken out and put back. test_base.py takes it through the disk."""

from small_trainers import batch, built

from dictionary_learning_ext.trainers.state import load_trainer_state, trainer_state


def test_a_point_of_before_an_attribute_was_removed_is_taken():
    trainer = built("vsae_top_k")
    trainer.update(0, batch(0))
    state = trainer_state(trainer)
    state["attributes"]["learns_prior"] = False
    load_trainer_state(built("vsae_top_k", seed=1), state)
