"""A start from the data: which directions are drawn, and what of a trainer starts from them."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from small_trainers import D, F, K, assert_same, built, weights_of

from dictionary_learning_ext import VariationalTopKTrainer, trainer_options
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.data_start import start_from_data, token_directions
from dictionary_learning_ext.trainers.dictionaries import weights_by_feature
from dictionary_learning_ext.trainers.parts import Part

KINDS = [(name, {}) for name in TRAINED] + [("vsae_top_k", {"posterior": "learned"})]


def drawn(x_ND, count=F, seed=0, **options):
    return token_directions(x_ND, count, t.Generator().manual_seed(seed), **options)


@pytest.fixture
def fill():
    """Tokens in clusters, around a mean that is far from 0."""
    generator = t.Generator().manual_seed(0)
    centres = t.randn(40, D, generator=generator)
    return 5 + centres[:, None].add(0.3 * t.randn(40, 30, D, generator=generator)).flatten(0, 1)


def cosines_with(x_ND, found_FD):
    centred = x_ND.double() - x_ND.double().mean(0)
    return found_FD.double() @ t.nn.functional.normalize(centred, dim=1).T


@pytest.mark.parametrize("twins", [None, 0.7])
def test_each_direction_is_that_of_another_token(fill, twins):
    found = drawn(fill, twins=twins)
    nearest, tokens = cosines_with(fill, found).max(1)
    t.testing.assert_close(nearest, t.ones_like(nearest))
    assert len(set(tokens.tolist())) == F == len(found)
    t.testing.assert_close(found.norm(dim=1), t.ones(F))
    largest = (found @ found.T - 2 * t.eye(F)).max()
    assert (largest < 0.7) == (twins is not None)


def test_the_seed_alone_decides_and_units_do_not_matter(fill):
    found = drawn(fill, twins=0.7)
    t.testing.assert_close(drawn(1000 * fill, twins=0.7), found)
    assert not t.equal(drawn(fill, seed=1, twins=0.7), found)


def test_every_token_without_a_twin_is_found_before_it_is_said_that_there_are_too_few(fill):
    found = drawn(fill, count=200, twins=0.7)
    assert F < len(found) < 200
    assert (cosines_with(fill, found).max(0).values >= 0.7 - 1e-6).all()
    constant = t.ones(10, D)
    assert len(drawn(constant)) == 0, "the mean has no direction"


@pytest.mark.parametrize(("architecture", "options"), KINDS, ids=str)
def test_encoder_and_decoder_start_there_and_the_rest_as_ever(architecture, options, fill):
    at_random = built(architecture, seed=3, **options)
    trainer = built(architecture, seed=3, first_fill=fill, **options)
    found = drawn(fill, seed=3, twins=0.7)
    for own, former in zip(*map(weights_by_feature, (trainer.ae, at_random.ae)), strict=True):
        norms = former.norm(dim=1, keepdim=True)
        t.testing.assert_close(own, found * norms)
    was, now = weights_of(at_random), weights_of(trainer)
    changed = [name for name in was if not t.equal(was[name], now[name])]
    assert len(changed) == 2, changed
    trainer.update(0, fill[:64])


def test_the_features_that_are_left_start_at_random_and_it_is_said(fill, caplog):
    few = fill[:12]
    with caplog.at_level(logging.WARNING):
        trainer = built("top_k", first_fill=few)
    n = len(drawn(few, twins=0.7))
    assert 0 < n < F
    assert str(F - n) in caplog.text
    own, former = (weights_by_feature(each.ae) for each in (trainer, built("top_k")))
    for one, other in zip(own, former, strict=True):
        assert t.equal(one[n:], other[n:])
        assert not t.isclose(one[:n], other[:n]).all(1).any()


def test_the_parts_of_a_split_dictionary_share_out_the_whole_ones(fill):
    class Half(Part):
        def __init__(self, own):
            self.own_features = own

        def features(self, dict_size):
            return self.own_features

    halves = []
    for own in (slice(0, F // 2), slice(F // 2, F)):
        half = SimpleNamespace(part=Half(own), ae=AutoEncoderTopK(D, F // 2, K))
        start_from_data(half, fill, F, 0)
        halves.append(half.ae.encoder.weight)
    t.testing.assert_close(t.cat(halves), drawn(fill, twins=0.7))


def test_upstreams_loop_hands_over_the_first_fill(fill):
    sizes = {"activation_dim": D, "dict_size": F, "k": K, "steps": 50}
    where = {"layer": 0, "lm_name": "tiny", "device": "cpu", "seed": 3}
    given = trainer_options("recommended", **sizes, first_fill=fill)
    trainer = VariationalTopKTrainer(**given, **where)
    t.testing.assert_close(trainer.ae.encoder.weight.data, drawn(fill, seed=3, twins=0.7))
    at_random = VariationalTopKTrainer(**trainer_options("recommended", **sizes), **where)
    upstreams = built("top_k", seed=3)
    assert_same(at_random.ae.encoder.weight.data, upstreams.ae.encoder.weight.data)


def test_it_is_refused_beside_weights_to_start_from():
    given = VSAETopKConfig(start="data", init_from="runs/x")
    with pytest.raises(ConfigError, match="start='data': init_from"):
        given.resolve(50)
    assert replace(given, start="random").resolve(50).start == "random"
