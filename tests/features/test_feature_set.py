"""What a user sees of features: contexts, logits, search, cards."""

import re

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext import features_of
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.features.directions import LogitLens

DOCUMENTS = [
    "The cat sat on the mat, and the dog lay by the door.",
    "It was the best of times, it was the worst of times. <b>the & cat</b>\n",
]
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def features(tiny_lm):
    t.manual_seed(0)
    return features_of(AutoEncoderTopK(16, 24, 3), tiny_lm, DOCUMENTS, hook=HOOK, ctx_len=16)


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
    logits_V = LogitLens(tiny_lm).logits(features.directions[17:18])[0]
    raised, lowered = features.logits(17, 3)
    assert [logit for _, logit in raised] == logits_V.sort(descending=True).values[:3].tolist()
    assert [logit for _, logit in lowered] == logits_V.sort().values[:3].tolist()
    assert raised[0].token == tiny_lm.tokenizer.decode([int(logits_V.argmax())])
    assert repr(features[17].logits(3)).startswith(
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


def test_a_card_shows_the_contexts_and_hostile_text_stays_text(features, strong):
    html = features[strong]._repr_html_()
    assert f"feature {strong}: selected at {features.density[strong]:.3%}" in html
    words = re.sub(r"<[^>]*>", "", html)
    for one in features.top(strong, 8):
        assert f"{one.activation:.3g}" in words
    assert "<b>the" not in html
    assert html.count("underline") == len(features.top(strong, 8))
    everything = "".join(one._repr_html_() for one in features)
    assert "&lt;" in everything


def test_a_feature_says_what_its_card_shows(features, strong):
    lines = repr(features[strong]).splitlines()
    assert lines[0] == features[strong]._heading()
    assert lines[1] == repr(features.top(strong)[0])
    assert lines[-2].startswith("raises")


def test_a_feature_that_was_never_selected_says_so(tiny_lm):
    t.manual_seed(0)
    few = features_of(AutoEncoderTopK(16, 24, 1), tiny_lm, "The cat", hook=HOOK)
    never = int((few.density == 0).nonzero()[0])
    assert few[never].fires_on == []
    assert "never selected" in repr(few[never])
    assert "never selected" in few[never]._repr_html_()


def test_the_table_lists_the_most_readable_features_first(features):
    html = features._repr_html_()
    numbers = [int(number) for number in re.findall(r"<tr><td>(\d+)</td>", html)]
    assert numbers == features.ranking[:20]
    assert repr(features) in html
    assert f"24 features at {HOOK}" in repr(features)


def test_it_is_a_sequence_of_features(features):
    assert [one.number for one in features] == list(range(24))
    assert features[3].density == float(features.density[3])
    assert features[t.tensor(3)].number == 3


def test_a_card_without_logits_says_why(features, strong, monkeypatch):
    monkeypatch.setattr(features.language_model._model, "get_output_embeddings", lambda: None)
    monkeypatch.delitem(features.__dict__, "_lens", raising=False)
    assert "has no unembedding" in repr(features[strong])
    assert "has no unembedding" in features[strong]._repr_html_()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda features: features[24], "feature 24: expected a whole number from 0 to 23"),
        (lambda features: features.top(-1), "feature -1: expected a whole number from 0 to 23"),
        (lambda features: features.logits("a"), "feature 'a': expected a whole number"),
        (lambda features: features.top(3, 9), r"n=9: expected 1 to 8, .*contexts=9$"),
        (lambda features: features.logits(3, 305), "n=305: expected 1 to 304"),
        (lambda features: features.search("catdog"), "'catdog' is not one token .* search for one"),
    ],
)
def test_mistakes_are_one_line(features, ask, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(features)
    assert "\n" not in str(caught.value)
