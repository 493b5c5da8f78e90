"""The SAEs that any should beat, and the one of them that is trained."""

import json

import pytest
import torch as t
from bench_saes import D, F, K, place

from dictionary_learning_ext import VariationalTopKAutoEncoder, load_dictionary
from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench import adapter, floors


@pytest.fixture
def sae():
    """Its decoder's directions lie in a plane of the D dimensions, but for a little."""
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(D, F, K)
    weight_DF = t.randn(D, F) * t.tensor([10.0, 5.0] + [0.1] * (D - 2))[:, None]
    dictionary.decoder.weight.data = weight_DF / weight_DF.norm(dim=0)
    dictionary.b_dec.data = t.randn(D)
    return adapter.BenchSAE(dictionary.requires_grad_(False), **place())


@pytest.fixture
def like(one):
    where = {name: value for name, value in place().items() if name != "architecture"}
    return adapter.load_bench_sae(one, **where)


def test_all_are_of_the_same_place_and_size(sae):
    found = floors.untrained_saes(sae)
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
    assert (random[:2] - learned[:2]).abs().max() < 0.15
    assert learned[0] > 0.6 > 0.3 > isotropic[0]
    assert t.equal(floors.random_spectrum_sae(sae).b_dec, sae.b_dec)


def test_the_frozen_decoder_is_trained_as_the_sae_was_once(one, like, monkeypatch):
    random = floors.frozen_decoder_sae(one, like)
    config = json.loads((one / "frozen_decoder" / "config.json").read_text())["run"]["settings"]
    trained = json.loads((one / "config.json").read_text())["run"]["settings"]
    for name in ("steps", "batch_size", "data", "model", "hook", "lr", "seed", "k", "dict_size"):
        assert config[name] == trained[name], name
    assert config["freeze_decoder"]
    start = VariationalTopKAutoEncoder(D, F, K, rectify=True)
    trained_dictionary = load_dictionary(one / "frozen_decoder")[0]
    assert random.cfg.architecture == "frozen_decoder"
    assert not t.allclose(trained_dictionary.encoder.weight, trained_dictionary.decoder.weight.T)
    assert start.decoder.weight.shape == trained_dictionary.decoder.weight.shape

    def again(*_, **__):
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(floors, "train", again)
        assert t.equal(floors.frozen_decoder_sae(one, like).W_enc, random.W_enc)
    config = json.loads((one / "config.json").read_text())
    config["run"]["settings"]["seed"] = 7
    (one / "config.json").write_text(json.dumps(config))
    assert not t.equal(floors.frozen_decoder_sae(one, like).W_dec, random.W_dec), "of another seed"


def test_a_folder_that_does_not_say_how_it_was_trained_has_no_frozen_decoder(one, like):
    config = json.loads((one / "config.json").read_text())
    del config["run"]
    (one / "config.json").write_text(json.dumps(config))
    with pytest.raises(BenchError, match=r"does not say how .* leave out --floor"):
        floors.frozen_decoder_sae(one, like)
