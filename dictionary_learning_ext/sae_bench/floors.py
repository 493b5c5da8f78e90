"""Reference SAEs that need no training: two floors, in which nothing was learned, and the identity."""

from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.custom_saes.identity_sae import IdentitySAE

from ..features.directions import random_directions
from .adapter import BenchSAE


def reference_saes(like: BenchSAE) -> dict[str, BaseSAE]:
    """All of them by label, of the size, k and place of an SAE."""
    return {
        f"random_F{like.cfg.d_sae}": random_sae(like),
        "random_spectrum": random_spectrum_sae(like),
        "identity": identity_sae(like),
    }


def random_sae(like: BenchSAE, seed: int = 0) -> BenchSAE:
    """An untrained TopK SAE of the same size, k and place as another."""
    return _as_bench_sae(_untrained(like, seed), like, "random")


def random_spectrum_sae(like: BenchSAE, seed: int = 0) -> BenchSAE:
    """Random directions with the second moments of another SAE's decoder, as encoder and decoder.

    Its decoder bias is the other's. If it scores as well, the other learned little more than which
    dimensions the activations use.
    """
    dictionary: Any = _untrained(like, seed)
    directions_FD = random_directions(like.W_dec.cpu(), t.Generator().manual_seed(seed))
    with t.no_grad():
        dictionary.decoder.weight.copy_(directions_FD.t())
        dictionary.encoder.weight.copy_(directions_FD)
        dictionary.b_dec.copy_(like.b_dec)
    return _as_bench_sae(dictionary, like, "random_spectrum")


def identity_sae(like: BenchSAE) -> IdentitySAE:
    """The ceiling of a measure: SAE Bench's identity, whose features are the activations."""
    cfg = like.cfg
    sae = IdentitySAE(
        cfg.d_in, cfg.model_name, cfg.hook_layer, like.device, like.dtype, cfg.hook_name
    )
    sae.cfg.architecture = "identity"
    return sae.requires_grad_(False)


def _k_of(like: BenchSAE) -> int:
    """An SAE's k; of one without, F / 32."""
    k = getattr(like.dictionary, "k", None)
    return max(1, like.cfg.d_sae // 32) if k is None else int(k)


def _untrained(like: BenchSAE, seed: int) -> AutoEncoderTopK:
    with t.random.fork_rng(devices=[]):
        t.manual_seed(seed)
        return AutoEncoderTopK(like.cfg.d_in, like.cfg.d_sae, _k_of(like))


def _as_bench_sae(dictionary: AutoEncoderTopK, like: BenchSAE, architecture: str) -> BenchSAE:
    cfg = like.cfg
    return BenchSAE(
        dictionary.to(like.device).requires_grad_(False),
        model_name=cfg.model_name,
        hook_name=cfg.hook_name,
        hook_layer=cfg.hook_layer,
        architecture=architecture,
    )
