"""Directions, neighbours and effects on logits against direct formulas."""

import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.jumprelu import JumpReluAutoEncoder
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.features import directions as module
from dictionary_learning_ext.features.directions import (
    LogitLens,
    RandomDirections,
    alignment,
    decoder_directions,
    encoder_directions,
    nearest_features,
)
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKAutoEncoder

WIDTH, FEATURES = 8, 24
SAES = {
    "top_k": lambda: AutoEncoderTopK(WIDTH, FEATURES, 4),
    "vsae": lambda: VariationalTopKAutoEncoder(WIDTH, FEATURES, 18),
    "relu": lambda: AutoEncoder(WIDTH, FEATURES),
    "batch_top_k": lambda: BatchTopKSAE(WIDTH, FEATURES, 4),
    "jump_relu": lambda: JumpReluAutoEncoder(WIDTH, FEATURES),
    "matryoshka": lambda: MatryoshkaBatchTopKSAE(WIDTH, FEATURES, 4, [12, 12]),
}


@pytest.mark.parametrize("name", SAES)
def test_directions_of_every_class(name):
    t.manual_seed(0)
    sae = SAES[name]().requires_grad_(False)
    for parameter in sae.parameters():
        parameter.normal_()
    code = t.rand(5, FEATURES)
    directions = decoder_directions(sae)
    expected = sae.decode(code) - sae.decode(t.zeros(1, FEATURES))
    assert t.allclose(code @ directions, expected, atol=1e-4)
    assert t.allclose(decoder_directions(sae, [7, 2]), directions[[7, 2]], atol=1e-6)
    decoder_directions(sae).zero_()
    assert t.equal(decoder_directions(sae), directions), "they are not the SAE's own memory"

    x, step = t.randn(1, WIDTH) * 100, t.randn(WIDTH)
    changes = sae.encode(x + step) - sae.encode(x)
    is_on = (sae.encode(x + step) != 0) & (sae.encode(x) != 0)
    assert is_on.any()
    expected = (encoder_directions(sae) @ step)[is_on[0]]
    assert t.allclose(changes[is_on], expected, rtol=1e-3, atol=1e-3)
    cosines = t.cosine_similarity(encoder_directions(sae), directions)
    assert t.allclose(alignment(sae), cosines)


@pytest.mark.parametrize("at_once", [7, 20])
def test_nearest_features_equal_brute_force(at_once, monkeypatch):
    monkeypatch.setattr(module, "_FEATURES_AT_ONCE", at_once)
    directions = t.randn(20, 5, generator=t.Generator().manual_seed(0))
    near = nearest_features(directions, 4)
    for i in range(20):
        cosines = t.cosine_similarity(directions[i : i + 1], directions)
        cosines[i] = -2
        assert near.indices_Fn[i].tolist() == cosines.argsort(descending=True)[:4].tolist()
        assert t.allclose(near.values_Fn[i], cosines.sort(descending=True).values[:4], atol=1e-6)
    assert nearest_features(t.randn(1, 5), 4).indices_Fn.shape == (1, 0)


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama", "qwen", "gemma"])
def test_logit_effects_are_the_formula_of_each_family(family, lm_dir_of):
    model = load_language_model(str(lm_dir_of(family)))
    body, t_generator = model._module, t.Generator().manual_seed(0)
    norm = {
        "gpt_neox": lambda: body.gpt_neox.final_layer_norm,
        "gpt2": lambda: body.transformer.ln_f,
    }.get(family, lambda: body.model.norm)()
    norm.weight.data = t.rand(16, generator=t_generator) + 0.5
    if hasattr(norm, "bias"):
        norm.bias.data = t.randn(16, generator=t_generator)
    directions = t.randn(6, 16, generator=t_generator)
    gain = norm.weight + 1 if family == "gemma" else norm.weight
    centred = directions
    if family in ("gpt_neox", "gpt2"):
        centred = directions - directions.mean(1, keepdim=True)
    expected = (centred * gain) @ body.get_output_embeddings().weight.T
    expected = expected - expected.mean(1, keepdim=True)
    found = LogitLens(model._module).logits(directions)
    assert t.allclose(found, expected, rtol=1e-3, atol=1e-4)
    promoted, suppressed = LogitLens(model._module).ranked(directions, 3)
    order = expected.argsort(1)
    assert promoted.indices_Fn.equal(order.flip(1)[:, :3])
    assert suppressed.indices_Fn.equal(order[:, :3])


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_random_directions_have_the_second_moments_of_others(power):
    """In a turned basis; normalised Gaussians of their covariance would have a flatter spectrum."""
    generator = t.Generator().manual_seed(0)
    turn_DD = t.linalg.qr(t.randn(12, 12, generator=generator, dtype=t.float64)).Q
    scale_D = t.arange(1, 13, dtype=t.float64) ** (-power / 2)
    others_FD = t.randn(5000, 12, generator=generator, dtype=t.float64) * scale_D @ turn_DD
    unit_FD = t.nn.functional.normalize(others_FD, dim=1)
    drawn_FD = RandomDirections(7 * others_FD).draw(t.Generator().manual_seed(1))
    assert drawn_FD.shape == others_FD.shape
    assert t.allclose(drawn_FD.norm(dim=1), t.ones(5000, dtype=t.float64))
    wanted, found = unit_FD.T @ unit_FD / 5000, drawn_FD.T @ drawn_FD / 5000
    assert (found - wanted).abs().max() < 0.02
    assert not t.allclose(drawn_FD[:10], unit_FD[:10], atol=0.1)
    again_FD = RandomDirections(others_FD).draw(t.Generator().manual_seed(1))
    assert t.allclose(drawn_FD, again_FD), "seeded, and lengths don't matter"
