"""Dictionaries of random tokens against their definition in float64, and what of them is kept."""

import logging
import shutil

import numpy as np
import pytest
import torch as t
from measurement import contexts_of_rows
from report_runs import train

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
    numbers = come_back_of(random_token_saes(x, [(F, K)] * 2), contexts_of_rows((x,)))
    assert numbers.keys() == {"l0", *(measure.key for measure in SHOWN)}
    assert 0.2 < numbers["as_direction"] < 1
    assert 0 < numbers["in_function_fve"] < numbers["fve"] < 1


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
    assert random_tokens(opened, codes, saes[1], keep=False) == found
    assert kept_random_tokens(codes, saes[1]) is None
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
