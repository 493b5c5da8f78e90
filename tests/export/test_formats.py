"""Each format as the library that it is for reads it."""

import json
from pathlib import Path

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary as load_upstream
from export_folders import FORMATS, D, F, K, edit_config, moved, without_negatives

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.errors import UserError
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.export.formats import output_module
from dictionary_learning_ext.run_folder.foreign_weights import load_foreign
from dictionary_learning_ext.run_folder.sae_folder import find_sae

UPSTREAMS = ("probabilistic_top_k", "batch_top_k", "relu", "jump_relu", "matryoshka")
EVERY_CLASS = ("signed", "vsae", "top_k", *UPSTREAMS)
SAE_LENS = {
    "vsae": "TopKSAE",
    "rectified": "TopKSAE",
    "top_k": "TopKSAE",
    "probabilistic_top_k": "TopKSAE",
    "magnitude": "AbsTopKSAE",
    "signed": "AbsTopKSAE",
    "batch_top_k": "JumpReLUSAE",
    "matryoshka": "JumpReLUSAE",
    "jump_relu": "JumpReLUSAE",
    "relu": "StandardSAE",
    "relu_new": "StandardSAE",
    "gated": "GatedSAE",
}
"""SAELens's class for each that it can hold."""


def test_upstream_reads_a_vsae_as_its_own_top_k(folder_of, x):
    folder = folder_of("vsae")
    out = export(folder, "dictionary-learning", tokens=200).folder
    theirs, config = load_upstream(str(out), "cpu")
    ours = load_dictionary(folder)[0]
    assert type(theirs) is AutoEncoderTopK
    assert config["trainer"]["trainer_class"] == "TopKTrainer"
    f, x_hat = without_negatives(ours, x)
    t.testing.assert_close(theirs.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(theirs(x), x_hat, rtol=1e-5, atol=1e-5)
    assert theirs.threshold == ours.threshold
    assert json.loads((out / "metrics.json").read_text())["tokens"] == 64


@pytest.mark.parametrize("name", UPSTREAMS)
def test_upstreams_other_classes_stay_what_they_are(name, folder_of, x):
    folder = folder_of(name)
    out = export(folder, "dictionary-learning", tokens=200).folder
    theirs, original = load_upstream(str(out), "cpu")[0], load_upstream(str(folder), "cpu")[0]
    assert type(theirs) is type(original)
    assert t.equal(theirs(x), original(x))


@pytest.mark.parametrize("form", FORMATS)
def test_no_export_tells_where_the_files_lay(form, folder_of, tiny_lm_dir, text):
    exported = export(folder_of("top_k"), form, tokens=200)
    written = "\n".join(path.read_text() for path in exported.folder.rglob("*.json"))
    assert str(Path(text).parent) not in written
    assert str(tiny_lm_dir.parent) not in written
    assert tiny_lm_dir.name in written


def test_a_block_s_input_is_the_output_of_the_one_before_to_sae_bench(folder_of):
    out = export(moved(folder_of("top_k"), "blocks.1.hook_resid_pre"), "sae-bench", tokens=200)
    trainer = json.loads(next(out.folder.rglob("config.json")).read_text())["trainer"]
    assert (trainer["layer"], trainer["submodule_name"]) == (0, "blocks.0.hook_resid_post")


@pytest.mark.parametrize(
    ("form", "hook", "message"),
    [
        ("sae-bench", "blocks.0.hook_resid_pre", "SAE Bench"),
        ("sae-bench", "blocks.1.hook_mlp_out", "SAE Bench"),
        ("sparsify", "blocks.0.hook_resid_pre", "sparsify .*sae-lens"),
    ],
)
def test_a_hook_point_that_a_reader_does_not_know_is_refused(form, hook, message, folder_of):
    with pytest.raises(UserError, match=rf"trained on {hook}.*{message}"):
        export(moved(folder_of("top_k"), hook), form, tokens=200)


@pytest.mark.parametrize("hook", ["blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"])
def test_an_sae_inside_a_block_keeps_its_hook_point(hook, folder_of):
    folder = moved(folder_of("top_k"), hook)
    for form, name, keys in (
        ("sae-lens", "cfg.json", ("metadata", "hook_name")),
        ("dictionary-learning", "config.json", ("trainer", "submodule_name")),
    ):
        found = json.loads((export(folder, form, tokens=200).folder / name).read_text())
        for key in keys:
            found = found[key]
        assert found == hook, form


def test_an_upstream_folder_needs_model_and_hook(
    folder_of, tiny_lm_dir, text, tmp_path, monkeypatch
):
    """Upstream's `trainSAE` writes no "run" and no hook point that we know."""
    monkeypatch.chdir(tmp_path)
    folder = folder_of("top_k")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["run"], config["trainer"]["submodule_name"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="model and hook"):
        export(folder, "sae-lens")
    place = {"model": str(tiny_lm_dir), "hook": "blocks.1.hook_resid_post", "data": text}
    out = export(folder, "sae-lens", tokens=200, **place).folder
    assert out == find_sae(folder).results / "exports" / "sae-lens"
    metadata = json.loads((out / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"


def test_the_name_that_upstream_s_demo_gives_a_hook_is_no_contradiction(folder_of):
    folder = folder_of("top_k")
    edit_config(folder, submodule_name="resid_post_layer_1")
    with pytest.raises(UserError, match=r"'resid_post'"):
        export(folder, "sae-bench", hook="resid_post")
    hook = "blocks.1.hook_resid_post"
    assert export(folder, "sae-bench", tokens=200, hook=hook).difference.is_exact


@pytest.mark.parametrize("name", SAE_LENS)
def test_a_folder_for_sae_lens_is_read_back_as_the_same_sae(name, folder_of, x):
    folder = folder_of(name)
    exported = export(folder, "sae-lens", tokens=500)
    assert (exported.difference.reconstruction <= 1e-6, exported.difference.codes) == (True, 0)
    ours, x = load_dictionary(folder)[0].double(), x.double()
    back = load_foreign(find_sae(exported.folder), dtype=t.float64)
    f = ours.encode(x)
    assert f.count_nonzero() > 0
    t.testing.assert_close(back.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(
        load_dictionary(exported.folder)[0](x.float()), ours(x).float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.extra
@pytest.mark.parametrize(("name", "class_name"), SAE_LENS.items())
def test_sae_lens_loads_it_and_agrees(name, class_name, folder_of, tiny_lm_dir, x):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    folder, x = folder_of(name), x.double()
    exported = export(folder, "sae-lens", tokens=200)
    assert exported.difference.is_exact
    theirs = sae_lens.SAE.load_from_disk(exported.folder).double()
    assert type(theirs).__name__ == class_name
    ours = load_dictionary(folder)[0].double()
    x_hat, f = ours(x), ours.encode(x)
    assert bool((f < 0).any()) == (class_name == "AbsTopKSAE")
    t.testing.assert_close(theirs.encode(x), f, rtol=0, atol=1e-5)
    t.testing.assert_close(theirs(x.view(4, 50, D)), x_hat.view(4, 50, D), rtol=0, atol=1e-5)
    metadata = theirs.cfg.metadata
    assert metadata.model_name == tiny_lm_dir.name
    assert metadata.hook_name == "blocks.1.hook_resid_post"
    assert (metadata.context_size, metadata.prepend_bos) == (32, False)
    theirs.fold_W_dec_norm()  # what SAEDashboard does first
    t.testing.assert_close(theirs(x), x_hat, rtol=0, atol=1e-5)


@pytest.mark.extra
@pytest.mark.parametrize("name", [name for name in SAE_LENS if name not in ("gated", "relu_new")])
def test_sae_lens_agrees_on_activations_of_the_embedded_model(name, tmp_path, request):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    folders, x = request.getfixturevalue("on_the_embedded_model")
    out = export(folders[name], "sae-lens", tmp_path / name, tokens=2048).folder
    ours, theirs = load_dictionary(folders[name])[0], sae_lens.SAE.load_from_disk(out)
    assert len(x) == 2048
    f = ours.encode(x)
    assert f.count_nonzero() > 0
    t.testing.assert_close(theirs.encode(x), f, rtol=0, atol=1e-5)
    t.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-5)


@pytest.mark.extra
@pytest.mark.parametrize("name", EVERY_CLASS)
def test_sae_bench_s_own_loader_reads_an_export(name, folder_of, tiny_lm_dir, x, monkeypatch):
    """Unmodified, unregistered, offline, in the export as its working directory."""
    runner = pytest.importorskip(
        "sae_bench.custom_saes.run_all_evals_dictionary_learning_saes",
        reason="needs SAE Bench (the SAE Bench environment)",
    )
    folder = folder_of(name)
    out = export(folder, "sae-bench", allow_inexact=True, tokens=200).folder
    monkeypatch.chdir(out)
    (location,) = runner.get_all_hf_repo_autoencoders("local/saes")
    assert location == name
    theirs = runner.load_dictionary_learning_sae(
        "local/saes", location, tiny_lm_dir.name, "cpu", t.float32
    )
    ours = load_dictionary(folder)[0]
    f = ours.encode(x) if name not in ("signed", "vsae") else without_negatives(ours, x)[0]
    assert f.count_nonzero() > 0
    t.testing.assert_close(theirs.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(theirs(x), ours.decode(f), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.hook_name == "blocks.1.hook_resid_post"
    architecture = "topk" if name in ("signed", "vsae", "top_k") else theirs.cfg.architecture
    assert theirs.cfg.architecture == architecture


@pytest.mark.extra
@pytest.mark.parametrize("name", ["vsae", "rectified", "top_k", "relu", "relu_new"])
def test_sparsify_itself_loads_it_and_agrees(name, folder_of, x, capfd, caplog):
    """Without a word, which it says of each key in cfg.json that it doesn't know."""
    sparsify = pytest.importorskip("sparsify", reason="needs eai-sparsify")
    folder = folder_of(name)
    exported = export(folder, "sparsify", tokens=200)
    assert exported.difference.is_exact
    capfd.readouterr()
    caplog.clear()
    (theirs,) = sparsify.SparseCoder.load_many(str(exported.folder), local=True).values()
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")
    ours = load_dictionary(folder)[0]
    assert (theirs.d_in, theirs.num_latents, theirs.cfg.k) == (D, F, int(getattr(ours, "k", F)))
    f, x_hat = (ours.encode(x), ours(x)) if "relu" in name else without_negatives(ours, x)
    with t.no_grad(), t.compiler.set_stance("force_eager"):
        encoded = theirs.encode(x)
        dense = t.zeros(len(x), F).scatter_(1, encoded.top_indices, encoded.top_acts)
        t.testing.assert_close(dense, f, rtol=1e-5, atol=1e-4)
        t.testing.assert_close(theirs(x).sae_out, x_hat, rtol=1e-5, atol=1e-4)


def test_the_layout_and_config(folder_of, tiny_lm_dir):
    out = export(folder_of("top_k"), "sparsify", tokens=200).folder
    (inside,) = out.iterdir()
    assert inside.name == "layers.1"
    config = json.loads((inside / "cfg.json").read_text())
    assert (config["d_in"], config["num_latents"], config["k"]) == (D, F, K)
    assert (config["activation"], config["transcode"]) == ("topk", False)
    about = json.loads((inside / "export.json").read_text())
    assert about["model_name"] == tiny_lm_dir.name
    assert about["hook_name"] == "blocks.1.hook_resid_post"
    assert about["export"]["format"] == "sparsify"


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
    found = output_module(model._module, find_hook(model, hook))
    assert found == module
    if found is not None:
        inner = getattr(model._module, model._module.base_model_prefix)
        assert inner.get_submodule(found) is not None


@pytest.mark.extra
def test_delphi_reads_a_sparsify_export_and_fires_alike(folder_of, tiny_lm, x):
    """By its loader, which delphi's command calls with the export's folder and --hookpoints."""
    reader = pytest.importorskip("delphi.sparse_coders.load_sparsify", reason="needs eai-delphi")
    folder = folder_of("vsae")
    out = export(folder, "sparsify", tokens=200).folder
    encoders, transcodes = reader.load_sparsify_hooks(tiny_lm._module, str(out), ["layers.1"])
    ((place, encode),) = encoders.items()
    assert place == find_hook(tiny_lm, "blocks.1.hook_resid_post").place.path
    with t.no_grad(), t.compiler.set_stance("force_eager"):
        f = encode(x)
    assert not transcodes
    t.testing.assert_close(
        f, without_negatives(load_dictionary(folder)[0], x)[0], rtol=1e-5, atol=1e-4
    )


@pytest.mark.extra
def test_sae_dashboard_builds_a_page_from_a_sae_lens_export(folder_of, tiny_lm):
    runner = pytest.importorskip("sae_dashboard.sae_vis_runner", reason="needs sae-dashboard")
    import sae_lens  # pyright: ignore[reportMissingImports]

    from dictionary_learning_ext.sae_bench.lens_model import hooked_transformer

    folder = folder_of("vsae")
    theirs = sae_lens.SAE.load_from_disk(export(folder, "sae-lens", tokens=200).folder)
    name = "blocks.1.hook_resid_post"
    model = hooked_transformer(tiny_lm, find_hook(tiny_lm, name), "tiny")
    tokens = t.randint(60, (64, 32), generator=t.Generator().manual_seed(0))
    _, activations = model.run_with_cache(tokens, names_filter=name)
    f_NF = load_dictionary(folder)[0].encode(activations[name].flatten(0, 1))
    feature = int((f_NF != 0).sum(0).argmax())
    config = runner.SaeVisConfig(hook_point=name, features=[feature])
    page = runner.SaeVisRunner(config).run(encoder=theirs, model=model, tokens=tokens)
    (found,) = page.feature_data_dict.values()
    share = (f_NF[:, feature] > 0).double().mean().item()
    assert f"{share:.3%}" in found.acts_histogram_data.title
    top = found.sequence_data.seq_group_data[0].seq_data[0]
    assert max(top.feat_acts) == pytest.approx(f_NF[:, feature].max().item(), abs=1e-3)
