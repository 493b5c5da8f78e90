"""The language model and the text that ship with the package."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import dictionary_learning_ext

EMBEDDED = Path(dictionary_learning_ext.__file__).parent / "embedded"
MODEL = EMBEDDED / "model"
CONTEXT = 256
SLICE_CHARACTERS = 20_000
BITS_PER_CHARACTER_BOUND = 1.75
"""Met by the shipped model; an untrained one needs about 3, one token in 4,096 for 4 characters."""


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(EMBEDDED / "text" / "books.parquet").to_pylist()


@pytest.fixture(scope="module")
def evaluation():
    return json.loads((MODEL / "evaluation.json").read_text(encoding="utf-8"))


@torch.no_grad()
def bits_per_character(model, tokenizer, texts: list[str]) -> float:
    """The texts' own tokens, packed into contexts with end-of-text before each text."""
    end_of_text = tokenizer.eos_token_id
    stream: list[int] = []
    for text in texts:
        stream += [end_of_text, *tokenizer(text, verbose=False)["input_ids"]]
    nats = 0.0
    for start in range(0, len(stream) - 1, CONTEXT):
        ids = torch.tensor(stream[start : start + CONTEXT + 1])
        targets = ids[1:].where(ids[1:].ne(end_of_text), torch.tensor(-100))
        logits = model(ids[None, :-1], use_cache=False).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return nats / math.log(2) / sum(map(len, texts))


def persuasion_slice(rows) -> list[str]:
    """Whole passages from the middle of Persuasion, about SLICE_CHARACTERS long."""
    texts = [row["text"] for row in rows if row["book"] == "Persuasion"][100:]
    kept: list[str] = []
    while sum(map(len, kept)) < SLICE_CHARACTERS:
        kept.append(texts[len(kept)])
    return kept


def test_model_is_the_architecture_that_the_card_states(model):
    config = model.config
    assert config.model_type == "gpt_neox"
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (128, 4, 4)
    assert (config.intermediate_size, config.vocab_size) == (512, 4096)
    assert config.max_position_embeddings == CONTEXT
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # A quarter of each head of 32 is rotated: 8 of its numbers, in pairs.
    assert model.gpt_neox.rotary_emb.inv_freq.numel() == 4


def test_special_tokens(tokenizer, model):
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert (model.config.eos_token_id, model.config.bos_token_id) == (0, 0)
    assert model.config.pad_token_id == 1
    assert len(tokenizer) == 4096
    assert tokenizer.padding_side == "right"
    assert tokenizer.model_max_length == CONTEXT
    assert not set(tokenizer("Anne Elliot")["input_ids"]) & {0, 1}
    assert tokenizer("Anne Elliot<|endoftext|>")["input_ids"][-1] == 0


@settings(deadline=None)
@given(text=st.text())
def test_tokenizer_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text


def test_tokenizer_gives_back_odd_text(tokenizer):
    text = "  naïve\u00a0café ,\r\n\t'tis n't — 你好 👩‍👩‍👧 e\u0301 \u200b\x00 . ?  "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_heldout_text_is_not_in_train(rows):
    assert {row["split"] for row in rows if row["book"] == "Persuasion"} == {"heldout"}
    train = {row["text"] for row in rows if row["split"] == "train"}
    assert not [row for row in rows if row["split"] == "heldout" and row["text"] in train]
    for author in ("H. G. Wells", "Jules Verne", "Charles Dickens"):
        splits = [row["split"] for row in rows if row["author"] == author]
        assert splits == sorted(splits, reverse=True), "the held-out part is the book's end"
        lengths = {
            split: sum(len(r["text"]) for r in rows if (r["author"], r["split"]) == (author, split))
            for split in ("train", "heldout")
        }
        assert 0.09 < lengths["heldout"] / sum(lengths.values()) < 0.11


def test_shipped_model_predicts_heldout_text_and_an_untrained_one_does_not(model, tokenizer, rows):
    texts = persuasion_slice(rows)
    assert bits_per_character(model, tokenizer, texts) < BITS_PER_CHARACTER_BOUND
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()
    assert bits_per_character(untrained, tokenizer, texts[:3]) > BITS_PER_CHARACTER_BOUND
