"""Loading language models and reading their residual stream, against transformers itself."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight import LanguageModel
from torch import Tensor, nn

from dictionary_learning_ext.activations import language_models
from dictionary_learning_ext.activations.language_models import (
    HookPoint,
    block_of_output,
    find_hook,
    load_language_model,
    read_residual,
    weights_hash,
)
from dictionary_learning_ext.errors import ConfigError, LanguageModelError

FAMILIES = ["gpt_neox", "llama", "gpt2", "gemma", "qwen"]
POST, PRE = "blocks.{}.hook_resid_post", "blocks.{}.hook_resid_pre"


def some_tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, 304, (3, 10), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids)


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
        lm._model(input_ids=ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return seen


def blocks_of(lm: Any) -> list[nn.Module]:
    n = lm.config.num_hidden_layers
    return [find_hook(lm, POST.format(layer)).submodule._module for layer in range(n)]


def one_line_error(call: Callable[[], Any]) -> str:
    with pytest.raises(LanguageModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# Loading


@pytest.mark.parametrize(
    ("hook", "block"),
    [
        ("blocks.3.hook_resid_post", 3),
        ("blocks.3.hook_resid_pre", 2),
        ("blocks.0.hook_resid_pre", -1),
        ("blocks.3.hook_z", None),
        ("blocks.3.hook_resid_post.x", None),
    ],
)
def test_the_block_whose_output_is_read(hook, block):
    assert block_of_output(hook) == block


def test_loads_in_evaluation_mode_without_gradients(tiny_lm: Any):
    assert not tiny_lm._model.training
    assert not any(weight.requires_grad for weight in tiny_lm._model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_model_has_the_asked_dtype(tiny_lm_dir: Path, dtype: torch.dtype):
    lm: Any = load_language_model(str(tiny_lm_dir), dtype=dtype)
    assert lm.dtype == dtype
    assert {weight.dtype for weight in lm._model.parameters()} == {dtype}
    ids, mask = some_tokens()
    assert read_residual(lm, find_hook(lm, POST.format(0)), ids, mask).dtype == dtype


def test_loads_the_weights_of_the_folder(tiny_lm_dir: Path, tiny_lm: LanguageModel):
    assert weights_hash(load_language_model(str(tiny_lm_dir))) == weights_hash(tiny_lm)


def test_a_tokenizer_without_padding_pads_with_end_of_text(tiny_lm_dir: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert load_language_model(str(folder)).tokenizer.pad_token == "<|endoftext|>"


def test_its_own_padding_token_is_kept(tiny_lm: Any):
    assert tiny_lm.tokenizer.pad_token == "<|pad|>"


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_unknown_name_is_one_line_that_says_what_to_give(name: str):
    message = one_line_error(lambda: load_language_model(name))
    assert repr(name) in message
    assert "save_pretrained" in message


def test_folder_without_a_config_names_the_missing_file(tmp_path: Path):
    message = one_line_error(lambda: load_language_model(str(tmp_path)))
    assert str(tmp_path / "config.json") in message


def test_missing_folder_is_not_looked_up_on_the_hub():
    assert "no file no/such/config.json" in one_line_error(lambda: load_language_model("./no/such"))


def test_missing_embedded_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(language_models, "EMBEDDED_MODEL", tmp_path / "gone")
    assert "embedded" in one_line_error(lambda: load_language_model("embedded"))


def test_folder_without_weights_keeps_the_cause(tiny_lm_dir: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LanguageModelError) as caught:
        load_language_model(str(folder))
    assert isinstance(caught.value.__cause__, OSError)


def test_damaged_weights_are_not_called_a_missing_model(tiny_lm_dir: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
    (folder / "model.safetensors").write_bytes(b"\x08")
    message = one_line_error(lambda: load_language_model(str(folder)))
    assert "its files are damaged" in message


def test_missing_device_is_one_line(tiny_lm_dir: Path):
    with pytest.raises(ConfigError, match=r"device='cuda:99': expected cpu.*; use e\.g\. --device"):
        load_language_model(str(tiny_lm_dir), device="cuda:99")


def test_loading_and_reading_print_nothing(
    tiny_lm_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        lm = load_language_model(str(tiny_lm_dir))
        read_residual(lm, find_hook(lm, POST.format(0)), *some_tokens())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# Hook points


def test_hook_point_says_where_it_is(tiny_lm: Any):
    hook = find_hook(tiny_lm, "blocks.1.hook_resid_pre")
    assert hook == HookPoint(
        "blocks.1.hook_resid_pre", 1, "in", tiny_lm.gpt_neox.layers[1], activation_dim=16
    )
    assert find_hook(tiny_lm, "blocks.1.hook_resid_post").io == "out"


@pytest.mark.parametrize(
    "name",
    ["blocks.3.hook_resid_post", "blocks.-1.hook_resid_post", "blocks.0.hook_mlp_out", "", "0"],
)
def test_unknown_hook_point_lists_those_there_are(tiny_lm: LanguageModel, name: str):
    message = one_line_error(lambda: find_hook(tiny_lm, name))
    assert "blocks.{0..2}.hook_resid_post or blocks.{0..2}.hook_resid_pre" in message
    assert repr(name) in message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_residuals_are_what_goes_into_and_comes_out_of_a_block(
    lm_of: Callable[[str], LanguageModel], family: str, layer: int
):
    lm = lm_of(family)
    ids, mask = some_tokens()
    expected = hidden_states(lm, ids, mask)
    pre = read_residual(lm, find_hook(lm, PRE.format(layer)), ids, mask)
    post = read_residual(lm, find_hook(lm, POST.format(layer)), ids, mask)
    assert pre.shape == post.shape == (3, 10, 16)
    torch.testing.assert_close(pre, expected[layer])
    torch.testing.assert_close(post, expected[layer + 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_transformers_hidden_states(
    lm_of: Callable[[str], LanguageModel], family: str
):
    lm: Any = lm_of(family)
    ids, mask = some_tokens()
    states = lm._model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in range(2):  # the last state has the final norm in it
        post = read_residual(lm, find_hook(lm, POST.format(layer)), ids, mask)
        torch.testing.assert_close(post, states[layer + 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_reaches_the_model(lm_of: Callable[[str], LanguageModel], family: str):
    lm = lm_of(family)
    ids, mask = some_tokens()
    mask[1, :4] = 0
    real = mask.bool()
    expected = hidden_states(lm, ids, mask)[2][real]
    got = read_residual(lm, find_hook(lm, POST.format(1)), ids, mask)[real]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("io", "ran"), [(POST, [True, True, False]), (PRE, [True, False, False])])
def test_the_model_runs_no_further_than_the_hook_point(
    tiny_lm: LanguageModel, io: str, ran: list[bool]
):
    calls = [False] * 3
    hooks = []
    for layer, block in enumerate(blocks_of(tiny_lm)):
        inner = block.get_submodule("input_layernorm")  # the first thing that a block runs

        def note(*_: Any, layer: int = layer) -> None:
            calls[layer] = True

        hooks.append(inner.register_forward_hook(note))
    read_residual(tiny_lm, find_hook(tiny_lm, io.format(1)), *some_tokens())
    for hook in hooks:
        hook.remove()
    assert calls == ran


def test_residuals_are_ordinary_tensors_without_gradient(tiny_lm: LanguageModel):
    x = read_residual(tiny_lm, find_hook(tiny_lm, POST.format(0)), *some_tokens())
    assert not x.requires_grad
    assert not x.is_inference()


class _Decoder(nn.Module):
    """A decoder of 2 blocks with everything that is easily taken for its list of blocks."""

    def __init__(self, **others: nn.Module):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        for name, module in others.items():
            self.add_module(name, module)


def _blocks(width: int) -> nn.ModuleList:
    experts = nn.ModuleList(nn.Sequential(nn.Linear(width, width)) for _ in range(2))
    return nn.ModuleList(nn.ModuleDict({"experts": experts}) for _ in range(2))


class _Config:
    num_hidden_layers, hidden_size = 2, 4


def test_block_list_is_told_from_experts_norms_and_an_image_encoder():
    model = _Decoder(vision=_blocks(6), body=nn.ModuleDict({"layers": _blocks(4)}))
    assert language_models.block_list_path(model, _Config) == "body.layers"


def test_a_model_with_two_block_lists_is_refused():
    model = _Decoder(encoder=_blocks(4), decoder=_blocks(4))
    message = one_line_error(lambda: language_models.block_list_path(model, _Config))
    assert "2 candidates (encoder, decoder)" in message


# The hash of the weights


def test_hash_is_of_the_weights_and_repeats(tiny_lm_dir: Path, tiny_lm: LanguageModel):
    assert re.fullmatch("[0-9a-f]{64}", weights_hash(tiny_lm))
    lm: Any = load_language_model(str(tiny_lm_dir))
    with torch.no_grad():
        lm._model.gpt_neox.layers[2].mlp.dense_4h_to_h.bias[3] += 1e-3
    assert weights_hash(lm) != weights_hash(tiny_lm)


def test_hash_differs_between_dtypes(tiny_lm_dir: Path, tiny_lm: LanguageModel):
    lm = load_language_model(str(tiny_lm_dir), dtype=torch.bfloat16)
    assert weights_hash(lm) != weights_hash(tiny_lm)
