"""EleutherAI's sparsify: what it reads, and which hook points it knows."""

import json

import pytest
import torch as t
from export_folders import D, F, K, without_negatives

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.errors import UserError
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.export.formats import output_module


@pytest.mark.parametrize("name", ["vsae", "rectified", "top_k"])
def test_sparsify_itself_loads_it_and_agrees(name, folder_of, x):
    sparsify = pytest.importorskip("sparsify", reason="needs eai-sparsify")
    folder = folder_of(name)
    out = export(folder, "sparsify", tokens=200).folder
    (theirs,) = sparsify.SparseCoder.load_many(str(out), local=True).values()
    ours = load_dictionary(folder)[0]
    assert (theirs.d_in, theirs.num_latents, theirs.cfg.k) == (D, F, int(ours.k))
    f, x_hat = without_negatives(ours, x)
    with t.no_grad(), t.compiler.set_stance("force_eager"):
        encoded = theirs.encode(x)
        dense = t.zeros(len(x), F).scatter_(1, encoded.top_indices, encoded.top_acts)
        t.testing.assert_close(dense, f, rtol=1e-5, atol=1e-5)
        t.testing.assert_close(theirs(x).sae_out, x_hat, rtol=1e-5, atol=1e-5)


def test_the_layout_and_config(folder_of, tiny_lm_dir):
    out = export(folder_of("top_k"), "sparsify", tokens=200).folder
    (inside,) = out.iterdir()
    assert inside.name == "layers.1"
    config = json.loads((inside / "cfg.json").read_text())
    assert (config["d_in"], config["num_latents"], config["k"]) == (D, F, K)
    assert (config["activation"], config["transcode"]) == ("topk", False)
    assert (config["model_name"], config["hook_name"]) == (
        tiny_lm_dir.name,
        "blocks.1.hook_resid_post",
    )
    assert config["export"]["format"] == "sparsify"


@pytest.mark.parametrize(
    ("family", "hook", "module"),
    [
        ("gpt_neox", "blocks.2.hook_resid_post", "layers.2"),
        ("llama", "blocks.0.hook_resid_post", "layers.0"),
        ("gpt2", "blocks.1.hook_resid_post", "h.1"),
        ("gemma", "blocks.1.hook_resid_pre", "layers.0"),
        ("gpt_neox", "blocks.1.hook_mlp_out", "layers.1.mlp"),
        ("llama", "blocks.0.hook_attn_out", "layers.0.self_attn"),
        ("qwen", "blocks.0.hook_resid_pre", None),
    ],
)
def test_the_module_is_that_of_the_model_without_its_unembedding(family, hook, module, lm_of):
    model = lm_of(family)
    found = output_module(model, find_hook(model, hook))
    assert found == module
    if found is not None:
        inner = getattr(model._model, model._model.base_model_prefix)
        assert inner.get_submodule(found) is not None


def test_the_input_of_the_first_block_has_none(folder_of):
    folder = folder_of("top_k")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("blocks.1.hook_resid_post", "blocks.0.hook_resid_pre"))
    with pytest.raises(UserError, match=r"sparsify knows only the outputs of modules.*safetensors"):
        export(folder, "sparsify", tokens=200)
