"""Codes on the disk: what is read is what was written, and anything else is not used."""

import json
import re
import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from measurement import codes_of_rows
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dictionary_learning_ext.codes import codes as codes_module
from dictionary_learning_ext.codes.codes import Codes, keep_codes, kept_codes, text_key
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.evaluation.metrics import computed
from dictionary_learning_ext.run_folder.files import CODES

D, F, K = 8, 24, 3
TEXT = {"model": "m", "tokens": 50}
SAE = "a hash of its weights"


@pytest.fixture
def sae():
    t.manual_seed(0)
    return AutoEncoderTopK(D, F, K).requires_grad_(False)


@pytest.fixture
def codes(sae):
    found = codes_of_rows(sae, t.randn(50, D, generator=t.Generator().manual_seed(1)))
    return replace(found, sae=SAE, text=TEXT)


def test_what_is_read_is_what_was_written(sae, codes, tmp_path):
    keep_codes(tmp_path, codes)
    found = kept_codes(tmp_path, sae, SAE, TEXT)
    assert found is not None
    assert (found.code_NF != codes.code_NF).nnz == 0
    assert found.reading.hash == codes.reading.hash
    assert found.ablation_error_F.tolist() == codes.ablation_error_F.tolist()
    assert computed(found.totals) == computed(codes.totals)
    assert kept_codes(tmp_path, sae, SAE) is not None, "of any text"


@pytest.mark.parametrize("model", ["unknown", "./no/such/model"])
def test_codes_without_a_language_model_show_ids(sae, codes, model, tmp_path, monkeypatch):
    keep_codes(tmp_path, replace(codes, text={"model": model}))
    found = SimpleNamespace(results=tmp_path, hash=SAE)
    monkeypatch.setattr(codes_module, "find_sae", lambda folder: found)
    monkeypatch.setattr(codes_module, "load_sae", lambda folder: sae)
    found = Codes.load(tmp_path)
    assert found.tokenizer is None
    assert found.feature(int(found.count_F.argmax())).contexts(1)


def shorter(path):
    path.write_bytes(path.read_bytes()[:-9])


def about_of(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def with_value(path):
    content, about = load_file(path), about_of(path)
    content["value_M"][3] += 1
    save_file(content, path, about)


def with_sum(path):
    about = about_of(path)
    said = json.loads(about["codes"])
    said["sums"]["tokens"] += 1
    save_file(load_file(path), path, about | {"codes": json.dumps(said)})


def without_text(path):
    about = about_of(path)
    said = json.loads(about["codes"]) | {"text": None}
    save_file(load_file(path), path, about | {"codes": json.dumps(said)})


def without_about(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage",
    [
        shorter,
        with_value,
        with_sum,
        without_text,
        without_about,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 200),
    ],
)
def test_a_damaged_file_is_one_line_and_not_used(damage, sae, codes, tmp_path, caplog):
    damage(keep_codes(tmp_path, codes))
    assert kept_codes(tmp_path, sae, SAE, TEXT) is None
    (record,) = caplog.records
    assert str(tmp_path / CODES) in record.message
    assert "\n" not in record.message


def test_codes_of_another_sae_or_text_are_not_used(sae, codes, tmp_path, caplog):
    keep_codes(tmp_path, codes)
    caplog.set_level("INFO")
    assert kept_codes(tmp_path, sae, SAE, TEXT | {"tokens": 51}) is None
    assert "of other tokens" in caplog.text
    assert kept_codes(tmp_path, sae, SAE, TEXT, with_all=True) is None
    assert kept_codes(tmp_path, sae, "another", TEXT) is None
    assert len(caplog.records) == 3


def test_another_number_of_tokens_text_or_library_is_another_text(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("one")
    run = RunConfig(data=str(tmp_path))
    before = text_key(run, 10)
    assert before == json.loads(json.dumps(before)) == text_key(run, 10)
    assert text_key(run, 11) != before
    (tmp_path / "text.txt").write_text("two")
    now = text_key(run, 10)
    assert now != before
    monkeypatch.setattr(codes_module, "version", lambda name: "another")
    assert text_key(run, 10) != now


def test_a_disk_that_gets_full_refuses_codes_in_one_line_and_leaves_the_former(codes, tmp_path):
    path = keep_codes(tmp_path, codes)
    before = path.read_bytes()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
            keep_codes(tmp_path, codes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert [path.read_bytes()] == [one.read_bytes() for one in path.parent.iterdir()] == [before]
