"""Ablations with one encoding of each text against SAE Bench's own."""

import pytest
import torch as t
from bench_saes import D, F, K, place

from dictionary_learning_ext import VariationalTopKAutoEncoder

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

import sae_bench.evals.scr_and_tpp.main as scr_and_tpp  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.sae_bench import adapter
from dictionary_learning_ext.sae_bench import evaluations as ablation


def test_encoding_once_gives_sae_benchs_ablations():
    sae = adapter.BenchSAE(VariationalTopKAutoEncoder(D, F, K), **place())
    sae.dictionary.b_dec.data.normal_()
    sets = [t.randn(7, 5, D), t.randn(4, 6, D)]
    for acts in sets:
        acts[1, 2:] = 0  # padded
    theirs = scr_and_tpp.ablated_precomputed_activations
    with ablation.encoding_once():
        ours = scr_and_tpp.ablated_precomputed_activations
        assert ours is not theirs
        for n in (1, 9):
            mask = t.arange(F) % 7 < n
            for acts in sets:
                t.testing.assert_close(ours(acts, sae, mask, 3), theirs(acts, sae, mask, 3))
        for _ in range(3):  # each in the memory, and with the id, that the one before has left
            other = t.randn(7, 5, D)
            t.testing.assert_close(ours(other, sae, mask, 3), theirs(other, sae, mask, 3))
            del other
    assert scr_and_tpp.ablated_precomputed_activations is theirs
