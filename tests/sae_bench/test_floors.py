"""The SAEs that any should beat, and the one of them that is trained."""

import json
import shutil
from dataclasses import replace

import pytest
import torch as t
from bench_saes import D, F, K, place
from dictionary_learning.dictionary import AutoEncoder

from dictionary_learning_ext import VariationalTopKAutoEncoder, load_dictionary
from dictionary_learning_ext.errors import BenchError
from dictionary_learning_ext.run_folder.trained_on import run_of

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
    assert (random[:2] - learned[:2]).abs().max() < 0.1
    assert learned[0] > 0.6 > 0.3 > isotropic[0]
    assert t.equal(floors.random_spectrum_sae(sae).b_dec, sae.b_dec)


@pytest.fixture
def run(one):
    """As `bench` hands it on."""
    return run_of(one)


def test_the_frozen_decoder_is_trained_on_the_saes_batches_once(one, like, run, monkeypatch):
    floor = floors.frozen_decoder_sae(one, like, run)
    settings = settings_of(one / "frozen_decoder")
    for name in ("steps", "batch_size", "data", "model", "hook", "lr", "seed", "k", "dict_size"):
        assert settings[name] == settings_of(one)[name], name
    assert floor.cfg.architecture == "frozen_decoder"
    t.manual_seed(settings["seed"])
    start = VariationalTopKAutoEncoder(D, F, K, rectify=True)
    found = load_dictionary(one / "frozen_decoder")[0]
    assert t.equal(found.decoder.weight, start.decoder.weight), "the seed's random directions"
    assert not t.allclose(found.encoder.weight, start.encoder.weight)

    def again(*_, **__):
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(floors, "train", again)
        assert t.equal(floors.frozen_decoder_sae(one, like, run).W_enc, floor.W_enc)
    changed(one, seed=7)
    other = floors.frozen_decoder_sae(one, like, run)
    assert not t.equal(other.W_dec, floor.W_dec), "of another seed"


def test_the_frozen_decoder_is_trained_where_the_bench_runs(one, like, run, tmp_path):
    """The language model was moved, and the SAE was trained on another device."""
    moved = tmp_path / "moved"
    shutil.copytree(run.model, moved)
    changed(one, device="cuda:3", model="/nowhere/tiny")
    floors.frozen_decoder_sae(one, like, replace(run, model=str(moved), device="cpu"))
    assert settings_of(one / "frozen_decoder")["model"] == str(moved)


def test_a_floor_that_can_not_be_trained_is_one_line(one, like, run):
    changed(one, data="nowhere.txt")
    with pytest.raises(
        BenchError, match=r"trained on the batches of .*one: .*nowhere.txt.*; leave out"
    ):
        floors.frozen_decoder_sae(one, like, run)
    config = json.loads((one / "config.json").read_text())
    del config["run"]
    (one / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        BenchError, match=r"the batches of .*one: its config.json doesn't say how .*; leave out"
    ):
        floors.frozen_decoder_sae(one, like, run)


def test_an_sae_without_k_gets_the_floor_of_its_mean_l0(one, run):
    changed(one, lr=0.5)  # of another loss
    config = floors.frozen_decoder_config(one, relu_sae(), run)
    assert (config.sae.k, config.sae.lr) == (F // 32, None)
    (one / "metrics.json").write_text('{"l0": 6.6}')
    assert floors.frozen_decoder_config(one, relu_sae(), run).sae.k == 7


def relu_sae():
    dictionary = AutoEncoder(D, F)
    dictionary.normalize_decoder()
    return adapter.BenchSAE(dictionary.requires_grad_(False), **place())


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["run"]["settings"]


def changed(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    config["run"]["settings"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
