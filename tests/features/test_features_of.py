"""Features in Python, against the SAE's activations at every token, computed densely."""

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext import features_of, find_hook, load_dictionary, open_text
from dictionary_learning_ext.activations.hook_points import read_residual
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    LanguageModelError,
    TextError,
    UserError,
)

HOOK = "blocks.0.hook_resid_post"
DOCUMENTS = [
    "The cat sat on the mat, and the dog lay by the door.",
    "It was the best of times.",
    "Call me Ishmael. Some years ago I thought I would sail about a little. " * 3,
]


@t.no_grad()
def dense(lm, sae, documents, ctx_len, hook=HOOK):
    """The ids of each context, and f at each of its tokens, (L, F)."""
    point, contexts = find_hook(lm, hook), []
    for document in documents:
        ids = lm.tokenizer.encode(document, add_special_tokens=False)
        for start in range(0, len(ids), ctx_len):
            ids_BL = t.tensor([ids[start : start + ctx_len]])
            x_BLD = read_residual(lm, point, ids_BL, t.ones_like(ids_BL))
            contexts.append((ids_BL[0].tolist(), sae.encode(x_BLD[0])))
    return contexts


def require_equal(features, contexts, lm, n):
    """Compare with the activations at every token."""
    f_NF = t.cat([f_LF for _, f_LF in contexts])
    assert features.tokens == len(f_NF)
    assert t.allclose(features.density, (f_NF != 0).double().mean(0))
    for i in range(len(features)):
        found = features.top(i, n)
        strongest = sorted(
            (float(f_LF[:, i][f_LF[:, i] != 0].max()) for _, f_LF in contexts if f_LF[:, i].any()),
            reverse=True,
        )
        assert [one.activation for one in found] == pytest.approx(strongest[:n], abs=1e-4)
        for one in found:
            ids, f_LF = contexts[one.context]
            start = one.position - one.at
            shown = slice(start, start + len(one.ids))
            assert one.ids == ids[shown]
            assert one.activations == pytest.approx(f_LF[shown, i].tolist(), abs=1e-4)
            assert one.activation == one.activations[one.at]
            assert one.token == one.tokens[one.at] == lm.tokenizer.decode([ids[one.position]])
            assert start == max(0, one.position - 16)
            assert len(one.ids) == min(len(ids), one.position + 9) - start


@pytest.fixture(scope="module")
def folder(trained):
    return trained / "vsae"


@pytest.fixture(scope="module")
def features(folder, tiny_lm):
    return features_of(folder, tiny_lm, DOCUMENTS)


def test_a_list_of_texts_is_measured_at_every_token(features, folder, tiny_lm):
    sae, _ = load_dictionary(folder)
    require_equal(features, dense(tiny_lm, sae, DOCUMENTS, 32), tiny_lm, 8)


def test_a_dictionary_is_measured_where_it_is_told_to(tiny_lm):
    t.manual_seed(0)
    sae = AutoEncoderTopK(16, 24, 3)
    hook = "blocks.1.hook_mlp_out"
    found = features_of(sae, tiny_lm, DOCUMENTS[0], hook=hook, ctx_len=7, contexts=2)
    require_equal(found, dense(tiny_lm, sae, DOCUMENTS[:1], 7, hook), tiny_lm, 2)
    named = features_of(sae, tiny_lm, DOCUMENTS[0], hook=find_hook(tiny_lm, hook), ctx_len=7)
    assert named.density.equal(found.density)


def test_the_embedded_model_is_measured_by_its_name():
    t.manual_seed(0)
    sae = AutoEncoderTopK(128, 48, 4)
    found = features_of(sae, "embedded", DOCUMENTS, hook=HOOK)
    assert found.sinks is None
    lm = found.language_model
    require_equal(found, dense(lm, sae, DOCUMENTS, 128), lm, 3)


def test_a_file_is_read_whole(folder, tiny_lm, tmp_path):
    """And so are a folder and a stream of documents, though every 20th document is held out."""
    documents = [f"{i} cats sat on the mat" for i in range(45)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": "{one}"}}\n' for one in documents))
    expected = features_of(folder, tiny_lm, documents)
    for text in (path, str(path), tmp_path):
        found = features_of(folder, tiny_lm, text)
        assert found.tokens == expected.tokens
        assert found.density.equal(expected.density)
    stream = features_of(folder, tiny_lm, open_text(str(path), split="heldout"))
    assert stream.density.equal(features_of(folder, tiny_lm, documents[19::20]).density)


def test_no_text_is_the_held_out_text_in_training_contexts(folder, tiny_lm, tiny_lm_dir, text):
    found = features_of(folder, tokens=500)
    tokenizer = tiny_lm.tokenizer
    ids = []
    for document in open_text(text, split="heldout"):
        ids += [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
    ids_BL = t.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    x_BLD = read_residual(tiny_lm, find_hook(tiny_lm, HOOK), ids_BL, t.ones_like(ids_BL))
    f_NF = load_dictionary(folder)[0].encode(x_BLD.flatten(0, 1)[:500])
    assert found.tokens == min(500, ids_BL.numel())
    assert t.allclose(found.density, (f_NF != 0).double().mean(0))
    assert features_of(str(folder), str(tiny_lm_dir), tokens=500).density.equal(found.density)


def test_the_limit_of_tokens_holds(folder, tiny_lm):
    assert features_of(folder, tiny_lm, DOCUMENTS, tokens=11).tokens == 11


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text": None}, TextError, "no text: a dictionary doesn't say"),
        ({"text": ""}, TextError, "no token to measure on"),
        ({"text": []}, TextError, "no token to measure on"),
        ({"text": ["a", 3]}, TextError, "document 2 of the text is a int: expected a str"),
        ({"text": 3}, TextError, "text is a int: expected a text"),
        ({"text": "missing.txt"}, TextError, r"no file 'missing.txt'"),
        ({"text": "jane/books"}, TextError, r"use open_text\('jane/books'\)"),
        ({"lm": None}, ConfigError, "give lm and hook, or the run folder"),
        ({"lm": 3}, ConfigError, "lm is a int: expected an nnsight LanguageModel"),
        ({"hook": None}, ConfigError, "give lm and hook, or the run folder"),
        ({"hook": "blocks.9.hook_resid_post"}, LanguageModelError, "there is no hook point"),
        ({"sae": AutoEncoderTopK(8, 24, 2)}, ConfigError, "the SAE takes 8 dimensions, but .* 16"),
        ({"sae": (1, 2)}, ConfigError, "sae is a tuple: expected a dictionary or a run folder"),
        ({"sae": "runs/none"}, CheckpointError, "runs/none: no such folder"),
        ({"contexts": 0}, ConfigError, "contexts=0: expected at least 1"),
        ({"tokens": 0}, ConfigError, "tokens=0: expected at least 1"),
        ({"ctx_len": 0}, ConfigError, "ctx_len=0: expected at least 1"),
        ({"ctx_len": 129}, ConfigError, "ctx_len=129: expected at most 128"),
    ],
)
def test_mistakes_are_one_line(tiny_lm, changes, error, message):
    sae = AutoEncoderTopK(16, 24, 3)
    given = {"sae": sae, "lm": tiny_lm, "text": DOCUMENTS, "hook": HOOK} | changes
    with pytest.raises(error, match=message) as caught:
        features_of(**given)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
