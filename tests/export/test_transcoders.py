"""Exports of transcoders: what other libraries compute with the files, written out here from the files alone."""

import json
from dataclasses import replace

import pytest
import torch as t
from interrupted_runs import sae_of
from safetensors.torch import load_file

from dictionary_learning_ext import load_dictionary, train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.export.formats import join_layers

LAYERS = (0, 1)


@pytest.fixture(scope="module")
def layers(anywhere, tmp_path_factory):
    """The folder of transcoders over BatchTopK of two layers, and a TopK beside it."""
    hook = ",".join(f"blocks.{n}.mlp.hook_in" for n in LAYERS)
    target = ",".join(f"blocks.{n}.hook_mlp_out" for n in LAYERS)
    folder = tmp_path_factory.mktemp("transcoders")
    run = replace(anywhere, hook=hook, target=target, save_dir=str(folder / "layers"))
    train(run, dict.fromkeys(run.sites, sae_of("vsae_batch_top_k")), {s: s for s in run.sites})
    train(replace(run.at(run.sites[0]), save_dir=str(folder / "top_k")), {"x": sae_of()})
    return folder


def some_x():
    return t.randn(200, 16, generator=t.Generator().manual_seed(0))


def assert_computes(sae, x, f, y_hat):
    t.testing.assert_close(f, sae.encode(x), atol=1e-5, rtol=1e-4)
    t.testing.assert_close(y_hat, sae.decode(sae.encode(x)), atol=1e-5, rtol=1e-4)


def test_a_folder_of_layers_is_a_set_for_circuit_tracer(layers, tmp_path, capsys):
    main(
        ["export", str(layers / "layers"), "--format", "circuit-tracer", f"--out={tmp_path / 'ct'}"]
    )
    assert "2 layers" in capsys.readouterr().out
    about = json.loads((tmp_path / "ct" / "config.yaml").read_text())
    assert about["feature_input_hook"] == "mlp.hook_in"
    assert about["feature_output_hook"] == "hook_mlp_out"
    assert about["model_kind"] == "transcoder_set"
    assert "k" not in about
    for n in LAYERS:
        w = load_file(tmp_path / "ct" / f"layer_{n}.safetensors")
        (folder,) = (layers / "layers").glob(f"blocks.{n}*")
        sae, _ = load_dictionary(folder)
        x = some_x()
        mu = x @ w["W_enc"].T + w["b_enc"]
        f = mu * (mu > w["activation_function.threshold"])
        assert (f != 0).any()
        assert_computes(sae, x, f, f @ w["W_dec"] + w["b_dec"])


def test_a_top_k_has_its_k_in_config_yaml(layers, tmp_path):
    export(layers / "top_k", "circuit-tracer", tmp_path / "out", tokens=100)
    w = load_file(tmp_path / "out" / "layer_0.safetensors")
    assert w.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    k = json.loads((tmp_path / "out" / "config.yaml").read_text())["k"]
    sae, _ = load_dictionary(layers / "top_k")
    x = some_x()
    mu = x @ w["W_enc"].T + w["b_enc"]
    kept = mu.topk(k).indices
    f = t.zeros_like(mu).scatter(1, kept, mu.gather(1, kept))
    assert_computes(sae, x, f, f @ w["W_dec"] + w["b_dec"])


def test_sae_lens_has_a_jump_relu_transcoder(layers, tmp_path):
    folder = next((layers / "layers").glob("blocks.1*"))
    export(folder, "sae-lens", tmp_path / "out", tokens=100)
    about = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert about["architecture"] == "jumprelu_transcoder"
    assert about["d_out"] == about["d_in"] == 16
    assert not about["apply_b_dec_to_input"]
    assert about["metadata"]["hook_name"] == "blocks.1.mlp.hook_in"
    assert about["metadata"]["hook_name_out"] == "blocks.1.hook_mlp_out"
    w = load_file(tmp_path / "out" / "sae_weights.safetensors")
    sae, _ = load_dictionary(folder)
    x = some_x()
    mu = x @ w["W_enc"] + w["b_enc"]
    f = mu.relu() * (mu > w["threshold"])
    assert_computes(sae, x, f, f @ w["W_dec"] + w["b_dec"])


@pytest.mark.extra
def test_the_real_sae_lens_computes_the_transcoder(layers):
    sae_lens = pytest.importorskip("sae_lens")
    folder = next((layers / "layers").glob("blocks.1*"))
    theirs = sae_lens.SAE.load_from_disk(export(folder, "sae-lens", tokens=100).folder)
    sae, x = load_dictionary(folder)[0], some_x()
    assert type(theirs).__name__ == "JumpReLUTranscoder"
    assert_computes(sae, x, theirs.encode(x), theirs.decode(theirs.encode(x)))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("sae-lens", "SAELens has no TopK transcoder"),
        ("sae-bench", "takes SAEs, and no transcoders"),
        ("sparsify", "takes SAEs, and no transcoders"),
        ("dictionary-learning", "takes SAEs, and no transcoders"),
    ],
)
def test_what_a_format_does_not_hold_is_refused(form, said, layers, tmp_path):
    with pytest.raises(CheckpointError, match=f"{said}.*circuit-tracer"):
        export(layers / "top_k", form, tmp_path / "out", tokens=100)


def test_two_of_one_layer_are_no_set(layers, tmp_path):
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        export(layers / "top_k", "circuit-tracer", out, tokens=100)
    with pytest.raises(CheckpointError, match="one transcoder of each layer"):
        join_layers(outs, tmp_path / "both")


def test_a_layer_that_is_there_from_another_set_is_not_joined(layers, tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    (out / "layer_7.safetensors").write_bytes(b"another's")
    export(layers / "top_k", "circuit-tracer", tmp_path / "a", tokens=100)
    with pytest.raises(CheckpointError, match=r"has layer_7\.safetensors; expected a new or empty"):
        join_layers([tmp_path / "a"], out)


def test_from_one_block_to_another_has_no_place_in_a_set_of_layers(anywhere, tmp_path):
    hook, target = "blocks.0.mlp.hook_in", "blocks.1.hook_mlp_out"
    run = replace(anywhere, hook=hook, target=target, save_dir=str(tmp_path / "across"))
    train(run, {"x": sae_of()})
    with pytest.raises(CheckpointError, match="one layer for both"):
        export(tmp_path / "across", "circuit-tracer", tmp_path / "out", tokens=100)
