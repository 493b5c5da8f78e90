"""Contexts of tokens against the tokenizer itself, and resuming them at any place."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import DOCUMENTS, error_of, write_jsonl
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream, Share
from dictionary_learning_ext.errors import ConfigError


def contexts_of(
    documents: list[str], tokenizer: Any, ctx_len: int = 8, n: int = 3, **options: Any
) -> tuple[list[list[int]], list[list[int]]]:
    stream = ContextStream(iter(documents), tokenizer, ctx_len, **options)
    ids: list[list[int]] = []
    masks: list[list[int]] = []
    for input_ids, mask in batches_of(stream, n):
        assert input_ids.shape == mask.shape == (len(mask), ctx_len)
        assert input_ids.dtype == mask.dtype == torch.int64
        assert 1 <= len(mask) <= n
        ids += input_ids.tolist()
        masks += mask.tolist()
    return ids, masks


def batches_of(stream: ContextStream, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        try:
            yield stream.next_batch(n)
        except StopIteration:
            return


def packed(documents: list[str], tokenizer: Any, ctx_len: int) -> list[list[int]]:
    tokens = [
        token
        for document in documents
        for token in [*tokenizer.encode(document, add_special_tokens=False), 0]
    ]
    return [tokens[at : at + ctx_len] for at in range(0, len(tokens) - ctx_len + 1, ctx_len)]


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.text(min_size=1, max_size=60), max_size=70),
    ctx_len=st.integers(1, 40),
    n=st.integers(1, 9),
)
def test_packing_is_the_documents_with_end_of_text_between_cut_evenly(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], ctx_len: int, n: int
):
    ids, masks = contexts_of(documents, tokenizer, ctx_len, n)
    assert ids == packed(documents, tokenizer, ctx_len)
    assert all(set(mask) == {1} for mask in masks)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncating_is_what_the_tokenizer_makes_of_each_document_padded_on_the_right(
    tokenizer: PreTrainedTokenizerFast, side: str
):
    documents = ["a", DOCUMENTS[0], "It was", "the cat sat on the mat " * 9]
    own: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side=side,
    )
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", 0)],
    )
    limit: dict[str, Any] = {"truncation": True, "max_length": 12, "padding": "max_length"}
    expected = own(documents, **limit, padding_side="right")
    ids, masks = contexts_of(documents, own, 12, packing="truncate")
    assert ids == expected["input_ids"]
    assert masks == expected["attention_mask"]
    assert ids[1][0] == 0


def test_a_long_document_is_packed_in_pieces_without_a_seam(tokenizer: PreTrainedTokenizerFast):
    document = "Call me Ishmael. " * 12_000
    ids, _ = contexts_of([document, "end"], tokenizer, 128, n=64)
    assert ids == packed([document, "end"], tokenizer, 128)


def test_a_huge_document_is_tokenised_in_bounded_memory(tokenizer: PreTrainedTokenizerFast):
    document = "the cat sat on the mat " * 200_000  # 4.6 MB
    stream = ContextStream(iter([document]), tokenizer, 128)
    stream.next_batch(1)
    held = sum(len(tokens) for tokens in stream._tokens)
    assert held < 1_100_000


def test_no_warning_of_long_sequences(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, monkeypatch: Any
):
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        contexts_of(["the cat sat on the mat " * 99], tokenizer)
    assert not caplog.records


def test_counters_count_documents_and_tokens(tokenizer: PreTrainedTokenizerFast):
    stream = ContextStream(iter(DOCUMENTS[:3]), tokenizer, 4)
    tokens = [len(tokenizer.encode(document)) + 1 for document in DOCUMENTS[:3]]
    stream.next_batch(2)
    assert (stream.tokens_read, stream.documents_read) == (8, 0)
    list(batches_of(stream, 5))
    assert (stream.tokens_read, stream.documents_read) == (sum(tokens), 3)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_contexts_resume_at_every_place(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, packing: Any
):
    path = write_jsonl(tmp_path / "a.jsonl", [d * (n % 5 + 1) for n, d in enumerate(DOCUMENTS)])

    def make() -> ContextStream:
        text = open_text(str(path), passes=2)
        return ContextStream(text, tokenizer, 30, packing=packing, piece_characters=40)

    def rest(stream: ContextStream) -> list[list[int]]:
        return [row for ids, _ in batches_of(stream, 5) for row in ids.tolist()]

    whole = rest(make())
    stream = make()
    pieces = set()
    for place in range(0, len(whole) + 1, 4):  # 32 too, where documents are read ahead to
        state = json.loads(json.dumps(stream.state_dict()))
        pieces.add(state["pieces"])
        other = make()
        other.load_state_dict(state)
        assert other.tokens_read == stream.tokens_read
        assert rest(other) == whole[place:]
        if place < len(whole):
            stream.next_batch(4)
    # 32 documents are read ahead. Only a packed one is cut into several pieces.
    assert (max(pieces) > 32) == (packing == "pack")


def test_contexts_of_a_generator_can_be_read_but_not_resumed(tokenizer: PreTrainedTokenizerFast):
    stream = ContextStream((document for document in DOCUMENTS), tokenizer, 8)
    assert len(stream.next_batch(2)[0]) == 2
    assert "open_text" in error_of(stream.state_dict)


@pytest.mark.parametrize("options", [{"ctx_len": 0}, {"packing": "squeeze"}])
def test_impossible_contexts_are_refused(tokenizer: Any, options: dict[str, Any]):
    given: dict[str, Any] = {"ctx_len": 8} | options
    error_of(lambda: ContextStream(iter([]), tokenizer, **given), ConfigError)


def test_packing_needs_an_end_of_text_token(tokenizer: PreTrainedTokenizerFast):
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert "'truncate'" in error_of(lambda: ContextStream(iter([]), own, 8), ConfigError)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_several_processes_are_the_whole_and_resume(packing, count, tokenizer):
    """Process r has contexts r, r + N, …, however many it asks for at once."""
    whole, _ = contexts_of(DOCUMENTS, tokenizer, packing=packing)
    shares = [
        contexts_of(DOCUMENTS, tokenizer, n=2 + rank, packing=packing, share=Share(rank, count))[0]
        for rank in range(count)
    ]
    assert shares == [whole[rank::count] for rank in range(count)]
    assert min(map(len, shares)) >= 3
    share = Share(1, count)
    stream = ContextStream(open_text("embedded"), tokenizer, 8, packing=packing, share=share)
    stream.next_batch(5)
    state = json.loads(json.dumps(stream.state_dict()))
    expected, _ = stream.next_batch(4)
    again = ContextStream(open_text("embedded"), tokenizer, 8, packing=packing, share=share)
    again.load_state_dict(state)
    assert torch.equal(again.next_batch(4)[0], expected)
