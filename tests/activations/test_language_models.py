"""Loading language models, reading their activations, and the hash of their weights."""

import gc
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from language_model_reads import half_on_disk, some_tokens
from nnsight import LanguageModel
from texts import error_of

from dictionary_learning_ext.activations import language_models
from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.language_models import (
    identity,
    load_language_model,
    load_model,
)
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ConfigError, LanguageModelError
from dictionary_learning_ext.run_folder.tensors import hash_of

POST = "blocks.{}.hook_resid_post"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_loaded_for_evaluation_in_the_asked_dtype(tiny_lm_dir: Path, dtype: torch.dtype):
    lm: Any = load_language_model(str(tiny_lm_dir), dtype=dtype)
    assert not lm._module.training
    assert not any(weight.requires_grad for weight in lm._module.parameters())
    assert {lm.dtype, *(weight.dtype for weight in lm._module.parameters())} == {dtype}
    ids, mask = some_tokens()
    assert read_residual(lm, find_hook(lm, POST.format(0)), ids, mask).dtype == dtype


def test_a_tokenizer_without_padding_pads_with_end_of_text(tiny_lm_dir: Path, tmp_path: Path):
    assert load_language_model(str(tiny_lm_dir)).tokenizer.pad_token == "<|pad|>"
    folder = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert load_language_model(str(folder)).tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("read", [load_language_model, language_models.Pretrained])
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
    with pytest.raises(LanguageModelError):
        read(str(folder))
    assert not written.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-model", "'no-such-model' .* save_pretrained"),
        ("nobody/no-such-model", "'nobody/no-such-model' .* save_pretrained"),
        ("./no/such", "no file no/such/config.json"),  # not looked up on the hub
        ("{empty}", "no file {empty}/config.json"),
        ("{no_weights}", "{no_weights}"),
        ("{damaged}", "{damaged}.*damaged"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name: str, says: str, tiny_lm_dir: Path, tmp_path: Path):
    places = {kind: tmp_path / kind for kind in ("empty", "no_weights", "damaged")}
    places["empty"].mkdir()
    for kind in ("no_weights", "damaged"):
        shutil.copytree(tiny_lm_dir, places[kind])
    (places["no_weights"] / "model.safetensors").unlink()
    (places["damaged"] / "model.safetensors").write_bytes(b"\x08")
    message = error_of(lambda: load_language_model(name.format(**places)), LanguageModelError)
    assert re.search(says.format(**places), message), message


def test_missing_device_is_one_line(tiny_lm_dir: Path):
    with pytest.raises(ConfigError, match=r"device='cuda:99'.*device='cpu'"):
        load_language_model(str(tiny_lm_dir), device="cuda:99")


def test_loading_and_reading_print_nothing(
    tiny_lm_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        lm = load_language_model(str(tiny_lm_dir))
        read_residual(lm, find_hook(lm, POST.format(0)), *some_tokens())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_hash_is_of_the_weights_and_their_dtype_and_repeats(
    tiny_lm_dir: Path, tiny_lm: LanguageModel
):
    assert re.fullmatch("[0-9a-f]{64}", hash_of(tiny_lm._module))
    lm: Any = load_language_model(str(tiny_lm_dir))
    assert hash_of(lm._module) == hash_of(tiny_lm._module)
    with torch.no_grad():
        lm._module.gpt_neox.layers[2].mlp.dense_4h_to_h.bias[3] += 1e-3
    assert hash_of(lm._module) != hash_of(tiny_lm._module)
    other = load_language_model(str(tiny_lm_dir), dtype=torch.bfloat16)
    assert hash_of(other._module) != hash_of(tiny_lm._module)


def test_a_model_of_the_hub_is_its_commit_and_one_of_a_folder_its_weights(
    tiny_lm_dir: Path, tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit, digest = "ab" * 20, hash_of(tiny_lm._module)
    repository = tmp_path / "models--somebody--cached"
    shutil.copytree(tiny_lm_dir, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    of_hub = load_language_model("somebody/cached")._module
    assert hash_of(of_hub) == identity(tiny_lm._module) == digest
    monkeypatch.setattr(language_models, "hash_of", None)  # not called
    assert identity(of_hub) == commit


# A model in parts.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("placed", ["auto", "half_on_disk", "all_on_disk"])
def test_a_model_in_parts_is_the_whole_one(placed: str, dtype: Any):
    maps = {"auto": "auto", "half_on_disk": half_on_disk(), "all_on_disk": {"": "disk"}}
    whole = load_model(RunConfig(dtype=dtype))
    parts = load_model(RunConfig(dtype=dtype, device_map=maps[placed]))
    assert any(weight.is_meta for weight in parts.module.parameters()) == (placed != "auto")
    assert identity(parts.module) == identity(whole.module)
    ids, mask = some_tokens()
    for layer in range(4):
        at_whole, at_parts = (find_hook(each, POST.format(layer)) for each in (whole, parts))
        assert torch.equal(
            read_residual(parts, at_parts, ids, mask), read_residual(whole, at_whole, ids, mask)
        )


def test_the_folder_of_parts_on_the_disk_is_deleted_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = load_model(RunConfig(device_map=half_on_disk()))
    assert len(list(tmp_path.iterdir())) == 1
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device_map", "cause"),
    [
        (lambda: "atuo", "'auto'"),
        (lambda: {"": "disc"}, "disc"),
        (lambda: {"gpt_neox.embed_in": "cpu", "gpt_neox.layers.0": "disk"}, "gpt_neox.layers.1"),
    ],
)
def test_what_is_wrong_with_a_device_map_is_said_in_a_line(device_map: Any, cause: str):
    error = error_of(lambda: load_model(RunConfig(device_map=device_map())), ConfigError)
    assert "device_map" in error
    assert cause in error
    assert "auto" in error
