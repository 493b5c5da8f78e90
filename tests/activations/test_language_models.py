"""Loading language models, reading their activations, and the hash of their weights."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from language_model_reads import one_line_error, some_tokens
from nnsight import LanguageModel

from dictionary_learning_ext.activations import language_models
from dictionary_learning_ext.activations.hook_points import (
    find_hook,
    read_residual,
)
from dictionary_learning_ext.activations.language_models import load_language_model, weights_hash
from dictionary_learning_ext.errors import ConfigError, LanguageModelError

POST = "blocks.{}.hook_resid_post"


# Loading


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


@pytest.mark.parametrize(
    "read", [load_language_model, language_models.read_config, language_models.empty_model]
)
def test_code_that_comes_with_a_model_is_never_run(
    read: Any, tiny_lm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
    written = tmp_path / "written"
    (folder / "own.py").write_text(f"open({str(written)!r}, 'w').close()")
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "yes")  # to transformers' question
    with pytest.raises(LanguageModelError, match=r"Python code of its own .* never run"):
        read(str(folder))
    assert not written.exists()


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
    with pytest.raises(
        ConfigError, match=r"device='cuda:99': expected cpu.*; use e\.g\. device='cpu'"
    ):
        load_language_model(str(tiny_lm_dir), device="cuda:99")


def test_loading_and_reading_print_nothing(
    tiny_lm_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        lm = load_language_model(str(tiny_lm_dir))
        read_residual(lm, find_hook(lm, POST.format(0)), *some_tokens())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


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
