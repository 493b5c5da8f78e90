"""Features in Python, against the SAE's activations at every token, computed densely; and what a user
sees of them: contexts, logits, search, cards."""

import re
import shutil

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from nnsight import LanguageModel

from dictionary_learning_ext import features_of, find_hook, load_dictionary, open_text
from dictionary_learning_ext.activations.hook_points import read_residual
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    LanguageModelError,
    TextError,
)
from dictionary_learning_ext.features.directions import LogitLens

HOOK = "blocks.0.hook_resid_post"
MIDDLE = "blocks.1.hook_resid_post"  # where the SAEs of `trained` read


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
    assert t.allclose(features.firing_rate, (f_NF != 0).double().mean(0))
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
def folder(trained, tmp_path_factory):
    """A copy: its codes are kept there."""
    return shutil.copytree(trained / "vsae", tmp_path_factory.mktemp("features_of") / "vsae")


def test_a_list_of_texts_is_measured_at_every_token(folder, tiny_lm):
    sae, _ = load_dictionary(folder)
    found = features_of(folder, tiny_lm, DOCUMENTS)
    assert features_of(folder, tiny_lm, DOCUMENTS, tokens=11).tokens == 11
    require_equal(found, dense(tiny_lm, sae, DOCUMENTS, 32, MIDDLE), tiny_lm, 8)


def test_a_dictionary_is_measured_where_it_is_told_to(tiny_lm):
    t.manual_seed(0)
    sae = AutoEncoderTopK(16, 24, 3)
    hook = "blocks.1.hook_mlp_out"
    found = features_of(sae, tiny_lm, DOCUMENTS[0], hook=hook, ctx_len=7, contexts=2)
    require_equal(found, dense(tiny_lm, sae, DOCUMENTS[:1], 7, hook), tiny_lm, 2)
    assert found.language_model is tiny_lm
    named = features_of(sae, tiny_lm, DOCUMENTS[0], hook=find_hook(tiny_lm, hook), ctx_len=7)
    assert named.firing_rate.equal(found.firing_rate)
    kept = [features.strongest.ids_FT.shape[1] for features in (found, named)]
    assert kept == [2, 8], "contexts of each feature"


def test_the_embedded_model_is_measured_by_its_name():
    t.manual_seed(0)
    sae = AutoEncoderTopK(128, 48, 4)
    found = features_of(sae, "embedded", DOCUMENTS, hook=HOOK)
    assert found.sinks is None
    lm = found.language_model
    assert isinstance(lm, LanguageModel)
    assert found.hook_point.submodule is lm.gpt_neox.layers[int(HOOK.split(".")[1])]  # pyright: ignore
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
        assert found.firing_rate.equal(expected.firing_rate)
    stream = features_of(folder, tiny_lm, open_text(str(path), split="heldout"))
    assert stream.firing_rate.equal(features_of(folder, tiny_lm, documents[19::20]).firing_rate)


def test_no_text_is_the_held_out_text_in_training_contexts(folder, tiny_lm, tiny_lm_dir, text):
    found = features_of(folder, tokens=500)
    tokenizer = tiny_lm.tokenizer
    ids = []
    for document in open_text(text, split="heldout"):
        ids += [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
    ids_BL = t.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    x_BLD = read_residual(tiny_lm, find_hook(tiny_lm, MIDDLE), ids_BL, t.ones_like(ids_BL))
    f_NF = load_dictionary(folder)[0].encode(x_BLD.flatten(0, 1)[:500])
    assert found.tokens == min(500, ids_BL.numel())
    assert t.allclose(found.firing_rate, (f_NF != 0).double().mean(0))
    assert features_of(str(folder), str(tiny_lm_dir), tokens=500).firing_rate.equal(
        found.firing_rate
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"text": None}, TextError, ""),
        ({"text": []}, TextError, ""),
        ({"text": "missing.txt"}, TextError, "missing.txt"),
        ({"text": "jane/books"}, TextError, "'jane/books'"),
        ({"lm": None}, ConfigError, "lm"),
        ({"lm": 3}, ConfigError, "int"),
        ({"hook": "blocks.9.hook_resid_post"}, LanguageModelError, "blocks.9"),
        ({"sae": AutoEncoderTopK(8, 24, 2)}, CheckpointError, "8.*16"),
        ({"sae": (1, 2)}, ConfigError, "tuple"),
        ({"sae": "runs/none"}, CheckpointError, "runs/none"),
        ({"contexts": 0}, ConfigError, "contexts=0"),
        ({"tokens": 0}, ConfigError, "tokens=0"),
        ({"ctx_len": 129}, ConfigError, "ctx_len=129.*128"),
    ],
)
def test_mistakes_are_one_line(tiny_lm, changes, error, named):
    sae = AutoEncoderTopK(16, 24, 3)
    given = {"sae": sae, "lm": tiny_lm, "text": DOCUMENTS, "hook": HOOK} | changes
    with pytest.raises(error, match=f"^.*{named}.*$"):
        features_of(**given)


# --- what a user sees

SHOWN = [
    "The cat sat on the mat, and the dog lay by the door.",
    "It was the best of times, it was the worst of times. <b>the & cat</b>\n",
]


@pytest.fixture(scope="module")
def features(tiny_lm):
    t.manual_seed(0)
    return features_of(AutoEncoderTopK(16, 24, 3), tiny_lm, SHOWN, hook=HOOK, ctx_len=16)


@pytest.fixture(scope="module")
def strong(features):
    """The feature with the largest activation."""
    return int(features.largest.nan_to_num(-1.0).argmax())


def test_a_context_reads_as_text_with_its_token_marked(features, strong):
    first, *_ = found = features.top(strong)
    line = repr(first)
    assert line[:10] == f"{first.activation:8.3g}  "
    assert line[10:].replace("«", "").replace("»", "") == "".join(first.tokens).replace("\n", "↵")
    assert "<|pad|>" not in line
    assert f"«{first.token}»" in line
    assert repr(found).splitlines() == [repr(one) for one in found]


def test_logits_are_the_extremes_of_the_logit_lens(features, tiny_lm):
    logits_V = LogitLens(tiny_lm._module).logits(features.directions[17:18])[0]
    raised, lowered = features.logits(17, 3)
    assert [logit for _, logit in raised] == logits_V.sort(descending=True).values[:3].tolist()
    assert [logit for _, logit in lowered] == logits_V.sort().values[:3].tolist()
    assert raised[0].token == tiny_lm.tokenizer.decode([int(logits_V.argmax())])
    assert repr(features.logits(17, 3)).startswith(
        f"raises  {raised[0].token!r} {raised[0].logit:+.3g}"
    )


def test_search_finds_features_by_the_tokens_of_their_strongest_contexts(features):
    shares = {}
    for i in range(len(features)):
        tokens = [one.token.strip().lower() for one in features.top(i, 8)]
        if "the" in tokens:
            shares[i] = tokens.count("the") / len(tokens)
    assert len(shares) > 1
    found = features.search(" The")
    assert set(found) == set(shares)
    keys = [(-shares[i], -float(features.largest[i])) for i in found]
    assert keys == sorted(keys)
    assert features.search("q") == []


def test_a_feature_shows_itself_as_text_and_as_a_card_and_hostile_text_stays_text(features, strong):
    lines = repr(features[strong]).splitlines()
    assert lines[0].startswith(f"feature {strong}: selected at {features.firing_rate[strong]:.3%}")
    assert lines[1] == repr(features.top(strong)[0])
    assert lines[-2].startswith("raises")
    html = features[strong]._repr_html_()
    assert lines[0] in html
    words = re.sub(r"<[^>]*>", "", html)
    for one in features.top(strong, 8):
        assert f"{one.activation:.3g}" in words
    assert html.count("underline") == len(features.top(strong, 8))
    everything = "".join(one._repr_html_() for one in features)
    assert "<b>the" not in everything
    assert "&lt;" in everything


def test_features_have_the_error_share_of_their_codes(features):
    assert features.error_share.tolist() == features.codes.error_share_F.tolist()
    assert [one.error_share for one in features] == features.error_share.tolist()


def test_the_table_lists_the_most_readable_features_first(features):
    html = features._repr_html_()
    numbers = [int(number) for number in re.findall(r"<tr><td>(\d+)</td>", html)]
    assert numbers == features.ranking[:20]
    assert repr(features) in html
    assert f"24 features at {HOOK}" in repr(features)
    assert [one.number for one in features] == list(range(24))
    assert features[t.tensor(3)].firing_rate == float(features.firing_rate[3])
