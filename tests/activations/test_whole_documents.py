"""Documents in contexts of their own."""

import pytest
import torch as t

from dictionary_learning_ext.activations.whole_documents import WholeDocuments
from dictionary_learning_ext.errors import ConfigError, TextError

DOCUMENTS = ["The cat sat on the mat.", "", "It was the best of times, it was the worst."]


def contexts(stream, n):
    """All ids without their padding, context by context; batches of n."""
    found = []
    while True:
        try:
            ids_BL, mask_BL = stream.next_batch(n)
        except StopIteration:
            return found
        assert 1 <= len(ids_BL) <= n
        assert (mask_BL.diff(dim=1) <= 0).all()  # padding is on the right
        assert (ids_BL[mask_BL == 0] == stream._tokenizer.pad_token_id).all()
        assert ids_BL.dtype == mask_BL.dtype == t.int64
        found += [row[mask == 1].tolist() for row, mask in zip(ids_BL, mask_BL, strict=True)]


@pytest.mark.parametrize("n", [1, 2, 100])
def test_every_token_is_there_and_no_document_meets_another(tokenizer, n):
    expected = []
    for document in DOCUMENTS:
        ids = tokenizer.encode(document, add_special_tokens=False)
        expected += [ids[start : start + 8] for start in range(0, len(ids), 8)]
    assert contexts(WholeDocuments(iter(DOCUMENTS), tokenizer, 8), n) == expected


def test_documents_are_read_as_they_are_needed(tokenizer):
    documents = iter(DOCUMENTS)
    WholeDocuments(documents, tokenizer, 100).next_batch(1)
    assert len(list(documents)) == 2


def test_special_tokens_are_those_of_the_training(tokenizer):
    class WithBos:
        pad_token_id = 1

        def __call__(self, text, add_special_tokens, **options):
            ids = tokenizer(text, **options)["input_ids"]
            return {"input_ids": [0, *ids] if add_special_tokens else ids}

    packed, truncated = (
        contexts(WholeDocuments(iter(DOCUMENTS[:1]), WithBos(), 100, packing=packing), 1)
        for packing in ("pack", "truncate")
    )
    assert truncated[0] == [0, *packed[0]]


def test_mistakes_are_named(tokenizer):
    with pytest.raises(ConfigError, match="ctx_len=0"):
        WholeDocuments(iter([]), tokenizer, 0)
    with pytest.raises(TextError, match="document 2 holds half of a surrogate pair"):
        WholeDocuments(iter(["a", "b\ud800"]), tokenizer, 4).next_batch(2)
