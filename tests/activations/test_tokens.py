"""Contexts of tokens against the tokenizer itself, resumed at any place; and texts that are too short."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import DOCUMENTS, error_of, write_jsonl
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations import tokens
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import (
    ContextStream,
    SharedTokenizer,
    require_held_out,
    whole_documents,
)
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ConfigError


def contexts_of(documents, tokenizer, ctx_len=8, n=3, **options):
    """Ids and masks of all contexts, read n at a time."""
    stream = ContextStream(iter(documents), tokenizer, ctx_len, **options)
    ids, masks = [], []
    for input_ids, mask in stream.batches(n):
        assert input_ids.shape == mask.shape == (len(mask), ctx_len)
        assert input_ids.dtype == mask.dtype == torch.int64
        assert 1 <= len(mask) <= n
        ids += input_ids.tolist()
        masks += mask.tolist()
    return ids, masks


def packed(documents, tokenizer, ctx_len):
    tokens = [
        token
        for document in documents
        for token in [*tokenizer.encode(document, add_special_tokens=False), 0]
    ]
    return [tokens[at : at + ctx_len] for at in range(0, len(tokens) - ctx_len + 1, ctx_len)]


@settings(max_examples=20, deadline=None)
@given(
    documents=st.lists(st.text(min_size=1, max_size=60), max_size=70),
    ctx_len=st.integers(1, 40),
    n=st.integers(1, 9),
)
def test_packing_is_the_documents_with_end_of_text_between_cut_evenly(
    tokenizer, documents, ctx_len, n
):
    ids, masks = contexts_of(documents, tokenizer, ctx_len, n)
    assert ids == packed(documents, tokenizer, ctx_len)
    assert all(set(mask) == {1} for mask in masks)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncating_is_what_the_tokenizer_makes_of_each_document_padded_on_the_right(
    tokenizer, side, shared
):
    documents = ["a", DOCUMENTS[0], "It was", "the cat sat on the mat " * 9]
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side=side,
        truncation_side=side,
    )
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", 0)],
    )
    limit = {"truncation": True, "max_length": 12, "padding": "max_length"}
    given = SharedTokenizer(own, 1) if shared else own
    ids, masks = contexts_of(documents, given, 12, packing="truncate")
    own.truncation_side = "right"
    expected = own(documents, **limit, padding_side="right")
    assert ids == expected["input_ids"]
    assert masks == expected["attention_mask"]
    assert ids[1][0] == 0


def test_a_long_document_is_packed_in_pieces_without_a_seam(tokenizer):
    document = "Call me Ishmael. " * 12_000
    ids, _ = contexts_of([document, "end"], tokenizer, 128, n=64)
    assert ids == packed([document, "end"], tokenizer, 128)


def test_a_huge_document_is_tokenised_in_bounded_memory(tokenizer):
    document = "the cat sat on the mat " * 200_000  # 4.6 MB
    stream = ContextStream(iter([document]), tokenizer, 128)
    stream.next_batch(1)
    assert sum(map(len, stream._tokens)) < 1_100_000


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_contexts_resume_at_every_place(tmp_path, tokenizer, packing, monkeypatch):
    monkeypatch.setattr(tokens, "_PIECE", 40)
    path = write_jsonl(tmp_path / "a.jsonl", [d * (n % 5 + 1) for n, d in enumerate(DOCUMENTS)])

    def make():
        text = open_text(str(path), passes=2)
        return ContextStream(text, tokenizer, 30, packing=packing)

    def rest(stream):
        return [row for ids, _ in stream.batches(5) for row in ids.tolist()]

    whole = rest(make())
    stream = make()
    pieces = set()
    for place in range(0, len(whole) + 1, 4):  # 32 too, where documents are read ahead to
        state = json.loads(json.dumps(stream.state_dict()))
        pieces.add(state["pieces"])
        other = make()
        other.load_state_dict(state)
        assert rest(other) == whole[place:]
        if place < len(whole):
            stream.next_batch(4)
    # 32 documents are read ahead. Only a packed one is cut into several pieces.
    assert (max(pieces) > 32) == (packing == "pack")


def test_contexts_of_a_generator_can_be_read_but_not_resumed(tokenizer):
    stream = ContextStream((document for document in DOCUMENTS), tokenizer, 8)
    assert len(stream.next_batch(2)[0]) == 2
    assert "open_text" in error_of(stream.state_dict)


@pytest.fixture
def without_end(tokenizer):
    """A tokenizer without an end-of-text token."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)


@pytest.mark.parametrize(
    ("packing", "said"), [("squeeze", "packing='squeeze'"), ("pack", "text_packing='truncate'")]
)
def test_a_packing_that_can_not_be_is_refused(packing, said, without_end):
    """Packing needs an end-of-text token."""
    stream = error_of(lambda: ContextStream(iter([]), without_end, 8, packing=packing), ConfigError)
    assert said in stream


# Documents in contexts of their own.


SHORT = ["The cat sat on the mat.", "", "It was the best of times, it was the worst."]


def unpadded(documents, tokenizer, ctx_len, n=1, **options):
    """All ids without their padding, context by context; batches of n."""
    found = []
    for ids_BL, mask_BL in whole_documents(iter(documents), tokenizer, ctx_len, n, **options):
        assert 1 <= len(ids_BL) <= n
        assert (mask_BL.diff(dim=1) <= 0).all()  # padding is on the right
        assert (ids_BL[mask_BL == 0] == tokenizer.pad_token_id).all()
        assert ids_BL.dtype == mask_BL.dtype == torch.int64
        found += [row[mask == 1].tolist() for row, mask in zip(ids_BL, mask_BL, strict=True)]
    return found


@pytest.mark.parametrize("n", [1, 2, 100])
def test_every_token_is_there_and_no_document_meets_another(tokenizer, n):
    expected = []
    for document in SHORT:
        ids = tokenizer.encode(document, add_special_tokens=False)
        expected += [ids[start : start + 8] for start in range(0, len(ids), 8)]
    assert unpadded(SHORT, tokenizer, 8, n) == expected


def test_documents_are_read_as_they_are_needed(tokenizer):
    documents = iter(SHORT)
    next(whole_documents(documents, tokenizer, 100, 1))
    assert len(list(documents)) == 2


def test_special_tokens_are_those_of_the_training(tokenizer):
    class WithBos:
        pad_token_id = 1

        def __call__(self, text, add_special_tokens, **options):
            ids = tokenizer(text, **options)["input_ids"]
            return {"input_ids": [0, *ids] if add_special_tokens else ids}

    packed, truncated = (
        unpadded(SHORT[:1], WithBos(), 100, packing=packing) for packing in ("pack", "truncate")
    )
    assert truncated[0] == [0, *packed[0]]


# A text that is too short is refused before the run starts, with the number that is enough.


WORDS = "the cat sat on the mat and the dog lay by the door "


def documents(n):
    return [WORDS[: 7 + 5 * i % 40] + f"{i}." for i in range(n)]


@pytest.fixture
def run_of(tmp_path):
    def make(n=45, **changes):
        path = write_jsonl(tmp_path / "a.jsonl", documents(n))
        defaults = {"data": str(path), "ctx_len": 16, "batch_size": 32, "n_ctxs": 8}
        return RunConfig(**(defaults | {"steps": 100, "eval_tokens": 0} | changes))

    return make


@pytest.fixture
def require(tiny_lm):
    return lambda run: require_held_out(run, tiny_lm.tokenizer)


@pytest.mark.parametrize(
    ("changes", "there", "needed"),
    [
        ({"n": 19, "eval_tokens": 100}, " 0 tokens", "100"),
        ({"n": 40, "eval_tokens": 10_000_000}, " tokens", "2,048"),
    ],
)
def test_too_few_documents_are_refused(changes, there, needed, run_of, require):
    message = error_of(lambda: require(run_of(steps=2, **changes)))
    assert there in message
    assert needed in message
    require(run_of(steps=2, **changes | {"n": 2500}))


def test_counting_ends_where_the_text_is_enough(run_of, require, tmp_path):
    path = write_jsonl(tmp_path / "long.jsonl", documents(2000))
    path.write_text(path.read_text() + "no JSON\n")
    require(run_of(data=str(path), eval_tokens=100))
    assert "line 2001 " in error_of(
        lambda: require(run_of(data=str(path), eval_tokens=2048, ctx_len=128))
    )
