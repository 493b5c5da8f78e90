"""SAELens's folders, read as upstream's classes: against its equations, and the library itself."""

import json

import pytest
import torch as t
from safetensors.torch import save_file

from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.run_folder.weights import is_sae_lens_folder, load_sae_lens

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
        save_file(weights, tmp_path / "sae_weights.safetensors")
        settings = {"architecture": architecture, "d_in": D, "d_sae": F} | config
        if "topk" in architecture:
            settings = {"k": K} | settings
        (tmp_path / "cfg.json").write_text(json.dumps(settings))
        return tmp_path, weights

    return write


def reconstruction(x, weights, architecture, is_centred, rescales):
    """SAELens's forward pass, by its equations."""
    pre = (x - is_centred * weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    norms = weights["W_dec"].norm(dim=1) if rescales else t.ones(F)
    pre = pre * norms
    f = pre.relu()
    if architecture == "topk":
        f = f * (pre >= pre.sort(dim=1).values[:, -K, None])
    elif architecture == "abstopk":
        f = pre * (pre.abs() >= pre.abs().sort(dim=1).values[:, -K, None])
    elif architecture == "jumprelu":
        f = pre * (pre > weights["threshold"])
    return f / norms @ weights["W_dec"] + weights["b_dec"]


@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("norms", [None, (0.5, 2.0)])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu"])
def test_reconstructions_are_those_of_its_equations(architecture, norms, is_centred, written, x):
    rescales = "topk" in architecture and norms is not None
    config = {"rescale_acts_by_decoder_norm": True} if rescales else {}
    folder, weights = written(architecture, norms, apply_b_dec_to_input=is_centred, **config)
    assert is_sae_lens_folder(folder)
    sae = load_sae_lens(folder)
    expected = reconstruction(x, weights, architecture, is_centred, rescales)
    t.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)
    W_dec = sae.W_dec if architecture == "jumprelu" else sae.decoder.weight.T
    t.testing.assert_close(W_dec.norm(dim=1), t.ones(F))


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_a_top_k_whose_norms_decide_the_selection_is_refused(architecture, written):
    folder, _ = written(architecture, norms=(0.5, 2.0))
    with pytest.raises(CheckpointError, match=r"norms are 0\.5 to 2, .*expected norms of 1, or"):
        load_sae_lens(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "gated"},
            "architecture 'gated'; expected one of standard, topk, abstopk, jumpr",
        ),
        ({"normalize_activations": "layer_norm"}, "is 'layer_norm' in cfg.json; expected 'none'"),
        ({"reshape_activations": "hook_z"}, "is 'hook_z' in cfg.json; expected 'none'"),
        ({"k": None}, "not the weights of one SAE of architecture 'topk' with k=None"),
    ],
)
def test_what_upstreams_classes_can_not_represent_is_refused(config, message, written):
    folder, _ = written(**config)
    with pytest.raises(CheckpointError, match=message):
        load_sae_lens(folder)


def test_damaged_files_are_named(written):
    folder, weights = written()
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"missing or damaged \(JSONDecodeError"):
        load_sae_lens(folder)
    folder, weights = written()
    save_file(weights | {"b_dec": weights["b_dec"] * t.nan}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="b_dec has NaN or infinite values"):
        load_sae_lens(folder)
    save_file(weights | {"b_dec": t.zeros(D + 1)}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError):
        load_sae_lens(folder)


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu"])
def test_what_sae_lens_itself_saves_is_read(architecture, tmp_path, x):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    classes = {
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
        "abstopk": (sae_lens.AbsTopKSAE, sae_lens.AbsTopKSAEConfig, {"k": K}),
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
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
    ours = load_sae_lens(tmp_path)
    t.testing.assert_close(ours(x), theirs(x).detach(), rtol=1e-4, atol=1e-4)
