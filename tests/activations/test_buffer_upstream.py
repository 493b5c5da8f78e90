"""The buffer used as upstream uses its own: its config, evaluation and training."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from buffers import DOCUMENTS, endless, make_buffer
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.evaluation import evaluate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from nnsight import LanguageModel
from texts import write_jsonl
from upstreams_tracing import upstreams_tracing

from dictionary_learning_ext.activations.text import open_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)


def test_it_is_an_upstream_buffer_whose_config_is_json(tiny_lm: LanguageModel, path: Path):
    buffer = make_buffer(tiny_lm, open_text(str(path)), max_norm_multiple=2.5)
    assert isinstance(buffer, ActivationBuffer)
    config = json.loads(json.dumps(buffer.config))
    upstream = ["d_submodule", "io", "n_ctxs", "ctx_len", "refresh_batch_size", "out_batch_size"]
    assert [config[key] for key in upstream] == [16, "out", 6, 16, 4, 10]
    assert config["device"] == "cpu"
    assert config["text"] == str(path)
    assert config["submodule"] == "gpt_neox.layers.1"


def test_raw_text_is_taken_from_the_stream(tiny_lm: LanguageModel):
    buffer = make_buffer(tiny_lm, iter(DOCUMENTS))
    assert buffer.text_batch() == DOCUMENTS[:4]
    assert buffer.text_batch(batch_size=2) == DOCUMENTS[4:6]
    assert buffer.tokenized_batch(batch_size=3)["input_ids"].shape == (3, 16)


@upstreams_tracing
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_upstream_evaluates_a_dictionary_on_it(lm_of: Callable[[str], LanguageModel], family: str):
    buffer = make_buffer(lm_of(family), endless())
    dictionary = AutoEncoderTopK(16, 32, 4)
    result = evaluate(dictionary, buffer, max_len=16, batch_size=4, n_batches=2)
    assert result["l0"] <= 4
    assert math.isfinite(result["frac_recovered"])
    assert math.isfinite(result["frac_variance_explained"])


def test_upstream_trains_on_it(tiny_lm: LanguageModel, tmp_path: Path):
    buffer = make_buffer(tiny_lm, endless(), out_batch_size=32)
    trainer = {
        "trainer": TopKTrainer,
        "steps": 12,
        "activation_dim": 16,
        "dict_size": 32,
        "k": 4,
        "layer": 1,
        "lm_name": "tiny",
        "warmup_steps": 2,
        "device": "cpu",
    }
    buffer.close()  # as tqdm does where TQDM_DISABLE is set
    trainSAE(buffer, [trainer], steps=12, save_dir=str(tmp_path), device="cpu")
    weights = torch.load(tmp_path / "trainer_0" / "ae.pt")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    saved = json.loads((tmp_path / "trainer_0" / "config.json").read_text())
    assert saved["buffer"] == buffer.config
