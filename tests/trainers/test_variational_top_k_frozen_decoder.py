"""freeze_decoder: the encoder is trained, the decoder's random directions are not."""

import copy

import pytest
import torch as t
from small_trainers import D, F, batch, built

from dictionary_learning_ext.trainers.state import load_trainer_state, trainer_state

KINDS = [{"posterior": "point", "rectify": True, "beta": 0.0}, {"sigma": 0.1}]


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.ae.state_dict().items()}


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_only_the_decoder_stays(options):
    trainer = built("vsae_top_k", seed=0, freeze_decoder=True, **options)
    start = weights_of(trainer)
    for step in range(5):
        trainer.update(step, batch(step))
    now = weights_of(trainer)
    assert t.equal(now["decoder.weight"], start["decoder.weight"])
    assert trainer.ae.decoder.weight.grad is None
    for name in ("encoder.weight", "encoder.bias", "b_dec"):
        assert not t.allclose(now[name], start[name]), name


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_first_step_is_the_ordinary_one_less_the_decoders(options):
    """Adam's first step does not depend on the gradient's scale, so that clipping changes nothing."""
    frozen, ordinary = (
        built("vsae_top_k", seed=0, freeze_decoder=frozen, auxk_alpha=0.0, lr=1e-3, **options)
        for frozen in (True, False)
    )
    x = batch(0)
    for trainer in (frozen, ordinary):
        trainer.update(0, x)
    ours, theirs = weights_of(frozen), weights_of(ordinary)
    assert not t.equal(ours["decoder.weight"], theirs["decoder.weight"])
    for name in ("encoder.weight", "encoder.bias", "b_dec"):
        assert t.allclose(ours[name], theirs[name], atol=2e-6), name


def test_it_resumes_to_the_bit():
    whole = built("vsae_top_k", seed=0, freeze_decoder=True)
    for step in range(6):
        if step == 3:
            point = copy.deepcopy(trainer_state(whole.state()))
        whole.update(step, batch(step))
    resumed = built("vsae_top_k", seed=0, freeze_decoder=True)
    load_trainer_state(resumed.state(), point)
    for step in range(3, 6):
        resumed.update(step, batch(step))
    assert weights_of(whole).keys() == weights_of(resumed).keys()
    for name, value in weights_of(whole).items():
        assert t.equal(value, weights_of(resumed)[name]), name
    assert whole.ae.decoder.weight.shape == (D, F)
