"""Weights: damaged ones are named, and none of their code is executed."""

import inspect
import json
import os
import pickle
import re
import shutil

import pytest
import torch as t
from dictionary_learning.utils import load_dictionary as load_upstream_dictionary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_commands import content, refused

from dictionary_learning_ext import VariationalTopKAutoEncoder, VSAETopK
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.run_folder.tensors import read_state_dict
from dictionary_learning_ext.run_folder.weights import (
    for_raw_activations,
    load_dictionary,
    save_weights,
)
from dictionary_learning_ext.trainers.variational_batch_top_k import VariationalBatchTopKAutoEncoder


def tensors(change):
    """Changes the state dict of an ae.pt."""

    def damage(path):
        state = t.load(path, weights_only=True)
        t.save(change(state), path)

    return damage


def put(**values):
    return tensors(lambda state: state | {n.replace("__", "."): v for n, v in values.items()})


def flip(place):
    def damage(path):
        raw = bytearray(path.read_bytes())
        raw[int(place * len(raw))] ^= 0x10
        path.write_bytes(raw)

    return damage


class Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def executes_zipped(path):
    t.save({"encoder.weight": Executes()}, path)


DAMAGED_WEIGHTS = {
    "empty": (lambda path: path.write_bytes(b""), "EOFError"),
    "a flipped bit among the weights": (flip(0.5), "BadZipFile"),
    "a pickle that runs code": (
        lambda p: p.write_bytes(pickle.dumps(Executes())),
        "UnpicklingError",
    ),
    "a zipped pickle that runs code": (executes_zipped, "UnpicklingError"),
    "a list": (lambda path: t.save([t.zeros(3)], path), "state dict"),
    "a matrix that is a vector": (put(encoder__weight=t.zeros(16)), "VariationalTopKAutoEncoder"),
    "a vector of another length": (put(b_dec=t.zeros(17)), r"b_dec"),
    "another dictionary size": (
        put(
            encoder__weight=t.zeros(64, 16),
            encoder__bias=t.zeros(64),
            decoder__weight=t.zeros(16, 64),
        ),
        r"dict_size is 64, .* 32",
    ),
    "NaN": (put(b_dec=t.full((16,), t.nan)), "b_dec"),
    "another k": (put(k=t.tensor(5)), r"\bk\b.*\b5\b"),
    "a key that is a number": (lambda path: t.save({5: t.zeros(3)}, path), "state dict"),
    "a posterior that doesn't exist": (put(posterior_code=t.tensor(-1)), "posterior_code=-1"),
    "a prior without width": (put(prior_std=t.tensor(0.0)), r"prior_std=0\.0"),
    "a negative sigma": (put(sigma=t.tensor(-1.0)), r"sigma=-1\.0"),
    "a decoder of zeros": (put(decoder__weight=t.zeros(16, 32)), "decoder"),
    "another class": (
        lambda path: shutil.copy(path.parents[1] / "top_k.pt", path),
        r"VariationalTopKAutoEncoder \('posterior_code'\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_WEIGHTS)
def test_a_damaged_ae_pt(damage, folder, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained / "top_k" / "ae.pt", tmp_path / "top_k.pt")
    change, message = DAMAGED_WEIGHTS[damage]
    change(folder / "ae.pt")
    before = content(folder)
    line = refused(["eval", folder], capsys)
    assert re.search(message, line), line
    assert "ae.pt" in line
    assert "weights_only" not in line, "torch's advice would execute what is in the file"
    assert content(folder) == before
    assert not (tmp_path / "executed").exists()


SLOW = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SLOW
@given(data=st.data())
def test_any_change_of_ae_pt_is_noticed(data, trained, tmp_path):
    """One byte is changed, or all after it are cut off."""
    whole = (trained / "vsae" / "ae.pt").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    raw = bytearray(whole)
    if data.draw(st.booleans()):
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        del raw[place:]
    shutil.copy(trained / "vsae" / "config.json", tmp_path / "config.json")
    (tmp_path / "ae.pt").write_bytes(raw)
    expected = t.load(trained / "vsae" / "ae.pt", weights_only=True)
    try:
        dictionary, _ = load_dictionary(tmp_path)
    except CheckpointError:
        return
    for name, value in dictionary.state_dict().items():  # a byte that means nothing
        assert t.equal(value, expected[name])


@pytest.mark.parametrize("posterior", ["fixed", "learned", "point"])
def test_a_scaled_copy_takes_raw_activations_and_leaves_the_original(posterior):
    sae = VariationalTopKAutoEncoder(4, 8, 2, posterior=posterior)
    with t.no_grad():
        sae.encoder.bias.normal_(generator=t.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    scaled = for_raw_activations(sae, 3.0)
    x = t.randn(5, 4, generator=t.Generator().manual_seed(1))
    assert all(t.equal(value, before[name]) for name, value in sae.state_dict().items())
    assert t.allclose(scaled.encode(3 * x), 3 * sae.encode(x), rtol=1e-5, atol=1e-5)
    assert for_raw_activations(sae, 1.0) is sae


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_what_is_saved_of_parameters_in_bfloat16_is_float32(factor, tmp_path):
    sae = VSAETopK(4, 8, 2).to(t.bfloat16)
    with t.no_grad():
        sae.encoder.bias.normal_(generator=t.Generator().manual_seed(0))
    save_weights(tmp_path / "ae.pt", for_raw_activations(sae, factor))
    state = read_state_dict(tmp_path / "ae.pt")
    assert state["encoder.weight"].dtype == state["encoder.bias"].dtype == t.float32
    t.testing.assert_close(state["encoder.bias"], factor * sae.encoder.bias.float())
    assert sae.encoder.bias.dtype == t.bfloat16, "the original stays"


@pytest.fixture(scope="module")
def stepped_once(flags, tmp_path_factory):
    base = tmp_path_factory.mktemp("stepped")
    for name, architecture in {"ours": "vsae_top_k", "theirs": "top_k"}.items():
        own = [f"--architecture={architecture}", f"--save-dir={base / name}", "--save-steps=6"]
        assert main(["train", *flags, *own]) == 0
    return base


@pytest.fixture
def stepped(stepped_once, tmp_path):
    """Holds run folders of a vSAE and an upstream's TopK that kept their weights before step 6."""
    return shutil.copytree(stepped_once, tmp_path / "stepped")


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_a_checkpoint_of_the_middle_is_loaded(name, stepped):
    folder = stepped / name
    final, _ = load_dictionary(folder)
    middle, config = load_dictionary(folder, step=6)
    assert type(middle) is type(final)
    assert config == json.loads((folder / "config.json").read_text())
    saved = t.load(folder / "checkpoints" / "ae_6.pt", weights_only=True)
    assert all(t.equal(value, saved[key]) for key, value in middle.state_dict().items())
    assert not t.equal(middle.encoder.weight, final.encoder.weight)
    with pytest.raises(CheckpointError, match="step 7; expected one of 6"):
        load_dictionary(folder, step=7)
    (folder / "ae.pt").unlink()
    unfinished, _ = load_dictionary(folder, step=6)
    assert t.equal(unfinished.encoder.weight, middle.encoder.weight)


def test_k_may_differ_in_the_middle_where_upstream_anneals_it(stepped):
    folder = stepped / "theirs"
    put(k=t.tensor(9))(folder / "checkpoints" / "ae_6.pt")
    sae, _ = load_dictionary(folder, step=6)
    assert int((sae.encode(t.randn(64, 16)) != 0).sum(1).max()) > 4
    put(k=t.tensor(9))(folder / "ae.pt")
    with pytest.raises(CheckpointError, match=r"k is 9, .*config\.json .*k=4"):
        load_dictionary(folder)


@pytest.mark.parametrize("threshold", [-1.0, 0.3])
def test_an_sae_whose_threshold_was_never_set_is_warned_of(threshold, tmp_path, caplog):
    sae = VariationalBatchTopKAutoEncoder(4, 8, 2)
    sae.threshold.fill_(threshold)
    t.save(sae.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": type(sae).__name__, "activation_dim": 4, "dict_size": 8, "k": 2}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    load_dictionary(tmp_path)
    assert ("no threshold was set" in caplog.text) == (threshold < 0)


def test_what_names_no_folder_is_named(folder):
    pair = load_dictionary(folder)
    for wrong in (None, pair):
        with pytest.raises(ConfigError, match=r"^folder=") as refused:
            load_dictionary(wrong)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 200


def test_it_is_called_as_upstreams_is(folder):
    """`dictionary_learning.utils.load_dictionary(base_path, device)`."""
    theirs = list(inspect.signature(load_upstream_dictionary).parameters)
    ours = inspect.signature(load_dictionary).parameters
    assert list(ours)[: len(theirs)] == theirs
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[len(theirs) :])
    dictionary, config = load_dictionary(base_path=str(folder), device="cpu")
    assert type(dictionary).__name__ == config["trainer"]["dict_class"]
