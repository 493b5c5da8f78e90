"""Hook points of every family, against plain hooks and transformers."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_model_reads import some_tokens
from nnsight import LanguageModel, NNsight
from texts import error_of
from torch import Tensor, nn

from dictionary_learning_ext.activations.hook_points import (
    HookPoint,
    Place,
    _kinds_of,
    block_list_path,
    block_of_output,
    find_hook,
    hooked,
    read_places,
    read_residual,
)
from dictionary_learning_ext.activations.language_models import unwrapped
from dictionary_learning_ext.config.hooks import HOOK_KINDS
from dictionary_learning_ext.errors import LanguageModelError

FAMILIES = ["gpt_neox", "llama", "gpt2", "gemma", "qwen"]
_LLAMAS = ("self_attn", "mlp")
_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
PARTS = {
    "gpt_neox": ("attention", "mlp"),
    "gpt_neox_sequential": ("attention", "mlp"),
    "gpt2": ("attn", "mlp"),
    "llama": _LLAMAS,
    "qwen": _LLAMAS,
    "qwen3": _LLAMAS,
    "gemma1": _LLAMAS,
    "gemma": _NORMS,
    "gemma3": _NORMS,
    "olmo2": _NORMS,
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
"""The modules of a block that write to the residual stream."""
POST, PRE = "blocks.{}.hook_resid_post", "blocks.{}.hook_resid_pre"
ATTENTION, MLP = "blocks.{}.hook_attn_out", "blocks.{}.hook_mlp_out"


def hidden_states(lm: Any, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """What goes into each block, and last what comes out of the last one, from plain hooks."""
    seen: list[Tensor] = []
    blocks = blocks_of(lm)
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in blocks
    ]

    def last(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks.append(blocks[-1].register_forward_hook(last))
    with torch.no_grad():
        lm._module(input_ids=ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return seen


def blocks_of(lm: Any) -> list[nn.Module]:
    n = lm._module.config.num_hidden_layers
    return [find_hook(lm, POST.format(layer)).submodule._module for layer in range(n)]


@pytest.mark.parametrize(
    ("hook", "block"),
    [
        ("blocks.3.hook_resid_post", 3),
        ("blocks.3.hook_resid_pre", 2),
        ("blocks.0.hook_resid_pre", -1),
        ("blocks.3.hook_attn_out", None),
        ("blocks.3.hook_mlp_out", None),
        ("blocks.3.hook_z", None),
        ("blocks.3.hook_resid_post.x", None),
    ],
)
def test_the_block_whose_output_is_read(hook, block):
    assert block_of_output(hook) == block


def test_hook_point_says_where_it_is(tiny_lm: Any):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_pre")
    envoy = tiny_lm.gpt_neox.layers[1]
    place = Place(tiny_lm._module.gpt_neox.layers[1], "in", "gpt_neox.layers.1")
    assert hook == HookPoint("blocks.1.hook_resid_pre", 1, "in", envoy, 16, place)
    inside = find_hook(unwrapped(tiny_lm), "blocks.1.hook_resid_pre")
    assert inside == HookPoint(hook.name, 1, "in", place.module, 16, place)
    assert find_hook(tiny_lm, "blocks.1.hook_resid_post").io == "out"


def test_weights_that_nnsight_has_not_loaded_yet_are_loaded(tiny_lm: Any, tiny_lm_dir: Path):
    lazy: Any = LanguageModel(str(tiny_lm_dir), tokenizer=tiny_lm.tokenizer)
    assert lazy._module.device.type == "meta"
    hook = find_hook(lazy, "blocks.1.hook_mlp_out")
    expected = read_residual(tiny_lm, find_hook(tiny_lm, hook.name), *some_tokens())
    assert torch.equal(read_residual(lazy, hook, *some_tokens()), expected)
    assert hook.submodule._module is hook.place.module is lazy._module.gpt_neox.layers[1].mlp


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("blocks.2", "blocks.2.hook_resid_post"),
        ("blocks.1.resid_pre", "blocks.1.hook_resid_pre"),
        ("blocks.3.hook_mlp_out", "blocks.2.hook_mlp_out"),
        ("blocks.0.hook_z", "blocks.0.hook_resid_post"),
        ("", "blocks.0.hook_resid_post"),
    ],
)
def test_unknown_hook_point_lists_those_there_are_and_suggests_one_that_is_near(
    tiny_lm: LanguageModel, name: str, suggested: str
):
    message = error_of(lambda: find_hook(tiny_lm, name), LanguageModelError)
    assert all(kind in message for kind in HOOK_KINDS)
    assert message.endswith(f" {suggested}")
    assert repr(name) in message
    find_hook(tiny_lm, suggested)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_residuals_are_what_goes_into_and_comes_out_of_a_block(
    lm_of: Callable[[str], LanguageModel], family: str, layer: int
):
    lm = lm_of(family)
    ids, mask = some_tokens()
    # Padding on the left; with it there, nnsight 0.8 gives GPT-2's tokens other positions than the model does.
    mask[1, slice(-4, None) if family == "gpt2" else slice(4)] = 0
    real = mask.bool()
    expected = hidden_states(lm, ids, mask)
    for name, states in ((PRE, expected[layer]), (POST, expected[layer + 1])):
        x = read_residual(lm, find_hook(lm, name.format(layer)), ids, mask)
        assert x.shape == (3, 10, 16)
        torch.testing.assert_close(x[real], states[real])
        assert not x.requires_grad
        assert not x.is_inference()


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("layer", [0, 2])
def test_attention_and_mlp_are_what_a_block_adds(
    lm_of: Callable[[str], LanguageModel], family: str, layer: int
):
    lm = lm_of(family)
    tokens = some_tokens()
    pre, attention, mlp, post = (
        read_residual(lm, find_hook(lm, name.format(layer)), *tokens)
        for name in (PRE, ATTENTION, MLP, POST)
    )
    assert pre.shape == attention.shape == mlp.shape == (3, 10, 16)
    torch.testing.assert_close(attention + mlp, post - pre, rtol=1e-4, atol=1e-6)
    paths = (find_hook(lm, name.format(layer)).submodule.path for name in (ATTENTION, MLP))
    assert tuple(path.rpartition(".")[2] for path in paths) == PARTS[family]


@pytest.mark.parametrize("family", ["granite", "bloom"])
@pytest.mark.parametrize("name", [ATTENTION, MLP])
def test_a_module_whose_output_is_not_what_is_added_is_refused(
    lm_of: Callable[[str], LanguageModel], family: str, name: str
):
    """Granite scales it, and BLOOM's modules add the residual stream themselves."""
    lm = lm_of(family)
    message = error_of(lambda: find_hook(lm, name.format(1)), LanguageModelError)
    assert name.format(1) in message
    assert POST.format(1) in message
    assert find_hook(lm, POST.format(1))


def test_only_a_block_with_an_attention_and_an_mlp_has_their_outputs():
    lists = [nn.ModuleDict({"attn": nn.Linear(4, 4)}), nn.ModuleDict({"mlp": nn.Linear(4, 4)})]
    own = ["hook_resid_post", "hook_resid_pre"]
    assert [_kinds_of(block) for block in lists] == [own, [*own, "mlp.hook_in"]]


@pytest.mark.parametrize(
    ("names", "ran"),
    [
        ([POST.format(1)], [0, 1]),
        ([PRE.format(1)], [0]),
        ([POST.format(1), POST.format(0)], [0, 1]),
    ],
)
def test_the_model_runs_to_the_deepest_place_and_no_further(
    tiny_lm: LanguageModel, names: list[str], ran: list[int]
):
    calls: list[int] = []
    places = [find_hook(tiny_lm, name).place for name in names]
    with ExitStack() as hooks:
        for layer, block in enumerate(blocks_of(tiny_lm)):
            inner = block.get_submodule("input_layernorm")  # the first thing that a block runs
            hook = inner.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
            hooks.callback(hook.remove)
        read_places(unwrapped(tiny_lm), places, *some_tokens())
    assert calls == ran


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_changed_at_either_side_of_a_block(
    lm_of: Callable[[str], LanguageModel], family: str
):
    lm = lm_of(family)
    after, before = find_hook(lm, POST.format(0)), find_hook(lm, PRE.format(1))
    last, tokens = find_hook(lm, POST.format(2)), some_tokens()
    plain = read_residual(lm, last, *tokens)
    bare = unwrapped(lm)._replace(traced=None)
    changed = []
    for hook in (after, before):  # the same place, from its two sides
        with hooked(hook.place, lambda x_BLD: x_BLD + 1):
            changed.append(read_residual(lm, last, *tokens))
            assert read_residual(bare, before, *tokens).equal(
                read_residual(bare, after, *tokens) + (hook is before)
            )
    assert torch.equal(*changed)
    assert not torch.equal(changed[0], plain)
    with hooked(before.place, lambda _: None), hooked(after.place, lambda _: None):
        assert read_residual(lm, last, *tokens).equal(plain)
    assert read_residual(lm, last, *tokens).equal(plain), "nothing is left on the model"


@pytest.mark.parametrize("family", FAMILIES)
def test_nnsights_trace_reads_what_torchs_hooks_read(
    lm_of: Callable[[str], LanguageModel], family: str
):
    """To the bit, at both sides of a block and in any order."""
    lm = unwrapped(lm_of(family))
    assert lm.traced is not None
    places = [find_hook(lm, name.format(n)).place for n, name in ((2, PRE), (0, POST), (1, PRE))]
    ids, mask = some_tokens()
    mask[1, -3:] = 0
    by_hooks = read_places(lm._replace(traced=None), places, ids, mask)
    for traced in (lm.traced, NNsight(lm.module)):
        by_trace = read_places(lm._replace(traced=traced), places, ids, mask)
        assert all(torch.equal(*each) for each in zip(by_trace, by_hooks, strict=True))


def test_what_later_modules_change_in_place_was_copied_before(tiny_lm: LanguageModel):
    places = [find_hook(tiny_lm, name).place for name in (POST.format(0), PRE.format(1))]
    last, tokens = find_hook(tiny_lm, POST.format(1)).place, some_tokens()
    lm = unwrapped(tiny_lm)
    plain = [read_places(lm, [place], *tokens)[0] for place in places]
    inner = blocks_of(tiny_lm)[1].get_submodule("input_layernorm")

    def change(_: nn.Module, args: tuple[torch.Tensor]) -> None:
        args[0].add_(1)

    hook = inner.register_forward_pre_hook(change)
    try:
        for traced in (lm.traced, None):
            *read, _ = read_places(lm._replace(traced=traced), [*places, last], *tokens)
            assert all(torch.equal(*each) for each in zip(read, plain, strict=True))
    finally:
        hook.remove()


def _blocks(width: int) -> nn.ModuleList:
    experts = nn.ModuleList(nn.Sequential(nn.Linear(width, width)) for _ in range(2))
    return nn.ModuleList(nn.ModuleDict({"experts": experts}) for _ in range(2))


def test_block_list_is_told_from_experts_norms_and_an_image_encoder():
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=4)
    norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
    body = nn.ModuleDict({"layers": _blocks(4), "norms": norms})
    model = nn.ModuleDict({"vision": _blocks(6), "body": body})
    assert block_list_path(model, config) == "body.layers"
    model = nn.ModuleDict({"encoder": _blocks(4), "decoder": _blocks(4)})
    with pytest.raises(LanguageModelError, match="encoder, decoder"):
        block_list_path(model, config)
    with pytest.raises(LanguageModelError):
        block_list_path(nn.ModuleDict({"norms": norms}), config)
