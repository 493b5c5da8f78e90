"""Training that starts from a trained SAE: the same SAE at its first step, and what may not differ."""

import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch as t
from interrupted_runs import sae_of, stopped_at
from safetensors.torch import save_file

from dictionary_learning_ext import load_dictionary, train
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.errors import ConfigError, Interrupted, UserError
from dictionary_learning_ext.run_folder.reading import load_config, read_history, read_run
from dictionary_learning_ext.training.initial_weights import start_from
from dictionary_learning_ext.training.sae_run import SAERun

ARCHITECTURES = [name for name in TRAINED if name != "vsae"]


@pytest.fixture
def short(run):
    return replace(run, steps=12, eval_tokens=0, save_every="none")


@pytest.fixture
def trained(short, tmp_path):
    """Trains an SAE and returns its folder."""

    def folder(architecture="vsae_top_k", **changes):
        place = str(tmp_path / f"source_{architecture}")
        return train(replace(short, save_dir=place), {"x": sae_of(architecture, **changes)})["x"]

    return folder


def first_batch(run):
    """The first batch of a run at its hook point, raw, and what it is divided by."""
    sources = open_inputs(run, [run.hook]).train()
    (factor,) = sources.norm_factors().values()
    return next(iter(sources.next().values())), factor


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_step_sees_the_trained_sae_and_takes_nothing_from_it(
    architecture, short, trained, tmp_path
):
    source = trained(architecture)
    # Other units than the source's training had, and a learning rate that changes no weight.
    run = replace(short, steps=3, normalize="unit", save_dir=str(tmp_path / "run"), log_steps=1)
    sae = sae_of(architecture, init_from=str(source), lr=1e-30, seed=1)
    (folder,) = train(run, {"x": sae}).values()
    was, now = load_dictionary(source)[0], load_dictionary(folder)[0]
    for (name, old), new in zip(was.named_parameters(), now.parameters(), strict=True):
        t.testing.assert_close(new, old, rtol=1e-4, atol=1e-5, msg=name)
    x, _ = first_batch(run)
    x_hat = now(x) if architecture not in ("batch_top_k", "matryoshka") else None
    if (
        x_hat is not None
    ):  # those two keep a batch's largest in training, not what passes a threshold
        fve = 1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
        assert read_history(folder)[0]["fve"] == pytest.approx(float(fve), abs=1e-4)


def test_without_noise_the_first_loss_is_the_trained_saes(short, trained, tmp_path):
    sae = {"posterior": "point", "beta": 0.0, "auxk_alpha": 0.0}
    source = trained(**sae)
    run = replace(short, save_dir=str(tmp_path / "run"))
    (folder,) = train(run, {"x": sae_of(**sae, init_from=str(source))}).values()
    x, factor = first_batch(run)
    loss = (x - load_dictionary(source)[0](x)).square().sum(1).mean() / factor**2
    first = read_history(folder)[0]
    assert first["loss"] == pytest.approx(float(loss), rel=1e-4)
    fresh = train(replace(run, overwrite=True), {"x": sae_of(**sae)})["x"]
    assert read_history(fresh)[0]["loss"] > 1.1 * float(loss), "random weights are worse"


@pytest.mark.parametrize("source", ["top_k", "vsae_top_k"])
def test_top_k_and_a_vsae_start_from_each_other(source, short, trained, tmp_path):
    other = {"top_k": "vsae_top_k", "vsae_top_k": "top_k"}[source]
    first = trained(source)
    run = replace(short, steps=1, save_dir=str(tmp_path / "run"))
    changes = {"posterior": "learned"} if other == "vsae_top_k" else {}
    sae = sae_of(other, init_from=str(first), lr=1e-30, **changes)
    (folder,) = train(run, {"x": sae}).values()
    now, was = load_dictionary(folder)[0].state_dict(), load_dictionary(first)[0].state_dict()
    for name in ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"):
        t.testing.assert_close(now[name], was[name], rtol=1e-4, atol=1e-5)


def test_a_learned_log_variance_goes_along(short, trained, tmp_path):
    source = trained(posterior="learned")
    run = replace(short, steps=1, save_dir=str(tmp_path / "run"))
    sae = sae_of(posterior="learned", init_from=str(source), lr=1e-30)
    (folder,) = train(run, {"x": sae}).values()
    x, _ = first_batch(run)
    was, now = load_dictionary(source)[0], load_dictionary(folder)[0]
    t.testing.assert_close(now.log_var(x), was.log_var(x), rtol=1e-4, atol=1e-4)
    assert was.log_var_encoder.weight.abs().max() > 0


def test_it_is_recorded_and_resumes_without_the_source(short, trained, tmp_path, monkeypatch):
    source = trained()
    run = replace(short, save_every="100")
    sae = sae_of(init_from=str(source))
    uninterrupted = train(replace(run, save_dir=str(tmp_path / "a")), {"x": sae})["x"]
    assert load_config(uninterrupted).sae.init_from == str(source)
    assert json.loads((uninterrupted / "config.json").read_text())["run"]["settings"]["init_from"]
    b = replace(run, save_dir=str(tmp_path / "b"))
    stopped_at(5, monkeypatch)
    with pytest.raises(Interrupted):
        train(b, {"x": sae})
    shutil.rmtree(source)
    resumed, saes, _ = read_run(tmp_path / "b")
    train(resumed, saes, resume=True)
    states = [load_dictionary(tmp_path / name)[0].state_dict() for name in "ab"]
    assert all(t.equal(states[0][name], states[1][name]) for name in states[0])


def test_stopped_before_its_first_step_it_still_leaves_b_dec_alone(
    short, trained, tmp_path, monkeypatch
):
    source = trained()
    run = replace(short, steps=2, save_dir=str(tmp_path / "b"))
    sae = sae_of(init_from=str(source), lr=1e-30)

    def stop(*_):
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SAERun, "check_and_log", stop)
        with pytest.raises(Interrupted):
            train(run, {"x": sae})
    resumed, saes, _ = read_run(tmp_path / "b")
    (folder,) = train(resumed, saes, resume=True).values()
    now, was = (load_dictionary(each)[0].b_dec for each in (folder, source))
    t.testing.assert_close(now, was, rtol=1e-4, atol=1e-5)


# --- refusals


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ({}, {"dict_size": 64}, "its dict_size is 32, not 64; give dict_size=32"),
        ({}, {"k": 8}, "its k is 4, not 8; give k=4"),
        ({}, {"architecture": "vsae"}, "its k is 4, not 32; give architecture='vsae_top_k'"),
        (
            {},
            {"architecture": "relu"},
            "its class is VariationalTopKAutoEncoder, not AutoEncoder (architecture relu); give "
            "architecture='vsae_top_k'",
        ),
        ({"architecture": "relu"}, {}, "its class is AutoEncoder, not VariationalTopKAutoEncoder"),
    ],
)
def test_what_may_not_differ_is_named_with_both_values(
    source, given, message, short, trained, tmp_path
):
    folder = trained(**source)
    sae = sae_of(**{"init_from": str(folder)} | given)
    with pytest.raises(ConfigError) as raised:
        train(replace(short, save_dir=str(tmp_path / "run")), {"x": sae})
    assert f"init_from={str(folder)!r}: {message}" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_another_width_is_named(trained):
    source = load_dictionary(trained())[0]
    hook = SimpleNamespace(activation_dim=64, name="blocks.0.hook_resid_post")
    with pytest.raises(
        ConfigError, match=r"activation_dim is 16, but blocks\.0.* is 64 wide; give"
    ):
        start_from(None, source, 1.0, sae_of(init_from="runs/x"), hook)  # pyright: ignore


def test_no_folder_and_a_damaged_one_are_one_line(short, trained, tmp_path, capsys):
    assert main(["train", "--init-from", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no such folder; expected one that holds a trained SAE" in line
    folder = trained()
    (folder / "ae.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="incomplete or damaged"):
        train(replace(short, save_dir=str(tmp_path / "run")), {"x": sae_of(init_from=str(folder))})


# --- folders of others


def test_a_folder_of_saelens_is_a_start(short, trained, tmp_path):
    """What SAELens itself writes is read in tests/run_folder/test_sae_lens_folder.py."""
    source = load_dictionary(trained("top_k"))[0]
    folder = tmp_path / "sae_lens"
    folder.mkdir()
    weights = {
        "W_enc": source.encoder.weight.T,
        "b_enc": source.encoder.bias,
        "W_dec": source.decoder.weight.T,
        "b_dec": source.b_dec,
    }
    save_file({n: v.contiguous() for n, v in weights.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 4}))
    run = replace(short, steps=1, save_dir=str(tmp_path / "run"))
    for architecture in ("top_k", "vsae_top_k"):
        sae = sae_of(architecture, init_from=str(folder), lr=1e-30)
        (now,) = train(replace(run, overwrite=True), {"x": sae}).values()
        b_dec = load_dictionary(now)[0].b_dec
        t.testing.assert_close(b_dec, source.b_dec, rtol=1e-4, atol=1e-5)


def test_upstreams_folder_is_a_start(short, trained, tmp_path):
    folder = trained("top_k")
    config = json.loads((folder / "config.json").read_text())
    del config["run"]  # upstream's trainSAE writes none
    (folder / "config.json").write_text(json.dumps(config))
    run = replace(short, steps=1, save_dir=str(tmp_path / "run"))
    (now,) = train(run, {"x": sae_of("top_k", init_from=str(folder), lr=1e-30)}).values()
    was, now = (load_dictionary(each)[0].encoder.weight for each in (folder, now))
    t.testing.assert_close(now, was, rtol=1e-4, atol=1e-5)
