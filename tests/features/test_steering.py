"""Steering, against activations that are read and changed by hand."""

import contextlib

import pytest
import torch as t
import transformers
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from nnsight import LanguageModel

from dictionary_learning_ext import find_hook, load_dictionary, steer
from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKAutoEncoder

HOOK = "blocks.0.hook_resid_post"
WIDTH, FEATURES = 16, 24
SAES = {
    "top_k": lambda: AutoEncoderTopK(WIDTH, FEATURES, 4),
    "vsae": lambda: VariationalTopKAutoEncoder(WIDTH, FEATURES, 4),
    "relu": lambda: AutoEncoder(WIDTH, FEATURES),
}
IDS_BL = t.tensor([[5, 9, 40, 7, 77], [8, 3, 3, 200, 11]])


def made(kind):
    t.manual_seed(0)
    sae = SAES[kind]().requires_grad_(False)
    for parameter in sae.parameters():
        parameter += 0.1 * t.randn(parameter.shape)  # biases are not 0 then
    return sae


@pytest.fixture
def sae():
    return made("vsae")


def direction_of(sae, feature=17):
    """What one unit of a feature adds to the reconstruction."""
    one_hot = t.eye(sae.dict_size)[feature : feature + 1]
    return (sae.decode(one_hot) - sae.decode(0 * one_hot)).detach()


@t.no_grad()
def logits(lm, ids_BL=IDS_BL):
    return lm._module(input_ids=ids_BL).logits


@t.no_grad()
def activations(lm, hook, ids_BL=IDS_BL):
    """What the rest of the model sees: a hook that comes after all others reads it."""
    point, seen = find_hook(lm, hook), []
    module = point.submodule._module
    if point.io == "out":
        handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out))
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args))
    try:
        logits(lm, ids_BL)
    finally:
        handle.remove()
    (x_BLD,) = seen
    return x_BLD[0] if isinstance(x_BLD, tuple) else x_BLD


@t.no_grad()
def logits_from(lm, hook, x_BLD):
    """The logits of a model that goes on from other activations."""
    point = find_hook(lm, hook)
    module = point.submodule._module
    if point.io == "out":
        handle = module.register_forward_hook(
            lambda _m, _a, out: (x_BLD, *out[1:]) if isinstance(out, tuple) else x_BLD
        )
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: (x_BLD, *args[1:]))
    try:
        return logits(lm)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", SAES)
@pytest.mark.parametrize("hook", [HOOK, "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
def test_adding_moves_every_token_along_the_decoder_directions(tiny_lm, kind, hook):
    sae = made(kind)
    x_BLD = activations(tiny_lm, hook)
    moved_BLD = x_BLD + 4.0 * direction_of(sae) - 2.5 * direction_of(sae, 3)
    expected = logits_from(tiny_lm, hook, moved_BLD)
    with steer(tiny_lm, hook, sae, {17: 4.0, 3: -2.5}):
        found = logits(tiny_lm)
    assert t.allclose(found, expected, atol=1e-5)
    assert not t.allclose(found, logits(tiny_lm), atol=1e-3)


@pytest.mark.parametrize("kind", SAES)
def test_clamping_keeps_the_error_of_the_sae(tiny_lm, kind):
    """x' is the reconstruction with the features at their values, plus what it had left over."""
    sae = made(kind)
    x_BLD = activations(tiny_lm, HOOK)
    f_BLF = t.stack([sae.encode(x_LD) for x_LD in x_BLD])
    error_BLD = x_BLD - t.stack([sae.decode(f_LF) for f_LF in f_BLF])
    often = int((f_BLF != 0).sum((0, 1)).argmax())
    rarely = int((f_BLF != 0).sum((0, 1)).argmin())
    clamped_BLF = f_BLF.clone()
    clamped_BLF[..., often], clamped_BLF[..., rarely] = 0.0, 3.0
    expected = t.stack([sae.decode(f_LF) for f_LF in clamped_BLF]) + error_BLD
    with steer(tiny_lm, HOOK, sae, {often: 0.0, rarely: 3.0}, mode="clamp"):
        found = logits(tiny_lm)
    assert t.allclose(found, logits_from(tiny_lm, HOOK, expected), atol=1e-5)
    assert not t.allclose(found, logits(tiny_lm), atol=1e-3)


def value(saved):
    """The tensor that a trace saved, which is a proxy in nnsight 0.3."""
    return getattr(saved, "value", saved)


def generated(lm, n=6):
    """By nnsight's generate and transformers' own."""
    options = {"max_new_tokens": n, "do_sample": False, "pad_token_id": 1}
    with lm.generate(IDS_BL[:1], **options):
        output = lm.generator.output.save()
    plain = lm._module.generate(IDS_BL[:1], attention_mask=t.ones_like(IDS_BL[:1]), **options)
    assert value(output).equal(plain)
    return plain[0].tolist()


def test_nnsight_and_transformers_generate_the_same_steered_text(tiny_lm, sae):
    """A token at a time, without a cache of keys and values, from logits as above."""
    direction = direction_of(sae)
    ids = IDS_BL[:1]
    for _ in range(6):
        point = find_hook(tiny_lm, HOOK).submodule._module
        handle = point.register_forward_hook(
            lambda _m, _a, out: (
                (out[0] + 20 * direction, *out[1:])
                if isinstance(out, tuple)
                else out + 20 * direction
            )
        )
        following = logits(tiny_lm, ids)[:, -1:].argmax(-1)
        handle.remove()
        ids = t.cat([ids, following], 1)
    before = generated(tiny_lm)
    with steer(tiny_lm, HOOK, sae, {17: 20.0}):
        assert generated(tiny_lm) == ids[0].tolist()
    assert generated(tiny_lm) == before != ids[0].tolist()


def test_a_trace_sees_the_steered_activations_from_the_next_module_on(tiny_lm, sae):
    point, after = (find_hook(tiny_lm, name) for name in (HOOK, "blocks.1.hook_resid_pre"))
    x_BLD = activations(tiny_lm, HOOK)
    with steer(tiny_lm, HOOK, sae, {17: 4.0}):
        expected = logits(tiny_lm)
        with tiny_lm.trace(IDS_BL):
            own, later = point.submodule.output.save(), after.submodule.input.save()
            output = tiny_lm.output.logits.save()
        steered = activations(tiny_lm, HOOK)
    assert t.allclose(value(output), expected, atol=1e-5)
    own = value(own)[0] if isinstance(value(own), tuple) else value(own)
    assert t.allclose(own, x_BLD, atol=1e-5)
    assert t.allclose(value(later), steered, atol=1e-5)
    assert not t.allclose(steered, x_BLD, atol=1e-3)


def test_nested_blocks_act_one_after_the_other(tiny_lm, sae):
    """An inner clamp sees what the outer block added, and undoes it."""
    x_BLD = activations(tiny_lm, HOOK)
    with steer(tiny_lm, HOOK, sae, {17: 4.0}), steer(tiny_lm, HOOK, sae, {3: 1.5}):
        both = activations(tiny_lm, HOOK)
    with steer(tiny_lm, HOOK, sae, {17: 4.0, 3: 1.5}):
        assert t.allclose(activations(tiny_lm, HOOK), both, atol=1e-5)
    with steer(tiny_lm, HOOK, sae, {17: 4.0}):
        added = activations(tiny_lm, HOOK)
        with steer(tiny_lm, HOOK, sae, {17: 0.0}, mode="clamp"):
            found = activations(tiny_lm, HOOK)
        assert activations(tiny_lm, HOOK).equal(added)
    direction = direction_of(sae)
    f_BL = t.stack([sae.encode(x_LD)[:, 17] for x_LD in added])
    assert t.allclose(found, added - f_BL[..., None] * direction, atol=1e-5)
    assert activations(tiny_lm, HOOK).equal(x_BLD)


def test_it_ends_with_the_block_whatever_ends_it(tiny_lm, sae):
    before = logits(tiny_lm)
    with contextlib.suppress(KeyError), steer(tiny_lm, HOOK, sae, {17: 4.0}):
        assert not logits(tiny_lm).equal(before)
        raise KeyError
    assert logits(tiny_lm).equal(before)
    with steer(tiny_lm, HOOK, sae, {}):
        assert logits(tiny_lm).equal(before)


def test_a_run_folder_knows_its_hook_point_and_its_units(trained, tiny_lm):
    """Its weights undo the normalisation of its training, so values are in the model's own units."""
    sae, config = load_dictionary(trained / "vsae")
    assert config["trainer"]["norm_factor"] != 1
    hook = config["run"]["settings"]["hook"]
    x_BLD = activations(tiny_lm, hook)
    with steer(tiny_lm, None, trained / "vsae", {17: 4.0}):
        found = activations(tiny_lm, hook)
    direction = direction_of(sae)
    assert float(direction.norm()) == pytest.approx(1, abs=1e-4)
    assert t.allclose(found, x_BLD + 4.0 * direction, atol=1e-5)
    with pytest.raises(CheckpointError, match=hook):
        steer(tiny_lm, "blocks.0.hook_resid_post", trained / "vsae", {}).__enter__()


def test_weights_that_nnsight_has_not_loaded_yet_are_loaded(tiny_lm_dir, tiny_lm, tokenizer, sae):
    lazy = LanguageModel(str(tiny_lm_dir), tokenizer=tokenizer)
    assert lazy._module.device.type == "meta"
    with steer(tiny_lm, HOOK, sae, {17: 4.0}):
        expected = logits(tiny_lm)
    with steer(lazy, HOOK, sae, {17: 4.0}), lazy.trace(IDS_BL):  # pyright: ignore[reportGeneralTypeIssues]
        output = lazy.output.logits.save()
    assert t.allclose(value(output), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_bfloat16_stays_bfloat16(mode, tiny_lm_dir, tokenizer, sae):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_lm_dir, dtype=t.bfloat16)
    lm = LanguageModel(model, tokenizer=tokenizer)
    x_BLD = activations(lm, HOOK).float()
    with steer(lm, HOOK, sae, {17: 4.0}, mode=mode):
        found = activations(lm, HOOK)
    assert found.dtype == t.bfloat16
    f_BL = t.stack([sae.encode(x_LD)[:, 17] for x_LD in x_BLD]) * (mode == "clamp")
    expected = x_BLD + (4.0 - f_BL)[..., None] * direction_of(sae)
    assert t.allclose(found.float(), expected, atol=0.05)
