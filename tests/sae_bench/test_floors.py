"""The SAEs that any should beat, and the identity."""

import pytest
import torch as t
from bench_saes import D, F, K, place
from dictionary_learning.dictionary import AutoEncoder

from dictionary_learning_ext import VariationalTopKAutoEncoder

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench import adapter
from dictionary_learning_ext.sae_bench import adapter as floors


@pytest.fixture
def sae():
    """Its decoder's directions lie in a plane of the D dimensions, but for a little."""
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(D, F, K)
    weight_DF = t.randn(D, F) * t.tensor([10.0, 5.0] + [0.1] * (D - 2))[:, None]
    dictionary.decoder.weight.data = weight_DF / weight_DF.norm(dim=0)
    dictionary.b_dec.data = t.randn(D)
    return adapter.BenchSAE(dictionary.requires_grad_(False), **place())


def test_all_are_of_the_same_place_and_size(sae):
    found = floors.reference_saes(sae)
    assert list(found) == [f"random_F{F}", "random_spectrum", "identity"]
    x = t.randn(20, D)
    for floor in found.values():
        assert floor.cfg.hook_name == sae.cfg.hook_name
    for name in (f"random_F{F}", "random_spectrum"):
        assert found[name].W_dec.shape == (F, D)
        assert int((found[name].encode(x) != 0).sum(1).max()) <= K
    assert t.equal(found["identity"](x), x)
    assert t.equal(floors.random_sae(sae).W_dec, floors.random_sae(sae).W_dec), "seeded"
    assert {floor.cfg.architecture for floor in found.values()} <= adapter.looks().keys()


def test_a_random_dictionary_has_the_spectrum_of_the_learned_one(sae):
    def moments(W_dec_FD):
        return t.linalg.eigvalsh(W_dec_FD.T @ W_dec_FD / F).flip(0)

    learned = moments(sae.W_dec)
    random = moments(floors.random_spectrum_sae(sae).W_dec)
    isotropic = moments(floors.random_sae(sae).W_dec)
    assert (random[:2] - learned[:2]).abs().max() < 0.1
    assert learned[0] > 0.6 > 0.3 > isotropic[0]
    assert t.equal(floors.random_spectrum_sae(sae).b_dec, sae.b_dec)


def test_an_sae_without_k_gets_floors_of_a_32nd_of_its_features():
    dictionary = AutoEncoder(D, F)
    dictionary.normalize_decoder()
    like = adapter.BenchSAE(dictionary.requires_grad_(False), **place())
    f = floors.random_sae(like).encode(t.randn(20, D))
    assert int((f != 0).sum(1).max()) == F // 32
