"""What the package asks of a dictionary of any class, and how ours are loaded."""

import math
from typing import Any

import pytest
import torch as t
from small_trainers import D, F, batch, built
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext import VariationalTopKAutoEncoder
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.dictionaries import HasPosterior, selects_top_k

OURS = [name for name, row in TRAINED.items() if row.is_ours]


def test_upstreams_have_no_posterior():
    assert not isinstance(built("top_k").ae, HasPosterior)


@pytest.mark.parametrize("architecture", ["vsae_top_k", "vsae", "vaease"])
def test_a_posteriors_kl_is_that_of_torch(architecture):
    sae: Any = built(architecture).ae
    assert isinstance(sae, HasPosterior)
    x = batch(0).view(4, 6, D)
    posterior = sae.posterior(x)
    assert posterior.kl.shape == (4, 6, F)
    std = posterior.std.expand(4, 6, F)
    prior = Normal(t.zeros(F), sae.prior_std.expand(F))
    expected = kl_divergence(Normal(posterior.mu, std), prior)
    assert t.allclose(posterior.kl, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", TRAINED)
def test_selects_top_k_is_of_those_that_keep_k_of_each_token(architecture):
    sae = built(architecture).ae
    assert selects_top_k(sae) == (
        architecture in ("vsae_top_k", "vsae", "vsae_as_published", "top_k", "probabilistic_top_k")
    )
    if selects_top_k(sae):
        values_BK = sae.encode(batch(0), return_topk=True)[1]
        assert values_BK.shape == (len(batch(0)), int(sae.k))


@pytest.mark.parametrize("scale", [0.0, -2.0, math.nan, math.inf])
@pytest.mark.parametrize("architecture", OURS)
def test_a_scale_that_is_not_positive_is_refused_and_changes_nothing(architecture, scale):
    sae = built(architecture).ae
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    with pytest.raises(ConfigError, match=f"scale={scale}: "):
        sae.scale_biases(scale)
    assert all(t.equal(value, before[name]) for name, value in sae.state_dict().items())


@pytest.mark.parametrize("architecture", ["vsae_top_k", "vaease"])
@pytest.mark.parametrize("shape", [(4, 9), (2, 3, 9)])
def test_activations_and_features_of_another_width_are_named(architecture, shape):
    sae = built(architecture).ae
    for call, width in ((sae.encode, D), (sae, D), (sae.decode, F)):
        with pytest.raises(ConfigError, match=rf"9\).*{width}"):
            call(t.zeros(shape))


def test_another_k_is_refused(tmp_path):
    t.save(VariationalTopKAutoEncoder(D, F, 4).state_dict(), tmp_path / "ae.pt")
    with pytest.raises(ConfigError, match=r"k=5: .*4.*ae\.pt"):
        VariationalTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt", k=5)
