"""SAEs that nothing, or only an encoder, was learned for: what a measure can tell apart lies above them.

Published SAEs hardly beat the one with a frozen random decoder on several measures (arXiv 2602.14111).
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.custom_saes.identity_sae import IdentitySAE

from ..config.run_config import TrainConfig, require_same
from ..config.sae_config import SAEConfig
from ..errors import BenchError, ConfigError
from ..features.directions import random_directions
from ..run_folder.names import BENCH_FLOOR, CONFIG
from ..run_folder.reading import is_finished, load_config
from ..training.loop import train
from .adapter import BenchSAE, load_bench_sae

logger = logging.getLogger(__name__)

_AS_TRAINED = ("seed", "lr", "warmup_steps", "decay_start")


def untrained_saes(like: BenchSAE) -> dict[str, BaseSAE]:
    """The floors that need no training, by their labels, for an SAE of a size, k and place."""
    return {
        f"random_F{like.cfg.d_sae}": random_sae(like),
        "random_spectrum": random_spectrum_sae(like),
        "identity": identity_sae(like),
    }


def random_sae(like: BenchSAE, seed: int = 0) -> BenchSAE:
    """An untrained TopK SAE of the same size, k and place as another."""
    return _as_bench_sae(_untrained(like, seed), like, "random")


def random_spectrum_sae(like: BenchSAE, seed: int = 0) -> BenchSAE:
    """Random directions with the covariance of another SAE's decoder, as encoder and decoder.

    Its decoder bias is the other's. If it scores as well, what the other learned is which dimensions
    the activations use.
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


def frozen_decoder_sae(folder: Path, like: BenchSAE) -> BenchSAE:
    """A TopK SAE whose encoder is trained, as the folder's SAE was, on a decoder that stays random.

    It is trained once, into FOLDER/frozen_decoder, which takes as long as the folder's training did.

    Raises: BenchError if the folder's config.json doesn't say how its SAE was trained.
    """
    config = frozen_decoder_config(folder, like)
    target = Path(config.run.save_dir or "")
    is_its_own = _is_run_of(config, target)
    if not (is_its_own and is_finished(target, config.run)):
        steps = f"{config.run.steps:,} steps"
        logger.info("%s: training the floor with a frozen random decoder: %s", target, steps)
        run = replace(config.run, overwrite=not is_its_own)
        train(run, {BENCH_FLOOR: config.sae}, resume=is_its_own)
    cfg = like.cfg
    sae = load_bench_sae(
        target,
        model_name=cfg.model_name,
        hook_name=cfg.hook_name,
        hook_layer=cfg.hook_layer,
        device=str(like.device),
    )
    sae.cfg.architecture = "frozen_decoder"
    return sae


def frozen_decoder_config(folder: Path, like: BenchSAE) -> TrainConfig:
    """The settings that `frozen_decoder_sae` trains with."""
    try:
        trained = load_config(folder)
    except ConfigError as error:
        raise BenchError(
            f"the floor with a frozen decoder is trained as {folder}'s SAE was, and its {CONFIG} does "
            f"not say how ({error}); leave out --floor, or name a run folder of `vsae train` first"
        ) from error
    sae = SAEConfig(
        architecture="vsae_top_k",
        posterior="point",
        rectify=True,
        beta=0.0,
        k=_k_of(like),
        dict_size=like.cfg.d_sae,
        freeze_decoder=True,
        **{name: getattr(trained.sae, name) for name in _AS_TRAINED},
    )
    run = replace(trained.run, save_dir=str(folder / BENCH_FLOOR), wandb="disabled")
    return TrainConfig(sae.resolve(run.steps, run.batch_size), run)


def _is_run_of(config: TrainConfig, folder: Path) -> bool:
    """Whether a folder holds a run with these settings, finished or not."""
    try:
        require_same(load_config(folder).to_dict(), config.to_dict(), str(folder))
    except ConfigError:
        return False
    return True


def _k_of(like: BenchSAE) -> int:
    return int(getattr(like.dictionary, "k", max(1, like.cfg.d_sae // 32)))


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
