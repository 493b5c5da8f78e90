"""Dictionaries of random tokens against their definition in float64, and what of them is kept."""

import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder
from measurement import codes_of_rows, contexts_of_rows
from report_runs import train
from scipy.optimize import linear_sum_assignment

from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import TextError
from dictionary_learning_ext.evaluation.folders import OpenedFolders, open_folders
from dictionary_learning_ext.features.agreement import SHOWN
from dictionary_learning_ext.features.random_tokens import (
    come_back_of,
    kept_random_tokens,
    random_token_saes,
    random_tokens,
)
from dictionary_learning_ext.run_folder.files import RANDOM_TOKENS

N, D, F, K = 600, 8, 24, 3


@pytest.fixture
def x():
    """Activations of few kinds of tokens, about their means."""
    kinds = t.randn(40, D, generator=t.Generator().manual_seed(0)) * 3
    noise = t.randn(N, D, generator=t.Generator().manual_seed(1))
    return kinds.repeat(N // 40, 1) + 0.5 * noise + 2


def test_features_are_tokens_and_the_decoder_is_the_best_linear_one(x):
    sizes = [(F, K), (F + 6, K + 1)]
    saes = random_token_saes(x, sizes, seed=3)
    x_ND = x.double().numpy()
    centred_ND = x_ND - x_ND.mean(0)
    unit_ND = centred_ND / np.linalg.norm(centred_ND, axis=1, keepdims=True)
    tokens = []
    for sae, (size, k) in zip(saes, sizes, strict=True):
        directions_FD = sae.encoder.weight.numpy(force=True)
        cosines_FN = directions_FD @ unit_ND.T
        assert cosines_FN.max(1) == pytest.approx(np.ones(size), abs=1e-2), "less another mean"
        tokens.append(set(cosines_FN.argmax(1)))
        products_NF = np.maximum(centred_ND @ directions_FD.T, 0)
        least_N = np.sort(products_NF, axis=1)[:, -k]
        code_NF = np.where(products_NF >= least_N[:, None], products_NF, 0)
        assert sae.encode(x).numpy(force=True) == pytest.approx(code_NF, abs=1e-4)
        decoder_FD = np.linalg.lstsq(code_NF, centred_ND, rcond=None)[0]
        fires_F = (code_NF != 0).any(0)
        ours_FD = sae.decoder.weight.numpy(force=True).T
        assert ours_FD[fires_F] == pytest.approx(decoder_FD[fires_F], abs=1e-3)
        assert sae.b_dec.numpy(force=True) == pytest.approx(x_ND.mean(0), abs=1e-5)
    assert len(tokens[0]) == F
    assert not tokens[0] & tokens[1]
    again = random_token_saes(x, sizes, seed=3)
    assert t.equal(again[1].decoder.weight, saes[1].decoder.weight)


def test_without_twins_no_two_features_are_alike(x):
    for twins in (None, 0.7):
        (sae,) = random_token_saes(x, [(F, K)], twins=twins)
        weight_FD = sae.encoder.weight.detach()
        cosines_FF = (weight_FD @ weight_FD.T).fill_diagonal_(0)
        assert (cosines_FF.max() < 0.7) == (twins is not None)


def test_too_few_tokens_are_refused(x):
    with pytest.raises(TextError, match=r"600.*301"):
        random_token_saes(x, [(301, K), (301, K)])


def test_tokens_of_few_kinds_come_back(x):
    saes = random_token_saes(x, [(F, K)] * 2)
    numbers = come_back_of(saes, contexts_of_rows((x,)))
    assert numbers.keys() == {"l0", *(measure.key for measure in SHOWN)}
    assert 0 < numbers["in_function_fve"] < numbers["fve"] < 1
    one_FD, other_FD = (sae.encoder.weight.numpy(force=True) for sae in saes)
    cosines_FF = abs(one_FD @ other_FD.T)
    matched = cosines_FF[linear_sum_assignment(cosines_FF, maximize=True)]
    assert 0.2 < (matched >= 0.7).mean() < 1
    assert numbers["as_direction"] == pytest.approx((matched >= 0.7).mean()), "of the tokens"


class Activations:
    """Hands out the same activations, and keeps what was asked for."""

    def __init__(self, x):
        self.x, self.asked, self.run, self.keep = x, {}, RunConfig(), False

    def contexts(self, split, tokens):
        self.asked[split] = tokens
        return contexts_of_rows((self.x,))


def test_beside_an_sae_without_k_they_have_its_mean_l0(x):
    sae = AutoEncoder(D, F)
    with t.no_grad():
        sae.encoder.weight.normal_(generator=t.Generator().manual_seed(2))
        sae.encoder.bias.fill_(-10.0)
    codes = [codes_of_rows(sae, x)] * 2
    l0 = float((codes[0].code_NF != 0).sum() / len(x))
    assert codes[0].k is None
    assert 2 < l0 < 8
    numbers = random_tokens(Activations(x), codes, None)
    assert numbers["l0"] == pytest.approx(round(l0), rel=0.01)


@pytest.mark.parametrize(("n_features", "tokens"), [(F, 40_000), (3_000, 48_000)])
def test_they_are_drawn_from_enough_tokens_for_their_features(n_features, tokens, x):
    opened = Activations(x[:10])  # too few, so nothing is fitted
    codes = [SimpleNamespace(n_features=n_features, k=K, tokens=7, text={})] * 2
    assert random_tokens(opened, codes, None) is None
    assert opened.asked == {"train": tokens}


@pytest.fixture
def two(tiny_lm_dir, text, tmp_path):
    for n in range(2):
        train(tiny_lm_dir, text, tmp_path / f"seed{n}", "--seed", str(n))
    return [str(tmp_path / f"seed{n}") for n in range(2)]


def test_what_comes_back_of_random_tokens_is_kept_for_a_text_and_sizes(two, monkeypatch, caplog):
    opened = open_folders(two)
    codes, saes = [*opened.codes(500).values()], [*opened.folders.values()]
    found = random_tokens(opened, codes, saes[0])
    assert found is not None
    assert found == kept_random_tokens(codes, saes[0])
    assert random_tokens(open_folders(two, keep=False), codes, saes[1]) == found
    assert kept_random_tokens(codes, saes[1]) is None
    on_training_text = random_tokens(opened, codes, saes[1], split="train")
    assert kept_random_tokens(codes, saes[1]) is None, "of held-out text alone they are kept"
    assert random_tokens(opened, codes, saes[0], split="train") == on_training_text != found
    others = [*opened.codes(400).values()]
    assert kept_random_tokens(others, saes[0]) is None
    with caplog.at_level(logging.INFO):
        assert random_tokens(opened, others, saes[0]) != found
    assert "took" in caplog.text
    monkeypatch.setattr(OpenedFolders, "contexts", lambda *_: 1 / 0)
    assert random_tokens(opened, others, saes[0]) is not None


def test_a_damaged_file_is_not_used_and_activations_that_cannot_be_read_are_said(
    two, monkeypatch, caplog
):
    opened = open_folders(two)
    codes, saes = [*opened.codes(500).values()], [*opened.folders.values()]
    path = shutil.copy(f"{two[0]}/config.json", f"{two[0]}/{RANDOM_TOKENS}")
    assert kept_random_tokens(codes, saes[0]) is None
    assert str(path) in caplog.text

    def refused(*_):
        raise TextError("no text")

    monkeypatch.setattr(OpenedFolders, "contexts", refused)
    assert random_tokens(opened, codes, saes[0]) is None
    assert "no text" in caplog.text
