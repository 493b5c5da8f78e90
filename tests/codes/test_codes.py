"""What is encoded against the dictionary's own encode and decode; how often each command encodes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from measurement import codes_of_rows
from report_runs import QUICK

from dictionary_learning_ext import Codes, encode_text, features_of
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.codes import codes as codes_module
from dictionary_learning_ext.codes import encoding
from dictionary_learning_ext.codes.contexts import token_text
from dictionary_learning_ext.codes.encoding import Encoder
from dictionary_learning_ext.errors import ConfigError, NonFiniteError, TextError
from dictionary_learning_ext.features.random_tokens import TOKENS
from dictionary_learning_ext.run_folder.files import CODES
from dictionary_learning_ext.trainers.vaease import VAEase
from dictionary_learning_ext.trainers.variational_batch_top_k import (
    VariationalBatchTopKAutoEncoder,
)
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKAutoEncoder

N, D, F, K = 83, 8, 40, 3

SAES = {
    "top_k": lambda: AutoEncoderTopK(D, F, K),
    "batch_top_k": lambda: BatchTopKSAE(D, F, K),
    "vsae_batch": lambda: VariationalBatchTopKAutoEncoder(D, F, K),
    "relu": lambda: AutoEncoder(D, F),
    "jump_relu": lambda: JumpReluAutoEncoder(D, F),
    "vaease": lambda: VAEase(D, F),
    "vsae": lambda: VariationalTopKAutoEncoder(D, F, K),
    "learned": lambda: VariationalTopKAutoEncoder(D, F, K, posterior="learned"),
    "magnitude": lambda: VariationalTopKAutoEncoder(D, F, K, select_by="magnitude"),
    "rectified": lambda: VariationalTopKAutoEncoder(D, F, 30, rectify=True),
    "all": lambda: VariationalTopKAutoEncoder(D, F, F),
}


@pytest.fixture(params=SAES)
def sae(request):
    t.manual_seed(0)
    found = SAES[request.param]().requires_grad_(False)
    if isinstance(found, BatchTopKSAE):
        found.threshold.fill_(0.3)
    return found


@pytest.fixture
def x():
    return t.randn(N, D, generator=t.Generator().manual_seed(1))


@pytest.mark.parametrize("with_all", [False, True])
def test_selections_values_and_sums_are_those_of_encode_and_decode(sae, x, with_all, monkeypatch):
    monkeypatch.setattr(encoding, "_BLOCK_ELEMENTS", 7 * F)
    encoder = Encoder(sae, with_all=with_all)
    encoder.add(x[:50])
    encoder.add(x[50:])
    f_NF = t.cat([sae.encode(part) for half in (x[:50], x[50:]) for part in half.split(7)])
    assert t.equal(t.from_numpy(encoder.code_NF().toarray()), f_NF), "to the bit"
    assert encoder.code_NF().has_sorted_indices
    assert encoder.code_NF().nnz == int((f_NF != 0).sum())
    error_ND = (x - sae.decode(f_NF)).double()
    assert encoder.totals.residual == pytest.approx(float(error_ND.square().sum()), rel=1e-6)
    assert encoder.totals.mean("l0") == pytest.approx(float((f_NF != 0).sum()) / N)
    directions_FD = (sae.decode(t.eye(F)) - sae.decode(t.zeros(1, F))).double()
    dropped_NFD = error_ND[:, None] + f_NF.double()[:, :, None] * directions_FD
    ablation_error_F = (dropped_NFD.square().sum(2) - error_ND.square().sum(1)[:, None]).sum(0)
    t.testing.assert_close(encoder.ablation_error_F, ablation_error_F, rtol=1e-4, atol=1e-4)
    if with_all and hasattr(sae, "posterior"):
        assert encoder.totals.kl == pytest.approx(float(sae.posterior(x).kl.sum()), rel=1e-5)


def test_error_share_is_the_rise_of_the_error_without_the_feature(sae, x):
    f_NF = sae.encode(x)

    def error(without=None):
        kept_NF = f_NF.index_fill(1, t.tensor([] if without is None else [without]).long(), 0)
        return float((x - sae.decode(kept_NF)).square().sum())

    expected = [error(feature) / error() - 1 for feature in range(F)]
    assert codes_of_rows(sae, x).error_share_F == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_error_of_some_features_alone_is_that_of_their_reconstruction(sae, x):
    """With the decoder and its bias, on other activations than training's, in float64."""
    codes, is_in_F = codes_of_rows(sae, x[:50], x[50:]), np.arange(F) % 3 == 0
    sae, x = sae.double(), x.double()
    f_NF = sae.encode(x) * t.from_numpy(is_in_F)
    expected = float((x - sae.decode(f_NF)).square().sum())
    assert codes.residual_of(is_in_F) == pytest.approx(expected, rel=1e-4)
    assert codes.residual_of(np.ones(F, dtype=bool)) == pytest.approx(codes.totals.residual)


@pytest.mark.parametrize("kind", ["vsae", "magnitude", "rectified", "learned"])
def test_sparse_encode_is_encode_without_the_zeros(kind, x):
    sae = SAES[kind]().requires_grad_(False)
    for shaped in (x, x[:80].view(10, 8, D)):
        code, f = sae.sparse_encode(shaped), sae.encode(shaped)
        assert code.values.shape == (*shaped.shape[:-1], int(sae.k))
        assert t.equal(t.zeros_like(f).scatter_(-1, code.indices, code.values), f)


def test_a_batchs_sparse_encode_is_encode_without_the_zeros(x):
    sae = VariationalBatchTopKAutoEncoder(D, F, K).requires_grad_(False)
    sae.threshold.fill_(0.5)
    code, f_NF = sae.sparse_encode(x[:80].view(10, 8, D)), sae.encode(x[:80])
    assert code.rows is not None
    assert len(code.values) == (f_NF != 0).sum()
    assert t.equal(t.zeros_like(f_NF).index_put((code.rows, code.indices), code.values), f_NF)


def test_encode_with_a_graph_is_encode_without_one(x):
    """With a graph torch selects, and without one the package's own kernel."""
    sae = VariationalTopKAutoEncoder(D, F, K)
    with_graph = sae.encode(x)
    assert with_graph.requires_grad
    with t.no_grad():
        assert t.equal(sae.encode(x), with_graph)


def test_encode_leaves_the_means_to_whoever_hooked_them(x):
    sae = VariationalTopKAutoEncoder(D, F, K).requires_grad_(False)
    kept = []
    without = sae.encode(x)
    handle = sae.encoder.register_forward_hook(lambda module, args, mu: kept.append(mu))
    assert t.equal(sae.encode(x), without)
    handle.remove()
    assert t.equal(kept[0], sae.encoder(x - sae.b_dec))
    features, *_, mu = sae.encode(x, return_topk=True)
    assert t.equal(features, without)
    assert t.equal(mu, kept[0])


def test_nan_is_refused(x):
    sae = AutoEncoderTopK(D, F, K).requires_grad_(False)
    sae.encoder.bias[3] = t.nan
    with pytest.raises(NonFiniteError, match=r"ae\.pt"):
        codes_of_rows(sae, x)


def test_in_python_a_feature_shows_its_contexts(runs):
    codes = encode_text(runs[0], tokens=150)
    assert codes.tokens == 150
    assert codes.to_scipy().shape == (150, 32)
    feature = int(np.argmax(codes.count_F))
    top = codes.feature(feature).contexts(3)
    sizes = [abs(one.activation) for one in top]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == np.abs(codes.feature(feature).activations).max()
    assert top[0].token in top[0].tokens
    again = Codes.load(runs[0])
    assert (again.to_scipy() != codes.to_scipy()).nnz == 0
    assert [one.tokens for one in again.feature(feature).contexts(3)] == [one.tokens for one in top]


def test_each_token_of_a_sentence_has_its_largest_features(tiny_lm):
    t.manual_seed(0)
    texts = ["The cat sat on the mat.", "It was."]  # of two lengths: the second is padded
    codes = encode_text(AutoEncoderTopK(16, F, K), texts, tiny_lm, hook="blocks.1.hook_mlp_out")
    assert "".join(codes.token_texts) == "".join(texts)
    dense_NF = codes.to_scipy().toarray()
    assert len(codes.token_texts) == codes.tokens == len(dense_NF)
    for position, f_F in enumerate(dense_NF):
        found = codes.features_at(position, n=2)
        assert [f_F[each.feature] for each in found] == [each.activation for each in found]
        assert [abs(each.activation) for each in found] == sorted(np.abs(f_F))[:-3:-1]
    assert codes.features_at(-1) == codes.features_at(codes.tokens - 1)
    for outside in (codes.tokens, -codes.tokens - 1):
        with pytest.raises(IndexError, match=f"{outside}.*{codes.tokens}"):
            codes.features_at(outside)
    with pytest.raises(TextError, match="tokenizer"):
        _ = replace(codes, tokenizer=None).token_texts
    assert token_text(tiny_lm.tokenizer, -1) == "", "padding"


def test_a_text_is_no_activation():
    for text in ("a sentence", ["two", "sentences"]):
        with pytest.raises(ConfigError, match="encode_text"):
            SAES["vsae"]().encode(text)


# --- how often a command encodes


@pytest.fixture
def counted(monkeypatch):
    """The tokens that were encoded, and the passes of the language model, since the last call."""
    counts = {"tokens": 0, "passes": 0}
    block, run = encoding._block, ActivationReader.run

    def encodes(dictionary, x_nD, with_all):
        counts["tokens"] += len(x_nD)
        return block(dictionary, x_nD, with_all)

    def runs_model(self, *given):
        counts["passes"] += 1
        return run(self, *given)

    monkeypatch.setattr(encoding, "_block", encodes)
    monkeypatch.setattr(ActivationReader, "run", runs_model)
    return counts


def test_codes_are_of_one_text_and_kept_unless_that_is_declined(seeds, counted, tmp_path):
    a, b = (str(shutil.copytree(one, tmp_path / one.name)) for one in seeds[:2])
    page = f"--out={tmp_path / 'page.html'}"
    commands = [
        (["reproduce", a, "--tokens=300"], 300),
        (["reproduce", a, b, "--tokens=300"], 300 + 2 * (TOKENS + 300)),  # b's, and random tokens
        (["report", a, "--seeds", b, "--tokens=300", page], 0),
        (["report", a, *QUICK, page], 600),  # training text, which is not kept
        (["reproduce", a, "--tokens=200"], 200),  # another text replaces it
        (["reproduce", a, b, "--tokens=0"], 0),
        (["reproduce", a, "--tokens=300", "--no-keep"], 300),
    ]
    for command, tokens in commands:
        counted.update(tokens=0, passes=0)
        assert main(command) == 0
        assert counted["tokens"] == tokens, command
        assert (counted["passes"] == 0) == (tokens == 0), command


def test_codes_of_a_given_language_model_are_neither_read_nor_kept(
    runs, tiny_lm, counted, tmp_path
):
    run = shutil.copytree(runs[0], tmp_path / "run", ignore=shutil.ignore_patterns("codes"))
    encode_text(run, lm=tiny_lm, tokens=150)
    features_of(run, lm=tiny_lm, tokens=150)
    assert not (run / CODES).exists()
    encode_text(run, tokens=150)
    counted.update(tokens=0)
    features_of(run, lm=tiny_lm, tokens=150)
    assert counted["tokens"] == 150


def test_a_directions_nearest_token_is_among_the_first_less_their_mean(monkeypatch):
    monkeypatch.setattr(codes_module, "KIND_OF", 50)
    t.manual_seed(0)
    sae, x_ND = AutoEncoderTopK(8, 12, 3), t.randn(70, 8) + 2
    codes = codes_of_rows(sae, x_ND[:30], x_ND[30:])
    first = x_ND[:50].double() - x_ND[:50].double().mean(0)
    cosines = t.cosine_similarity(sae.decoder.weight.double().T[:, None], first[None], dim=2)
    assert codes.token_cosine_F == pytest.approx(cosines.amax(1).numpy(force=True), abs=1e-5)
