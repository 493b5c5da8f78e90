"""The losses against upstream's, and the positions at which nothing is replaced."""

import math
from typing import Any

import pytest
import torch as t
from buffers import DOCUMENTS
from dictionary_learning.evaluation import loss_recovered
from planted_sinks import with_sinks

from dictionary_learning_ext import VariationalTopKAutoEncoder, find_hook
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.errors import NonFiniteError
from dictionary_learning_ext.evaluation.language_model_losses import language_model_losses


def losses_of(lm, saes, documents=DOCUMENTS, hook="blocks.1.hook_resid_post", ctx_len=16, **rules):
    point = find_hook(lm, hook)
    reader = ActivationReader(lm, point.submodule, point.io, **rules)
    contexts = ContextStream(iter(documents), lm.tokenizer, ctx_len, packing="truncate")
    return language_model_losses(saes, reader, contexts)


def sae_of(seed=0):
    t.manual_seed(seed)
    return VariationalTopKAutoEncoder(16, 32, 4)


class Exact(t.nn.Linear):
    """Reconstructs whatever it is given."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
def test_where_nothing_is_left_out_they_are_upstreams(lm_of, family, kind):
    lm, sae = lm_of(family), sae_of()
    hook = find_hook(lm, f"blocks.1.hook_resid_{kind}")
    documents = [*DOCUMENTS[:5], "the cat"]  # of several lengths, so some are padded
    (losses,) = losses_of(lm, [sae], documents, hook.name)
    theirs = loss_recovered(documents, lm, hook.submodule, sae, max_len=16, io=hook.io)
    expected = [loss.item() for loss in theirs]
    assert [losses.original, losses.reconstructed, losses.zero] == pytest.approx(expected, rel=1e-5)
    assert losses.reconstructed != pytest.approx(losses.original, rel=1e-5)
    assert losses.left_alone == 0
    lengths = [min(16, len(lm.tokenizer.encode(text))) for text in documents]
    assert losses.positions == sum(lengths)
    assert losses.tokens == sum(lengths) - len(documents)


def test_each_sae_gets_the_losses_that_it_has_alone(tiny_lm):
    saes = [sae_of(0), sae_of(1)]
    both = losses_of(tiny_lm, saes)
    assert both == [losses_of(tiny_lm, [sae])[0] for sae in saes]
    assert both[0].reconstructed != both[1].reconstructed


def test_more_documents_than_fit_at_once_are_weighted_by_their_tokens(tiny_lm):
    documents = DOCUMENTS[:20] + ["the cat sat"] * 20
    (whole,) = losses_of(tiny_lm, [sae_of()], documents)
    alone = [losses_of(tiny_lm, [sae_of()], [document])[0] for document in documents]
    tokens = sum(losses.tokens for losses in alone)
    mean = sum(losses.reconstructed * losses.tokens for losses in alone) / tokens
    assert whole.tokens == tokens
    assert whole.reconstructed == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_tokenizer_that_pads_on_the_left_gives_the_same_losses(lm_dir_of, family):
    documents = [*DOCUMENTS[:3], "the cat"]
    found = {}
    for side in ("left", "right"):
        lm = load_language_model(str(lm_dir_of(family)))
        lm.tokenizer.padding_side = side
        found[side] = losses_of(lm, [sae_of()], documents)
    assert found["left"] == found["right"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_outliers_keep_their_activations(lm_dir_of, side):
    """Without the rule, a reconstruction of the sinks that misses costs the model its loss."""
    lm, poor = with_sinks(lm_dir_of("gpt2"), side), sae_of()
    (replaced,) = losses_of(lm, [poor])
    (kept,) = losses_of(lm, [poor], max_norm_multiple=10)
    assert replaced.left_alone == 0
    assert kept.left_alone == len(DOCUMENTS), "position 0 of each"
    assert kept.original == replaced.original
    assert kept.reconstructed != pytest.approx(replaced.reconstructed, rel=1e-3)
    assert kept.zero != pytest.approx(replaced.zero, rel=1e-3)
    exact, _ = losses_of(lm, [Exact(16, 16), poor], max_norm_multiple=10)
    assert exact.reconstructed == exact.original


def test_beginning_of_text_keeps_its_activation(tiny_lm):
    documents = ["<|endoftext|>" + text for text in DOCUMENTS]
    (losses,) = losses_of(tiny_lm, [sae_of()], documents, remove_bos=True)
    assert losses.left_alone == len(DOCUMENTS)
    only_bos = ["<|endoftext|>" * 5]
    (losses,) = losses_of(tiny_lm, [sae_of()], only_bos, remove_bos=True)
    assert losses.original == losses.reconstructed == losses.zero, "nothing was replaced"


def test_documents_without_a_second_token_have_no_loss(tiny_lm):
    (losses,) = losses_of(tiny_lm, [sae_of()], ["a", "", "b"])
    assert (losses.tokens, losses.positions) == (0, 2)
    assert math.isnan(losses.original)


def test_an_activation_that_is_not_finite_is_an_error(tiny_lm_dir):
    lm: Any = load_language_model(str(tiny_lm_dir))
    with t.no_grad():
        lm._model.gpt_neox.embed_in.weight[lm.tokenizer.encode(" cat")[0]] = math.inf
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        losses_of(lm, [sae_of()], ["the cat"])
