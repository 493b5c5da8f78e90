"""SAELens's, sparsify's and Gemma Scope's folders: what is read of them, against their equations and the libraries themselves."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch as t
from export_folders import K as K_OF_BAKER_LI
from export_folders import of_baker_li, of_gemma_scope
from safetensors.torch import save_file

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.run_folder.foreign import foreign_config, format_of
from dictionary_learning_ext.run_folder.foreign_weights import load_foreign
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.run_folder.trained_on import trained_on

D, F, K = 8, 24, 3


@pytest.fixture
def x():
    return 3 * t.randn(50, D, generator=t.Generator().manual_seed(1))


@pytest.fixture
def written(tmp_path):
    """Writes a folder; decoder norms are 1 unless `norms`. Returns it and its weights."""

    def write(architecture="topk", norms=None, **config):
        generator = t.Generator().manual_seed(0)
        weights = {
            "W_enc": t.randn(D, F, generator=generator),
            "b_enc": t.randn(F, generator=generator),
            "W_dec": t.randn(F, D, generator=generator),
            "b_dec": t.randn(D, generator=generator),
        }
        weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
        if norms is not None:
            weights["W_dec"] *= t.linspace(*norms, F)[:, None]
        if architecture == "jumprelu":
            weights["threshold"] = t.rand(F, generator=generator)
        if architecture == "gated":
            weights["b_gate"] = weights.pop("b_enc")
            for name in ("b_mag", "r_mag"):
                weights[name] = t.randn(F, generator=generator)
        save_file(weights, tmp_path / "sae_weights.safetensors")
        settings = {"architecture": architecture, "d_in": D, "d_sae": F} | config
        if "topk" in str(architecture):
            settings = {"k": K} | settings
        (tmp_path / "cfg.json").write_text(json.dumps(settings))
        return tmp_path, weights

    return write


def by_its_equations(x, weights, architecture="topk", is_centred=True, rescales=False):
    """SAELens's features and reconstructions."""
    pre = (x - is_centred * weights["b_dec"]) @ weights["W_enc"]
    if architecture == "gated":
        f = (weights["r_mag"].exp() * pre + weights["b_mag"]).relu() * (pre > -weights["b_gate"])
        return f, f @ weights["W_dec"] + weights["b_dec"]
    pre = pre + weights["b_enc"]
    norms = weights["W_dec"].norm(dim=1) if rescales else t.ones(F)
    pre = pre * norms
    f = pre.relu()
    if architecture == "topk":
        f = f * (pre >= pre.sort(dim=1).values[:, -K, None])
    elif architecture == "abstopk":
        f = pre * (pre.abs() >= pre.abs().sort(dim=1).values[:, -K, None])
    elif architecture == "jumprelu":
        f = pre * (pre > weights["threshold"])
    return f, f / norms @ weights["W_dec"] + weights["b_dec"]


@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("norms", [None, (0.5, 2.0)])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu", "gated"])
def test_an_sae_of_saelens_is_that_of_its_equations(architecture, norms, is_centred, written, x):
    rescales = "topk" in architecture and norms is not None
    config = {"rescale_acts_by_decoder_norm": True} if rescales else {}
    folder, weights = written(architecture, norms, apply_b_dec_to_input=is_centred, **config)
    f, x_hat = by_its_equations(x, weights, architecture, is_centred, rescales)
    own = load_dictionary(folder)[0]
    t.testing.assert_close(own.encode(x), f, rtol=1e-4, atol=1e-4)
    t.testing.assert_close(own(x), x_hat, rtol=1e-4, atol=1e-4)
    sae = load_foreign(find_sae(folder), unit_norm=True)
    t.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    W_dec = sae.W_dec if architecture == "jumprelu" else sae.decoder.weight.T
    t.testing.assert_close(W_dec.norm(dim=1), t.ones(F))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norms": (0.5, 2.0)}, r"0\.5 to 2, .* 1"),
        ({"architecture": "batchtopk"}, "'batchtopk' .* 'jumprelu' .* save_inference_model"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn .* 'tanh-relu' in cfg.json"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm' in cfg.json; expected 'none'"),
        ({"hook_point": "blocks.0.attn.hook_z"}, "'hook_z' in cfg.json; expected 'none'"),
        ({"d_sae": 2 * F}, f"dict_size is {F}, .* {2 * F}"),
        ({"k": None}, f"k=None of {F}"),
    ],
)
def test_what_upstreams_classes_can_not_represent_is_refused(changes, message, written):
    folder, _ = written(**changes)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(find_sae(folder), unit_norm=True)


def test_the_log_threshold_of_an_earlier_saelens_is_read(written, x):
    folder, weights = written("jumprelu")
    earlier = {name: value for name, value in weights.items() if name != "threshold"}
    save_file(
        earlier | {"log_threshold": weights["threshold"].log()}, folder / "sae_weights.safetensors"
    )
    f, _ = by_its_equations(x, weights, "jumprelu")
    ours, _ = load_dictionary(folder)
    t.testing.assert_close(ours.encode(x), f, rtol=1e-5, atol=1e-5)


def test_damaged_files_of_saelens_are_named(written):
    folder, weights = written()
    for damage, message in (
        (t.full((D,), t.nan), "b_dec"),
        (t.zeros(D + 1), "sae_weights.safetensors"),
    ):
        save_file(weights | {"b_dec": damage}, folder / "sae_weights.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_foreign(find_sae(folder), unit_norm=True)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cfg\.json: .*JSONDecodeError"):
        find_sae(folder)


def test_a_topk_whose_decoder_is_not_unit_norm_is_read_as_it_is(written, x):
    folder, weights = written(norms=(0.5, 2.0))
    f, x_hat = by_its_equations(x, weights)
    sae, _ = load_dictionary(folder)
    t.testing.assert_close(sae.encode(x), f, rtol=1e-4, atol=1e-4)
    t.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)


def test_the_settings_of_saelens_before_version_6_are_read(written, x):
    folder, weights = written(
        activation_fn_str="topk",
        activation_fn_kwargs={"k": K},
        architecture=None,
        k=None,
        hook_point="blocks.3.hook_resid_pre",
        model_name="gpt2-small",
        dataset_path="some/text",
        context_size=64,
        normalize_activations=False,
    )
    save_file(weights | {"scaling_factor": t.ones(F)}, folder / "sae_weights.safetensors")
    sae, config = load_dictionary(folder)
    t.testing.assert_close(sae.encode(x), by_its_equations(x, weights)[0], rtol=1e-4, atol=1e-4)
    assert config["trainer"] == {
        "dict_class": "AutoEncoderTopK",
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "lm_name": "gpt2-small",
        "submodule_name": "blocks.3.hook_resid_pre",
    }
    run = trained_on(find_sae(folder))
    assert (run.model, run.hook) == ("gpt2-small", "blocks.3.hook_resid_pre")
    assert (run.data, run.ctx_len, run.text_packing) == ("some/text", 64, "pack")
    save_file(weights | {"scaling_factor": t.rand(F)}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="scaling_factor"):
        load_dictionary(folder)


def test_what_saelens_table_has_stands_in_place_of_the_files(written, of_sparsify):
    folder, _ = written(dataset_path="of/the_file", apply_b_dec_to_input=True)
    table = {"dataset_path": "of/the_table", "apply_b_dec_to_input": False}
    config = foreign_config(folder, "SAELens", table, {})
    assert config["buffer"]["text"] == "of/the_table"
    assert config["foreign"]["subtracts_b_dec"] is False
    folder, _ = of_sparsify()
    assert foreign_config(folder, "sparsify", {"k": K + 1}, {})["trainer"]["k"] == K + 1


def test_what_export_json_says_stands_in_place_of_the_run_beside_it(of_sparsify):
    run = {"model": "of/the_run", "dataset": "text/of_the_run", "ctx_len": 64}
    folder, _ = of_sparsify("layers.1", run)
    own = {"model_name": "its/own", "hook_name": "blocks.1.hook_mlp_out"}
    (folder / "export.json").write_text(json.dumps(own))
    found = trained_on(find_sae(folder))
    assert (found.model, found.hook, found.ctx_len) == ("its/own", "blocks.1.hook_mlp_out", 64)


@pytest.mark.parametrize("changed", [True, False])
def test_a_language_model_that_transformerlens_changed_is_warned_of(changed, written, caplog):
    options = {"center_writing_weights": changed}
    about = {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2-small"}
    folder, _ = written(metadata=about | {"model_from_pretrained_kwargs": options})
    trained_on(find_sae(folder), "gpt2")
    assert any("center_writing_weights" in message for message in caplog.messages) == changed


def test_a_run_folder_beside_saelens_files_is_a_run_folder(written):
    folder, _ = written()
    assert format_of(folder) == "SAELens"
    (folder / "ae.pt").touch()  # a repository for both libraries
    assert format_of(folder) is None


@pytest.mark.extra
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu", "gated"])
def test_what_saelens_itself_saves_is_read(architecture, tmp_path, x):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    classes = {
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
        "abstopk": (sae_lens.AbsTopKSAE, sae_lens.AbsTopKSAEConfig, {"k": K}),
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
    }
    sae_class, config_class, options = classes[architecture]
    if "topk" in architecture:
        options = options | {"rescale_acts_by_decoder_norm": True}
    theirs = sae_class(config_class(d_in=D, d_sae=F, **options))
    with t.no_grad():
        for name, value in theirs.named_parameters():
            value.copy_(t.randn(value.shape, generator=t.Generator().manual_seed(len(name))))
        if architecture == "jumprelu":
            theirs.threshold.abs_()
    theirs.save_model(tmp_path)
    agree(theirs.double(), tmp_path, x.double())


def agree(theirs, folder, x):
    """Their features and reconstructions are ours, in float64."""
    ours: Any = load_foreign(find_sae(folder), dtype=t.float64)
    t.testing.assert_close(ours.encode(x), theirs.encode(x).detach(), rtol=1e-9, atol=1e-9)
    t.testing.assert_close(ours(x), theirs(x).detach(), rtol=1e-9, atol=1e-9)
    ours, _ = load_dictionary(folder)
    t.testing.assert_close(
        ours.encode(x.float()).double(), theirs.encode(x).detach(), rtol=1e-5, atol=1e-5
    )


# --- sparsify


@pytest.fixture
def of_sparsify(tmp_path):
    """Writes a checkpoint of sparsify: a folder for its run, and one in it for a module. Returns the latter
    and its weights, by SAELens's names."""

    def write(module="layers.1", run=None, **config):
        generator = t.Generator().manual_seed(0)
        weights = {
            "encoder.weight": t.randn(F, D, generator=generator),
            "encoder.bias": t.randn(F, generator=generator),
            "W_dec": t.randn(F, D, generator=generator),
            "b_dec": t.randn(D, generator=generator),
        }
        (folder := tmp_path / module).mkdir()
        settings = {"activation": "topk", "expansion_factor": F // D, "normalize_decoder": True}
        settings |= {"num_latents": 0, "k": K, "d_in": D, "transcode": False} | config
        (folder / "cfg.json").write_text(json.dumps(settings))
        save_file(weights, folder / "sae.safetensors")
        if run is not None:
            (tmp_path / "config.json").write_text(json.dumps(run))
        names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
        weights = {names.get(name, name): value for name, value in weights.items()}
        return folder, weights | {"W_enc": weights["W_enc"].T}

    return write


def test_an_sae_of_sparsify_is_that_of_its_equations(of_sparsify, x):
    folder, weights = of_sparsify()
    assert format_of(folder) == "sparsify"
    sae, config = load_dictionary(folder)
    f, x_hat = by_its_equations(x, weights)
    t.testing.assert_close(sae.encode(x), f, rtol=1e-4, atol=1e-4)
    t.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    sizes = {"activation_dim": D, "dict_size": F, "k": K}
    assert {name: config["trainer"][name] for name in sizes} == sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, r"layers\.1: transcode .* cfg\.json; expected False"),
        ({"activation": "groupmax"}, "'groupmax' in cfg.json; expected 'topk'"),
        ({"k": F + 1}, f"k={F + 1} of {F}"),
    ],
)
def test_what_is_no_topk_sae_of_sparsify_is_refused(changes, message, of_sparsify):
    folder, _ = of_sparsify(**changes)
    with pytest.raises(CheckpointError, match=message):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("module", "hook"),
    [("layers.1", "blocks.1.hook_resid_post"), ("h.2", "blocks.2.hook_resid_post")],
)
def test_where_sparsify_trained_is_in_its_folders_name_and_the_run_beside(
    module, hook, of_sparsify
):
    run = {"model": "some/model", "dataset": "some/text", "ctx_len": 64, "text_column": "raw"}
    folder, _ = of_sparsify(module, run | {"lr": 0.1})
    found = trained_on(find_sae(folder))
    assert (found.model, found.hook, found.data) == ("some/model", hook, "some/text")
    assert (found.ctx_len, found.text_column) == (64, "raw")


def test_what_no_file_names_is_asked_for(of_sparsify):
    folder, _ = of_sparsify("layers.1.mlp")  # which is no hook point where a norm follows
    with pytest.raises(ConfigError) as refused:
        trained_on(find_sae(folder))
    assert "model and hook" in refused.value.instead
    hook = "blocks.1.hook_mlp_out"
    assert trained_on(find_sae(folder), "gpt2", hook).hook == hook


@pytest.mark.extra
@pytest.mark.parametrize("k", [K, F])
def test_what_sparsify_itself_saves_is_read(k, tmp_path, x):
    sparsify = pytest.importorskip("sparsify", reason="needs sparsify (the SAE Bench environment)")
    theirs = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(expansion_factor=3, k=k))
    with t.no_grad():
        for name, value in theirs.named_parameters():
            value.copy_(t.randn(value.shape, generator=t.Generator().manual_seed(len(name))))
    theirs.save_to_disk(tmp_path / "layers.0")
    ours, _ = load_dictionary(tmp_path / "layers.0")
    found = theirs.encode(x)
    f = t.zeros(len(x), F).scatter(1, found.top_indices, found.top_acts)
    t.testing.assert_close(ours.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(ours(x), theirs(x).sae_out.detach(), rtol=1e-5, atol=1e-5)


# --- Gemma Scope

PLACE = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"


@pytest.mark.parametrize("lower_case", [True, False])
def test_an_sae_of_gemma_scope_is_that_of_its_equations(lower_case, tmp_path, x):
    weights = of_gemma_scope(tmp_path / PLACE, D, F)
    if lower_case:  # as some of its files write them
        renamed = {f"w_{name[2:]}" if name[0] == "W" else name: v for name, v in weights.items()}
        np.savez(tmp_path / PLACE / "params.npz", **renamed)
    assert format_of(tmp_path / PLACE) == "Gemma Scope"
    weights = {name: t.tensor(value) for name, value in weights.items()}
    f, x_hat = by_its_equations(x, weights, "jumprelu", is_centred=False)
    sae, _ = load_dictionary(tmp_path / PLACE)
    t.testing.assert_close(sae.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    sae = load_foreign(find_sae(tmp_path / PLACE), unit_norm=True)
    t.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "model", "hook"),
    [
        (PLACE, "google/gemma-2-2b", "blocks.12.hook_resid_post"),
        (
            "models--google--gemma-scope-9b-it-res/snapshots/ab/layer_9/width_16k/average_l0_88",
            "google/gemma-2-9b-it",
            "blocks.9.hook_resid_post",
        ),
        (
            "layer_3/gemma-scope-27b-pt-mlp/layer_10/width_131k/average_l0_106",
            "google/gemma-2-27b",
            "blocks.10.hook_mlp_out",
        ),
    ],
)
def test_what_an_sae_of_gemma_scope_is_of_is_in_the_names_of_its_folders(
    place, model, hook, tmp_path, monkeypatch
):
    of_gemma_scope(tmp_path / place, D, F)
    run = trained_on(find_sae(tmp_path / place))
    assert (run.model, run.hook) == (model, hook)
    monkeypatch.chdir(tmp_path / place)
    assert trained_on(find_sae(".")).hook == hook


@pytest.mark.parametrize(
    "place",
    [
        "gemma-scope-2b-pt-att/layer_12/width_16k/average_l0_82",
        "gemma-scope-2b-pt-transcoders/layer_12/width_16k/average_l0_82",
        "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
    ],
)
def test_what_is_no_sae_of_a_blocks_output_in_gemma_scope_is_refused(place, tmp_path):
    of_gemma_scope(tmp_path / place, D, F)
    with pytest.raises(CheckpointError, match=r"expected .*gemma-scope-…-res"):
        find_sae(tmp_path / place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "threshold"),
        ({"W_dec": None}, "W_dec"),
        ({"W_enc": np.zeros((D, F + 1), np.float32)}, "RuntimeError"),
        ({"W_enc": np.zeros(D, np.float32)}, "ValueError: not enough values"),
        ({"b_dec": np.full(D, np.nan, np.float32)}, "b_dec .*NaN"),
        ({"threshold": np.array([{}] * F)}, "ValueError"),
        ({"scaling_factor": np.full(F, 2.0)}, "scaling_factor"),
    ],
)
def test_a_damaged_file_of_gemma_scope_is_one_line(changes, message, tmp_path):
    of_gemma_scope(tmp_path, D, F, **changes)
    with pytest.raises(CheckpointError, match=rf"params\.npz: .*{message}") as refused:
        load_dictionary(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_npz_is_not_unpickled(tmp_path):
    (tmp_path / "params.npz").write_bytes(pickle.dumps({"W_enc": np.zeros((D, F))}))
    with pytest.raises(CheckpointError, match=r"params\.npz: .*BadZipFile") as refused:
        load_dictionary(tmp_path)
    assert "allow_pickle" not in str(refused.value)


@pytest.mark.extra
def test_saelens_reads_a_file_of_gemma_scope_as_we_do(tmp_path, x, monkeypatch):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    theirs = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    of_gemma_scope(tmp_path / PLACE, D, F)
    path = str(tmp_path / PLACE / "params.npz")
    monkeypatch.setattr(theirs, "hf_hub_download", lambda **_: path)
    repo, _, inside = PLACE.partition("/")
    sizes = {"d_in": D, "d_sae": F}
    config, state, _ = theirs.gemma_2_sae_huggingface_loader(
        f"google/{repo}", inside, cfg_overrides=sizes
    )
    config = theirs.handle_config_defaulting(config)
    sae = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig.from_dict(config))
    sae.load_state_dict(state)
    ours, own = load_dictionary(tmp_path / PLACE)
    t.testing.assert_close(ours.encode(x), sae.encode(x).detach(), rtol=1e-5, atol=1e-5)
    t.testing.assert_close(ours(x), sae(x).detach(), rtol=1e-5, atol=1e-5)
    assert own["trainer"]["submodule_name"] == config["metadata"]["hook_name"]
    assert own["trainer"]["lm_name"] == f"google/{config['metadata']['model_name']}"


# --- Baker & Li's


def by_the_equations_of_baker_li(x, state):
    """Features, reconstructions and log sigma^2 of their VSAETopK outside training."""
    bias = state.get("bias", state.get("decoder.bias"))
    x = x - bias if "bias" in state else x
    mu = (x @ state["encoder.weight"].T + state["encoder.bias"]).relu()
    size = mu.abs()
    f = mu * (size >= size.sort(dim=1).values[:, -K_OF_BAKER_LI, None])
    log_var = x @ state["var_encoder.weight"].T + state["var_encoder.bias"]
    return f, f @ state["decoder.weight"].T + bias, log_var.clamp(-6, 2)


@pytest.mark.parametrize("is_centred", [False, True])
def test_an_sae_of_the_papers_public_code_is_that_of_its_equations(is_centred, tmp_path):
    folder, state = of_baker_li(tmp_path / "trainer_0", learned=True, is_centred=is_centred)
    x = 3 * t.randn(50, 16, generator=t.Generator().manual_seed(1))
    f, x_hat, log_var = by_the_equations_of_baker_li(x, state)
    sae: Any = load_dictionary(folder)[0]
    t.testing.assert_close(sae.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(sae(x), x_hat, rtol=1e-5, atol=1e-4)
    t.testing.assert_close(sae.log_var(x), log_var, rtol=1e-5, atol=1e-5)
    assert (log_var == -6).any()
    assert (sae.encode(x) != 0).sum(1).max() == K_OF_BAKER_LI
    run = trained_on(find_sae(folder))
    assert (run.model, run.hook, run.ctx_len) == ("some/model", "blocks.1.hook_resid_post", 64)


def test_a_fixed_variance_of_the_papers_public_code_never_samples(tmp_path):
    folder, _ = of_baker_li(tmp_path / "trainer_0")
    x = t.randn(20, 16, generator=t.Generator().manual_seed(1))
    sae: Any = load_dictionary(folder)[0]
    t.testing.assert_close(sae.encode(x, sample=True), sae.encode(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"var_flag": 1}, r"ae\.pt: .*W_var"),
        ({"dict_size": 8}, "dict_size is 32, .* 8"),
        ({"k": None}, "k=None of"),
    ],
)
def test_a_damaged_folder_of_the_papers_public_code_is_one_line(changes, message, tmp_path):
    folder, _ = of_baker_li(tmp_path / "trainer_0", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_dictionary(folder)


# --- none of them


def test_a_folder_of_no_known_format_says_which_are_known(tmp_path, of_sparsify):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cfg.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json, .* cfg\.json; .*SAELens.*sparsify"):
        find_sae(tmp_path / "some")
    folder, _ = of_sparsify()
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: .* {folder}$"):
        find_sae(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        find_sae(folder, 6)
    assert "step" in refused.value.instead
